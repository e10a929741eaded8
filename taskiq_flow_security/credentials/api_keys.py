"""API keys: found by their hash, known by an id."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from taskiq_flow_security.core.principal import API_KEY_PREFIX, Permission, Principal
from taskiq_flow_security.core.reasons import Reason
from taskiq_flow_security.errors import AuthenticationError
from taskiq_flow_security.tokens.jws import MAX_BYTES

_HASHED = "sha256:"

_ID_DIGITS = 16
_ID = re.compile(rf"[0-9a-f]{{{_ID_DIGITS}}}")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What an API key stands for: it holds an id of the key and its hash, never the key."""

    id: str
    sha256: str = field(repr=False)
    subject: str
    roles: frozenset[str]
    permissions: frozenset[Permission]
    pipelines: frozenset[str]
    expires_at: float | None
    rate_limits: Mapping[str, str] = field(default_factory=dict)
    """By endpoint, in the notation of the `limits` package."""
    _principal: Principal = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        principal = Principal(
            self.subject,
            self.roles,
            self.permissions,
            self.pipelines,
            api_key_id=self.id,
            expires_at=self.expires_at,
        )
        object.__setattr__(self, "_principal", principal)  # the dataclass is frozen

    @classmethod
    def parse(
        cls,
        key: str,
        *,
        subject: str | None,
        roles: Iterable[str],
        permissions: Iterable[str],
        pipelines: Iterable[str],
        expires_at: float | None,
        rate_limits: Mapping[str, str] = MappingProxyType({}),
    ) -> ApiKey:
        """Take a key in plain text, or as ``sha256:<hex>`` of it."""
        key_id = id_of(key)
        return cls(
            key_id,
            _hash_of(key),
            subject or f"{API_KEY_PREFIX}{key_id}",
            frozenset(roles),
            frozenset(map(Permission, permissions)),
            frozenset(pipelines),
            expires_at,
            rate_limits,
        )

    def principal(self, txn: str | None = None) -> Principal:
        """The principal that acts with this key."""
        return self._principal.in_transaction(txn)

    def expired(self, now: float) -> bool:
        """Whether the key's time is over."""
        return self.expires_at is not None and now >= self.expires_at


class ApiKeys:
    """Finds an API key by the hash of what was presented.

    The hash cannot be steered towards a known one, so the time that the look-up takes says nothing about any key.
    """

    def __init__(self, keys: Iterable[ApiKey]) -> None:
        self._by_hash = {key.sha256: key for key in keys}
        self._by_id = {key.id: key for key in self._by_hash.values()}

    def authenticate(self, presented: object, now: float) -> ApiKey:
        """The key that was presented, or `AuthenticationError`."""
        key = self.presented(presented)
        if key is None:
            raise AuthenticationError(Reason.UNKNOWN_API_KEY, "The API key is not known.")
        if key.expired(now):
            raise AuthenticationError(Reason.API_KEY_EXPIRED, "The API key has expired; ask for a new one.")
        return key

    def presented(self, presented: object) -> ApiKey | None:
        """The key that was presented, valid by now or not."""
        if isinstance(presented, str) and len(presented) <= MAX_BYTES:
            return self._by_hash.get(_sha256(presented))
        return None

    def find(self, key_id: str) -> ApiKey | None:
        """The key of this id as it is configured now."""
        return self._by_id.get(key_id)


def id_of(key: str) -> str:
    """The id of a key in plain text, or as ``sha256:<hex>`` of it, whether anybody has it or not."""
    return _sha256(f"taskiq-flow-security/api-key-id/{_hash_of(key)}")[:_ID_DIGITS]


def is_id(text: str) -> bool:
    """Whether this has the form of an id."""
    return _ID.fullmatch(text) is not None


def _hash_of(key: str) -> str:
    return key.removeprefix(_HASHED) if key.startswith(_HASHED) else _sha256(key)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
