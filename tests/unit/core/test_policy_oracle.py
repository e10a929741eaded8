"""The policy against an oracle written from its specification alone."""

from __future__ import annotations

from itertools import combinations, product

from hypothesis import given
from hypothesis import strategies as st

from taskiq_flow_security.core.guard import Guard
from taskiq_flow_security.core.policy import AccessRequest, Decision, Policy, decide
from taskiq_flow_security.core.principal import Permission, Principal
from taskiq_flow_security.core.reasons import Reason

PIPELINES = ("a", "b", "c")
TASKS = ("t", "u")
ROLES = ("processor", "viewer", "administrator")

Acls = dict[str, dict[Permission, set[str]]]

roles = st.sets(st.sampled_from(ROLES))
permissions = st.sampled_from(list(Permission))
acls = st.dictionaries(permissions, roles)
pipeline_acls = st.dictionaries(st.sampled_from(PIPELINES), acls)
task_acls = st.dictionaries(st.sampled_from(TASKS), acls)
principals = st.builds(
    Principal,
    st.just("alice"),
    roles,
    st.none() | st.sets(permissions),
    st.sets(st.sampled_from([*PIPELINES, "*", *(f"task:{task}" for task in TASKS)])),
)
guards = st.none() | st.builds(
    Guard,
    st.none() | permissions,
    roles.map(frozenset),
    st.sampled_from([None, lambda *_: True, lambda *_: False, lambda *_: 1, lambda *_: 1 / 0]),
)
requests = st.tuples(permissions, st.none() | st.sampled_from(PIPELINES), st.sampled_from(TASKS), guards).map(
    lambda parts: AccessRequest(*parts)
)


def oracle(pipeline_acls: Acls, task_acls: Acls, who: Principal, what: AccessRequest) -> bool:
    def listed(permission: Permission) -> list[bool]:
        named = [pipeline_acls.get(what.pipeline or ""), task_acls.get(what.task or "")]
        return [bool(who.roles & acl.get(permission, set())) for acl in named if acl is not None]

    def granted(permission: Permission) -> bool:
        return all(listed(permission)) and (bool(listed(permission)) or who.permissions is not None)

    whitelisted = not who.pipelines or bool(who.pipelines & {"*", what.pipeline or f"task:{what.task}"})
    carried = who.permissions is None or what.permission in who.permissions
    admin = "admin" in (who.permissions or ())
    if not whitelisted or not (admin or (carried and granted(what.permission))):
        return False
    return what.guard is None or guard_oracle(what.guard, who, granted)


def guard_oracle(guard: Guard, who: Principal, granted: object) -> bool:
    assert callable(granted)
    try:
        return (
            (not guard.roles or bool(guard.roles & who.roles))
            and (guard.permission is None or guard.permission in (who.permissions or {guard.permission}))
            and (guard.permission is None or who.permissions is not None or granted(guard.permission))
            and (who.permissions != frozenset() or guard.permission is None)
            and (guard.predicate is None or guard.predicate(who, {}) is True)
        )
    except ZeroDivisionError:
        return False


EVERY_ACL: list[dict[Permission, set[str]] | None] = [
    None,
    {},
    {Permission.EXECUTE: {"processor"}},
    {permission: {"processor"} for permission in Permission},
]
EVERY_SET = [frozenset(some) for size in range(4) for some in combinations(Permission, size)]
EVERY_GUARD = [
    None,
    *(
        Guard(*parts)
        for parts in product(
            [None, *Permission],
            [frozenset[str](), frozenset({"processor"})],
            [None, lambda *_: True, lambda *_: 1, lambda *_: 1 / 0],
        )
    ),
]


def test_the_policy_decides_every_combination_as_its_specification_says() -> None:
    for pipeline_acl, task_acl in product(EVERY_ACL, EVERY_ACL):
        acls = ({} if pipeline_acl is None else {"a": pipeline_acl}), ({} if task_acl is None else {"t": task_acl})
        policy = Policy.from_roles(*acls)
        for parts in product([(), ("processor",)], [None, *EVERY_SET], [(), ("*",), ("a",), ("task:t",)]):
            who = Principal("alice", *parts)
            for asked in product(Permission, [None, "a"], ["t"], EVERY_GUARD):
                what = AccessRequest(*asked)
                assert decide(policy, who, what).allowed is oracle(*acls, who, what)


def test_a_permission_that_a_guard_asks_for_cannot_have_been_given_up() -> None:
    policy = Policy.from_roles({"a": {permission: ["processor"] for permission in Permission}}, {})
    who = Principal("alice", roles=["processor"])
    what = AccessRequest(Permission.EXECUTE, "a", guard=Guard(permission=Permission.READ))
    assert decide(policy, who, what)
    assert not decide(policy, who.restrict(permissions=["execute"]), what)
    assert decide(policy, who.restrict(permissions=["execute", "read"]), what)


@given(pipeline_acls, task_acls, principals, requests)
def test_the_policy_decides_as_its_specification_says(
    pipeline_acls: Acls, task_acls: Acls, who: Principal, what: AccessRequest
) -> None:
    decision = decide(Policy.from_roles(pipeline_acls, task_acls), who, what)
    assert decision.allowed is oracle(pipeline_acls, task_acls, who, what)


