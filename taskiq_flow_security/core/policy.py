"""Who may do what, as a pure function of policy, principal and request."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

from taskiq_flow_security.core.guard import Arguments, Guard
from taskiq_flow_security.core.principal import ALL_PIPELINES, UNRESTRICTED, Permission, Principal, Scope
from taskiq_flow_security.core.reasons import Reason


class Decision(NamedTuple):
    """The answer to a request: whether, why (a stable code), and by which rule. True if it allows."""

    allowed: bool
    reason: Reason
    rule: str

    def __bool__(self) -> bool:
        return self.allowed


class Rule(NamedTuple):
    """The roles that one permission on one pipeline or task is granted to, and the two ways to decide by it."""

    roles: frozenset[str]
    allow: Decision
    deny: Decision


Acl = Mapping[Permission, Rule]
"""A rule for every permission; one that the configuration does not name is granted to nobody."""

AclsByName = Mapping[str | None, Acl]
"""By pipeline or task; there is none for ``None``, which is what belongs to no pipeline, or is no task."""

RolesByName = Mapping[str, Mapping[Permission, Iterable[str]]]

TASK_PREFIX = "task:"
"""A task without a pipeline is the resource ``task:<name>``."""

ENDPOINT_PREFIX = "endpoint:"
"""An endpoint without a pipeline is the resource ``endpoint:<name>``."""

_OTHER_PREFIXES = (TASK_PREFIX, ENDPOINT_PREFIX)
"""A pipeline of such a name would pass for a task or an endpoint in a whitelist."""

_NO_PIPELINES = frozenset({"", ALL_PIPELINES})


def is_pipeline_name(name: object) -> bool:
    """Whether this can name a pipeline: no text that means all of them, a task or an endpoint."""
    return isinstance(name, str) and name not in _NO_PIPELINES and not name.startswith(_OTHER_PREFIXES)


class AccessRequest(NamedTuple):
    """What is asked: a permission on a pipeline, or on a task or an endpoint that belongs to none."""

    permission: Permission
    pipeline: str | None = None
    task: str | None = None
    guard: Guard | None = None
    arguments: Arguments = MappingProxyType({})
    endpoint: str | None = None

    @property
    def resource(self) -> str:
        """The name that a whitelist must contain."""
        if self.pipeline is not None:
            return self.pipeline
        if self.task is not None:
            return f"{TASK_PREFIX}{self.task}"
        return f"{ENDPOINT_PREFIX}{self.endpoint}"


@dataclass(frozen=True, slots=True)
class Policy:
    """The access control lists, indexed by name: a decision costs the same however many there are."""

    pipeline_acls: AclsByName = field(default_factory=dict)
    task_acls: AclsByName = field(default_factory=dict)
    hash: str = field(init=False)
    """Names this version of the policy in audit events."""

    def __post_init__(self) -> None:
        text = json.dumps([_plain(self.pipeline_acls), _plain(self.task_acls)], sort_keys=True)
        object.__setattr__(self, "hash", hashlib.sha256(text.encode()).hexdigest()[:16])

    @classmethod
    def from_roles(cls, pipeline_acls: RolesByName, task_acls: RolesByName) -> Policy:
        """Build a policy from plain lists of roles, by the name of a pipeline or task and by permission."""
        return cls(_acls("pipeline_acls", pipeline_acls), _acls("task_acls", task_acls))


_BY_ADMIN = Decision(True, Reason.ADMIN, "principal.permissions")
_BY_PERMISSION = Decision(True, Reason.PERMISSION, "principal.permissions")
_NOT_GRANTED = Decision(False, Reason.PERMISSION, "no explicit permission and no ACL")


def decide(policy: Policy, principal: Principal, request: AccessRequest) -> Decision:
    """Answer a request. Every step must pass; the first that does not decides."""
    if (invalid := _invalid_resource(request)) is not None:
        return _deny(Reason.INVALID_REQUEST, invalid)

    # 0. what the principal was restricted to
    if principal.scope is not UNRESTRICTED and (outside := _outside(principal.scope, request)) is not None:
        return _deny(Reason.SCOPE, outside)

    # 1. whitelist
    whitelist = principal.granted_pipelines  # of what is left of it, an empty set would mean all
    if whitelist and ALL_PIPELINES not in whitelist and request.resource not in whitelist:
        return _deny(Reason.WHITELIST, "principal.pipelines")

    # 2. admin
    explicit = principal.permissions
    if explicit is not None and Permission.ADMIN in explicit:
        granted = _BY_ADMIN
    else:
        # 3. permission
        if explicit is not None and request.permission not in explicit:
            return _deny(Reason.PERMISSION, "principal.permissions")
        # 4. ACL
        granted = _decide_acls(policy, principal, request, request.permission)
        if not granted.allowed:
            return granted

    # 5. guard
    if request.guard is not None:
        return _decide_guard(policy, principal, request, request.guard, granted)
    return granted


def _decide_acls(policy: Policy, principal: Principal, request: AccessRequest, permission: Permission) -> Decision:
    granted = _BY_PERMISSION if principal.permissions is not None else _NOT_GRANTED
    for acl in (policy.pipeline_acls.get(request.pipeline), policy.task_acls.get(request.task)):
        if acl is not None:
            rule = acl[permission]
            if principal.roles.isdisjoint(rule.roles):
                return rule.deny
            granted = rule.allow
    return granted


def _decide_guard(
    policy: Policy,
    principal: Principal,
    request: AccessRequest,
    guard: Guard,
    granted: Decision,
) -> Decision:
    if guard.roles and principal.roles.isdisjoint(guard.roles):
        return _deny(Reason.GUARD, "guard.roles")
    if guard.permission is not None:
        carried = principal.permissions
        if carried is not None and guard.permission not in carried:
            return _deny(Reason.GUARD, "guard.permission")
        if carried is None and not _decide_acls(policy, principal, request, guard.permission).allowed:
            return _deny(Reason.GUARD, "guard.permission")
    if guard.predicate is not None:
        try:
            passed = guard.predicate(principal, request.arguments)
        except Exception as error:  # noqa: BLE001 (an error means deny)
            return _deny(Reason.GUARD, f"guard.predicate raised {type(error).__name__}")
        if passed is not True:
            if isinstance(passed, Coroutine):
                passed.close()  # or it would be said on standard error, to nobody, that it was never awaited
                return _deny(Reason.GUARD, "guard.predicate returned a coroutine")
            return _deny(Reason.GUARD, "guard.predicate")
    return granted


def _outside(scope: Scope, request: AccessRequest) -> str | None:
    if scope.pipelines is not None and request.resource not in scope.pipelines:
        return "principal.scope.pipelines"
    if scope.permissions is None:
        return None
    needed = {request.permission}
    if request.guard is not None and request.guard.permission is not None:
        needed.add(request.guard.permission)
    return None if needed <= scope.permissions else "principal.scope.permissions"


def _invalid_resource(request: AccessRequest) -> str | None:
    permission, pipeline, task, _, _, endpoint = request
    if not isinstance(permission, Permission):
        return "unknown permission"
    if pipeline is None:
        name = endpoint if task is None else task
        return None if isinstance(name, str) and name else "no pipeline, task or endpoint"
    return None if is_pipeline_name(pipeline) else "not the name of a pipeline"


def _deny(reason: Reason, rule: str) -> Decision:
    return Decision(False, reason, rule)


def _acls(setting: str, roles_by_name: RolesByName) -> AclsByName:
    return {
        name: {
            permission: _rule(f"{setting}.{name}.{permission}", roles.get(permission, ())) for permission in Permission
        }
        for name, roles in roles_by_name.items()
    }


def _rule(name: str, roles: Iterable[str]) -> Rule:
    return Rule(frozenset(roles), Decision(True, Reason.ACL, name), _deny(Reason.ACL, name))


def _plain(acls: AclsByName) -> dict[str | None, dict[str, list[str]]]:
    return {name: {permission: sorted(rule.roles) for permission, rule in acl.items()} for name, acl in acls.items()}
