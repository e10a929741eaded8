"""What has been revoked, and whom that concerns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from taskiq_flow_security.core.principal import Principal


@dataclass(frozen=True, slots=True)
class Revocations:
    """Each kind by name, with the moment from which on it need not be known any more. False where there is none.

    Signing keys that were revoked are not here: they are the keyring's matter.
    """

    api_keys: Mapping[str, float | None] = field(default_factory=dict)
    """By the id of the key."""
    subjects: Mapping[str, float | None] = field(default_factory=dict)
    tokens: Mapping[str, float | None] = field(default_factory=dict)
    """By `jti`: of a bearer token, a principal or a message's signature."""
    issued_before: float | None = None
    """All tokens that were issued before then, in seconds since the epoch."""

    def __bool__(self) -> bool:
        return bool(self.subjects or self.api_keys or self.tokens or self.issued_before is not None)

    def of_principal(self, principal: Principal, now: float) -> str | None:
        """The rule by which a principal's login is revoked, if it is."""
        if _names(self.subjects, principal.subject, now):
            return "revoked.subject"
        if _names(self.api_keys, principal.api_key_id, now):
            return "revoked.api_key"
        if _names(self.tokens, principal.token_id, now):
            return "revoked.token"
        if principal.token_issued_at is not None and self._before(principal.token_issued_at):
            return "revoked.issued_before"
        return None

    def of_token(self, jti: str, issued_at: float, now: float) -> str | None:
        """The rule by which a token is revoked, if it is. Its key is the keyring's matter."""
        if _names(self.tokens, jti, now):
            return "revoked.token"
        return "revoked.issued_before" if self._before(issued_at) else None

    def _before(self, issued_at: float) -> bool:
        return self.issued_before is not None and issued_at < self.issued_before


def _names(revoked: Mapping[str, float | None], name: str | None, now: float) -> bool:
    if name is None or name not in revoked:
        return False
    until = revoked[name]
    return until is None or now < until