@given(pipeline_acls, task_acls, principals, requests)
def test_a_principal_with_less_may_do_no_more(
    pipeline_acls: Acls, task_acls: Acls, who: Principal, what: AccessRequest
) -> None:
    policy = Policy.from_roles(pipeline_acls, task_acls)
    allowed = decide(policy, who, what).allowed
    for role in who.roles:
        less = Principal(who.subject, who.roles - {role}, who.permissions, who.pipelines)
        assert allowed or not decide(policy, less, what).allowed
    for permission in who.permissions or ():
        less = Principal(who.subject, who.roles, (who.permissions or frozenset()) - {permission}, who.pipelines)
        assert allowed or not decide(policy, less, what).allowed


scopes = st.tuples(
    st.none() | st.sets(permissions),
    st.none() | st.sets(st.sampled_from([*PIPELINES, *(f"task:{task}" for task in TASKS)])),
)


@given(pipeline_acls, task_acls, principals, requests, st.lists(scopes, min_size=1, max_size=3))
def test_a_restricted_principal_may_do_what_it_could_and_every_restriction_leaves(
    pipeline_acls: Acls,
    task_acls: Acls,
    who: Principal,
    what: AccessRequest,
    scopes: list[tuple[set[Permission] | None, set[str] | None]],
) -> None:
    policy = Policy.from_roles(pipeline_acls, task_acls)
    restricted = who
    for allowed_permissions, allowed_pipelines in scopes:
        restricted = restricted.restrict(permissions=allowed_permissions, pipelines=allowed_pipelines)
    asked = {what.permission, *([what.guard.permission] if what.guard and what.guard.permission else [])}
    left = all(
        (allowed_permissions is None or asked <= allowed_permissions)
        and (allowed_pipelines is None or what.resource in allowed_pipelines)
        for allowed_permissions, allowed_pipelines in scopes
    )
    allowed = decide(policy, restricted, what).allowed
    assert allowed <= (left and decide(policy, who, what).allowed)
    if restricted.permissions == who.permissions or Permission.ADMIN not in (who.permissions or ()):
        assert allowed is (left and decide(policy, who, what).allowed)


@given(principals, st.lists(scopes, min_size=1, max_size=3))
def test_what_is_left_of_a_principal_is_what_it_shows(
    who: Principal, scopes: list[tuple[set[Permission] | None, set[str] | None]]
) -> None:
    restricted = who
    for allowed_permissions, allowed_pipelines in scopes:
        restricted = restricted.restrict(permissions=allowed_permissions, pipelines=allowed_pipelines)
        assert (restricted.permissions or frozenset()) <= (who.permissions or frozenset())
        assert restricted.permissions is None or restricted.permissions <= (allowed_permissions or set(Permission))
        assert allowed_pipelines is None or restricted.pipelines <= allowed_pipelines
        assert restricted.same_identity(who)


def test_whoever_gives_up_admin_is_bound_by_access_control_lists_again() -> None:
    policy = Policy.from_roles({"a": {Permission.EXECUTE: ["processor"]}}, {})
    root = Principal("root", permissions=("admin", "execute"))
    request = AccessRequest(Permission.EXECUTE, "a")
    assert decide(policy, root, request)
    assert decide(policy, root.restrict(permissions=["execute"]), request).reason is Reason.ACL
    by_admin = request._replace(guard=Guard(predicate=lambda who, _: Permission.ADMIN in (who.permissions or ())))
    assert decide(Policy(), root, by_admin)
    assert decide(Policy(), root.restrict(permissions=["execute"]), by_admin).reason is Reason.GUARD


def test_a_restriction_to_all_pipelines_is_none() -> None:
    who = Principal("alice", permissions=("read",), pipelines=("a",))
    assert who.restrict(pipelines=["*"]) == who
    assert who.restrict() == who


def test_a_restriction_to_nothing_leaves_nothing() -> None:
    who = Principal("alice", permissions=("admin",))
    for nothing in (who.restrict(permissions=[]), who.restrict(pipelines=[])):
        assert decide(Policy(), nothing, AccessRequest(Permission.READ, "a")).reason is Reason.SCOPE


def test_every_step_denies_under_its_own_reason() -> None:
    policy = Policy.from_roles({"a": {Permission.EXECUTE: ["processor"]}}, {})
    execute = AccessRequest(Permission.EXECUTE, "a")

    def reason(
        request: AccessRequest = execute,
        roles: tuple[str, ...] = ("processor",),
        permissions: tuple[str, ...] = ("execute",),
        pipelines: tuple[str, ...] = ("a",),
    ) -> Reason:
        return decide(policy, Principal("alice", roles, permissions, pipelines), request).reason

    assert reason() is Reason.ACL
    assert reason(pipelines=("b",)) is Reason.WHITELIST
    assert reason(permissions=("read",)) is Reason.PERMISSION
    assert reason(roles=("viewer",)) is Reason.ACL
    assert reason(permissions=("admin",), roles=()) is Reason.ADMIN
    guarded = AccessRequest(Permission.EXECUTE, "a", guard=Guard(roles=frozenset({"surgeon"})))
    assert reason(guarded, permissions=("admin",)) is Reason.GUARD


def test_a_pipeline_cannot_be_named_so_that_it_passes_for_a_task_or_for_all() -> None:
    everything = Principal("alice", permissions=("admin",))
    for name in ("task:t", "*", ""):
        assert decide(Policy(), everything, AccessRequest(Permission.READ, name)).reason is Reason.INVALID_REQUEST


def test_a_decision_is_true_where_it_allows() -> None:
    assert Decision(True, Reason.ACL, "x")
    assert not Decision(False, Reason.ACL, "x")
