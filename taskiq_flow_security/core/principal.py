"""Who acts."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from taskiq_flow_security.core.string_enum import StringEnum


class Permission(StringEnum):
    """What can be done with a pipeline or a task."""

    READ = "read"
    EXECUTE = "execute"
    ADMIN = "admin"


ALL_PIPELINES = "*"

API_KEY_PREFIX = "api-key:"
SERVICE_PREFIX = "service:"
OWN_SUBJECTS = (API_KEY_PREFIX, SERVICE_PREFIX)
"""How subjects begin that are made here. No bearer token may claim to be one of them."""

_SURROGATE = re.compile("[\ud800-\udfff]")

N = TypeVar("N")


def _is_name(value: object) -> bool:
    """A non-empty string that every wire format can carry."""
    return isinstance(value, str) and value != "" and _SURROGATE.search(value) is None


def _names(field: str, values: Iterable[str]) -> frozenset[str]:
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise TypeError(f"{field} must be a collection of strings, not {type(values).__name__}")
    names = frozenset(values)
    if not all(map(_is_name, names)):
        raise ValueError(f"{field} must hold non-empty Unicode strings only")
    return names


@dataclass(frozen=True, slots=True)
class Scope:
    """What a principal was restricted to. ``None`` is no restriction; an empty set leaves nothing."""

    permissions: frozenset[Permission] | None = None
    pipelines: frozenset[str] | None = None

    def narrowed(self, other: Scope) -> Scope:
        """What both leave."""
        return Scope(_both(self.permissions, other.permissions), _both(self.pipelines, other.pipelines))


def _both(one: frozenset[N] | None, other: frozenset[N] | None) -> frozenset[N] | None:
    if one is None or other is None:
        return other if one is None else one
    return one & other


UNRESTRICTED = Scope()


@dataclass(frozen=True, init=False)
class Principal:
    """The identity in whose name something is asked, and the rights it was given.

    `permissions` is ``None`` where the principal carries no explicit permissions, so that only ACLs can grant it
    something; an empty set grants nothing. `pipelines` is the whitelist: empty or containing ``"*"`` means all.
    `api_key_id` names the API key it came from, never the key itself. `txn` joins all that is done for one request.
    `expires_at` is when the login ends, in seconds since the epoch: from then on it is not issued to anybody any more.
    `scope` is what `restrict` has left of these rights. `token_id` and `token_issued_at` are the ``jti`` and ``iat`` of
    the bearer token that it logged in with, by which that can be revoked. `issued_until` is the end of the principal
    label that it was read from: nothing that is issued for it anew lasts longer.

    Raises `ValueError` or `TypeError` for values that cannot be meant, such as one string for a set of names.
    """

    subject: str
    roles: frozenset[str]
    permissions: frozenset[Permission] | None
    """What is left of `granted_permissions`."""
    pipelines: frozenset[str]
    """What is left of `granted_pipelines`; where that is nothing, `scope` lets nothing pass."""
    api_key_id: str | None
    scope: Scope
    granted_permissions: frozenset[Permission] | None = field(repr=False)
    granted_pipelines: frozenset[str] = field(repr=False)
    txn: str | None = field(compare=False)
    expires_at: float | None = field(compare=False)
    token_id: str | None = field(compare=False)
    token_issued_at: float | None = field(compare=False)
    issued_until: float | None = field(compare=False)

    def __init__(
        self,
        subject: str,
        roles: Iterable[str] = (),
        permissions: Iterable[Permission | str] | None = None,
        pipelines: Iterable[str] = (),
        *,
        api_key_id: str | None = None,
        scope: Scope = UNRESTRICTED,
        txn: str | None = None,
        expires_at: float | None = None,
        token_id: str | None = None,
        token_issued_at: float | None = None,
        issued_until: float | None = None,
    ) -> None:
        if not _is_name(subject):
            raise ValueError("subject must be a non-empty Unicode string")
        for name in (api_key_id, txn, token_id):
            if name is not None and not _is_name(name):
                raise ValueError("api_key_id, txn and token_id must be non-empty Unicode strings or None")
        explicit = None if permissions is None else _permissions(permissions)
        whitelist = _names("pipelines", pipelines)
        self.__dict__.update(  # the dataclass is frozen
            subject=subject,
            roles=_names("roles", roles),
            permissions=_left_of(explicit, scope),
            pipelines=_left_of_whitelist(whitelist, scope),
            api_key_id=api_key_id,
            scope=scope,
            granted_permissions=explicit,
            granted_pipelines=whitelist,
            txn=txn,
            expires_at=expires_at,
            token_id=token_id,
            token_issued_at=token_issued_at,
            issued_until=issued_until,
        )

    def restrict(
        self, *, permissions: Iterable[Permission | str] | None = None, pipelines: Iterable[str] | None = None
    ) -> Principal:
        """The same principal with less rights: these permissions only, on these pipelines (or ``task:<name>``) only.

        It never has more than before: what it could not do it still cannot. An empty set leaves nothing, ``"*"`` all
        pipelines that there were. Whoever keeps no `admin` is bound by access control lists like everybody else.
        """
        only = None if pipelines is None else _names("pipelines", pipelines)
        return self.within(
            Scope(
                None if permissions is None else _permissions(permissions),
                None if only is not None and ALL_PIPELINES in only else only,
            )
        )

    def in_transaction(self, txn: str | None) -> Principal:
        """The same principal, in another transaction."""
        return self if txn == self.txn else self._but(txn=txn)

    def with_roles(self, roles: Iterable[str]) -> Principal:
        """The same principal, with these roles in place of its own."""
        return self._but(roles=_names("roles", roles))

    def same_identity(self, other: Principal) -> bool:
        """Whether the other one is this principal, restricted in whatever way."""
        return (self.subject, self.api_key_id) == (other.subject, other.api_key_id) and self.same_rights(other)

    def same_rights(self, other: Principal) -> bool:
        """Whether the other one was given the same, whoever it is and whatever is left of it."""
        return (self.roles, self.granted_permissions, self.granted_pipelines) == (
            other.roles,
            other.granted_permissions,
            other.granted_pipelines,
        )

    def within(self, scope: Scope) -> Principal:
        """The same principal, restricted to a scope as well."""
        if scope is UNRESTRICTED or scope == UNRESTRICTED:
            return self
        left = self.scope.narrowed(scope)
        return self._but(
            scope=left,
            permissions=_left_of(self.granted_permissions, left),
            pipelines=_left_of_whitelist(self.granted_pipelines, left),
        )

    def _but(self, **changes: object) -> Principal:
        """A copy with other values in some fields. The values were checked when this one was made."""
        other = object.__new__(Principal)
        values = other.__dict__  # the dataclass is frozen
        values.update(self.__dict__)
        values.update(changes)
        return other


def _permissions(values: Iterable[Permission | str]) -> frozenset[Permission]:
    return frozenset(map(Permission, _names("permissions", values)))


def _left_of(granted: frozenset[Permission] | None, scope: Scope) -> frozenset[Permission] | None:
    if granted is None or scope.permissions is None:
        return granted
    return granted & scope.permissions


def _left_of_whitelist(granted: frozenset[str], scope: Scope) -> frozenset[str]:
    if scope.pipelines is None:
        return granted
    return scope.pipelines if not granted or ALL_PIPELINES in granted else granted & scope.pipelines


ANONYMOUS = Principal("anonymous", permissions=())
"""Acts where security is off or only monitored and nobody is known; no policy grants it anything."""
