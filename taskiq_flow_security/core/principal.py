"""Who acts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from taskiq_flow_security.core.string_enum import StringEnum


class Permission(StringEnum):
    """What can be done with a pipeline or a task."""

    READ = "read"
    EXECUTE = "execute"
    ADMIN = "admin"


ALL_PIPELINES = "*"


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


@dataclass(frozen=True, slots=True, init=False)
class Principal:
    """The identity in whose name something is asked, and the rights it was given.

    `permissions` is ``None`` where the principal carries no explicit permissions, so that only ACLs can grant it
    something; an empty set grants nothing. `pipelines` is the whitelist: empty or containing ``"*"`` means all.
    `api_key_id` names the API key it came from, never the key itself. `txn` joins all that is done for one request.
    `expires_at` is when the login ends, in seconds since the epoch: from then on it is not issued to anybody any more.

    Raises `ValueError` or `TypeError` for values that cannot be meant, such as one string for a set of names.
    """

    subject: str
    roles: frozenset[str]
    permissions: frozenset[Permission] | None
    pipelines: frozenset[str]
    api_key_id: str | None
    txn: str | None = field(compare=False)
    expires_at: float | None = field(compare=False)

    def __init__(
        self,
        subject: str,
        roles: Iterable[str] = (),
        permissions: Iterable[Permission | str] | None = None,
        pipelines: Iterable[str] = (),
        *,
        api_key_id: str | None = None,
        txn: str | None = None,
        expires_at: float | None = None,
    ) -> None:
        if not _is_name(subject):
            raise ValueError("subject must be a non-empty Unicode string")
        for name in (api_key_id, txn):
            if name is not None and not _is_name(name):
                raise ValueError("api_key_id and txn must be non-empty Unicode strings or None")
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
        set_field(self, "txn", txn)
        set_field(self, "expires_at", expires_at)


ANONYMOUS = Principal("anonymous", permissions=())
"""Acts where security is off or only monitored and nobody is known; no policy grants it anything."""
