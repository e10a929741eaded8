"""Who acts."""

from __future__ import annotations

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

N = TypeVar("N")


def _is_name(value: object) -> bool:
    """A non-empty string that every wire format can carry."""
    return isinstance(value, str) and value != "" and not any("\ud800" <= c <= "\udfff" for c in value)


def _names(field: str, values: Iterable[str]) -> frozenset[str]:
    if isinstance(values, (str, bytes)):
        raise TypeError(f"{field} must be a collection of strings, not one string")
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


@dataclass(frozen=True, slots=True, init=False)
class Principal:
    """The identity in whose name something is asked, and the rights it was given.

    `permissions` is ``None`` where the principal carries no explicit permissions, so that only ACLs can grant it
    something; an empty set grants nothing. `pipelines` is the whitelist: empty or containing ``"*"`` means all.
    `api_key_id` names the API key it came from, never the key itself. `txn` joins all that is done for one request.
    `expires_at` is when the login ends, in seconds since the epoch: from then on it is not issued to anybody any more.
    `scope` is what `restrict` has left of these rights. `token_id` and `token_issued_at` are the ``jti`` and ``iat`` of
    the bearer token that it logged in with, by which that can be revoked.

    Raises `ValueError` or `TypeError` for values that cannot be meant, such as one string for a set of names.
    """

    subject: str
    roles: frozenset[str]
    permissions: frozenset[Permission] | None
    pipelines: frozenset[str]
    api_key_id: str | None
    scope: Scope
    txn: str | None = field(compare=False)
    expires_at: float | None = field(compare=False)
    token_id: str | None = field(compare=False)
    token_issued_at: float | None = field(compare=False)

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
    ) -> None:
        if not _is_name(subject):
            raise ValueError("subject must be a non-empty Unicode string")
        for name in (api_key_id, txn, token_id):
            if name is not None and not _is_name(name):
                raise ValueError("api_key_id, txn and token_id must be non-empty Unicode strings or None")
        explicit = None if permissions is None else _names("permissions", permissions)
        set_field = object.__setattr__  # the dataclass is frozen
        set_field(self, "subject", subject)
        set_field(self, "roles", _names("roles", roles))
        set_field(
            self,
            "permissions",
            None if explicit is None else frozenset(map(Permission, explicit)),
        )
        set_field(self, "pipelines", _names("pipelines", pipelines))
        set_field(self, "api_key_id", api_key_id)
        set_field(self, "scope", scope)
        set_field(self, "txn", txn)
        set_field(self, "expires_at", expires_at)
        set_field(self, "token_id", token_id)
        set_field(self, "token_issued_at", token_issued_at)

    def restrict(
        self, *, permissions: Iterable[Permission | str] | None = None, pipelines: Iterable[str] | None = None
    ) -> Principal:
        """The same principal with less rights: these permissions only, on these pipelines (or ``task:<name>``) only.

        It never has more than before: what it could not do it still cannot. An empty set leaves nothing, ``"*"`` all
        pipelines that there were.
        """
        only = None if pipelines is None else _names("pipelines", pipelines)
        return self.within(
            Scope(
                None if permissions is None else frozenset(map(Permission, _names("permissions", permissions))),
                None if only is not None and ALL_PIPELINES in only else only,
            )
        )

    def in_transaction(self, txn: str | None) -> Principal:
        """The same principal, in another transaction."""
        return self._but("txn", txn)

    def with_roles(self, roles: Iterable[str]) -> Principal:
        """The same principal, with these roles in place of its own."""
        return self._but("roles", _names("roles", roles))

    def same_identity(self, other: Principal) -> bool:
        """Whether the other one is this principal, restricted in whatever way."""
        return (self.subject, self.roles, self.permissions, self.pipelines, self.api_key_id) == (
            other.subject,
            other.roles,
            other.permissions,
            other.pipelines,
            other.api_key_id,
        )

    def same_rights(self, other: Principal) -> bool:
        """Whether the other one was given the same, whoever it is."""
        return (self.roles, self.permissions, self.pipelines) == (other.roles, other.permissions, other.pipelines)

    def within(self, scope: Scope) -> Principal:
        """The same principal, restricted to a scope as well."""
        if scope is UNRESTRICTED or scope == UNRESTRICTED:
            return self
        return self._but("scope", self.scope.narrowed(scope))

    def _but(self, field: str, value: object) -> Principal:
        """A copy with another value in one field. The values were checked when this one was made."""
        other = object.__new__(Principal)
        for name in Principal.__slots__:
            object.__setattr__(other, name, getattr(self, name))
        object.__setattr__(other, field, value)
        return other


ANONYMOUS = Principal("anonymous", permissions=())
"""Acts where security is off or only monitored and nobody is known; no policy grants it anything."""
