"""Who may do what now, by what is in force in this process."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from taskiq_flow_security.config import TaskiqFlowConfig
from taskiq_flow_security.core.policy import AccessRequest, Decision, decide
from taskiq_flow_security.core.principal import Principal
from taskiq_flow_security.core.reasons import Reason
from taskiq_flow_security.credentials import ApiKey, ApiKeys
from taskiq_flow_security.live_policy import LivePolicy


class Authorization:
    """Decides by the settings, by what was changed at run time, and by whether a login still holds."""

    def __init__(
        self, config: TaskiqFlowConfig, api_keys: ApiKeys, live: LivePolicy, clock: Callable[[], float]
    ) -> None:
        self._enabled = config.security_enabled
        self._leeway = config.clock_leeway
        self._lists_api_keys = "api_keys" in config.model_fields_set  # also if the last one has been removed
        self._api_keys = api_keys
        self._live = live
        self._clock = clock

    def decide(self, principal: Principal, request: AccessRequest) -> Decision:
        """Answer a request by what is in force in this process now."""
        live = self._live
        if not self._enabled:
            return Decision(True, Reason.SECURITY_DISABLED, "security_enabled")
        if live.stale and not live.caught_up():
            return Decision(False, Reason.POLICY_STALE, "policy_max_age")
        in_force, key = live.in_force, None
        if in_force.revocations is not None:
            rule = in_force.revocations.of_principal(principal, self._clock())
            if rule is not None:
                return Decision(False, Reason.REVOKED, rule)
        if principal.api_key_id is not None and self._lists_api_keys:
            key = self._api_keys.find(principal.api_key_id)
            if key is None or key.expires_at is not None:
                ended = _ended(key, self._clock())
                if ended is not None:
                    return ended
        decision = decide(in_force.policy, principal, request)
        if decision.allowed and (key is not None or in_force.roles):
            current = self.with_roles_in_force(principal if key is None else key.principal())
            if not current.same_rights(principal):
                # They have changed since the principal was issued: neither set may exceed the other.
                also = decide(in_force.policy, current, request)
                return decision if also.allowed else also
        return decision

    def is_over(self, principal: Principal, now: float) -> bool:
        """Whether the login or the label that a principal comes from has ended by any clock that may be right."""
        earliest = now - self._leeway
        return (principal.expires_at is not None and earliest >= principal.expires_at) or (
            principal.issued_until is not None and earliest >= principal.issued_until
        )

    def allows_until(self, principal: Principal) -> float:
        """Until when what is allowed stays allowed, as long as the same policy is in force."""
        ends = [principal.expires_at, principal.issued_until]
        if principal.api_key_id is not None and self._lists_api_keys:
            key = self._api_keys.find(principal.api_key_id)
            ends.append(0.0 if key is None else key.expires_at)
        return min((end for end in ends if end is not None), default=inf)

    def login_ended(self, principal: Principal) -> Reason | None:
        """Why the login that a principal comes from is over, if it is."""
        now = self._clock()
        if self.is_over(principal, now):
            return Reason.EXPIRED
        revocations = self._live.in_force.revocations
        if revocations is not None and revocations.of_principal(principal, now) is not None:
            return Reason.REVOKED
        if principal.api_key_id is None or not self._lists_api_keys:
            return None
        ended = _ended(self._api_keys.find(principal.api_key_id), now)
        return None if ended is None else ended.reason

    def revoked(self, jti: str, issued_at: float) -> str | None:
        """The rule by which a token is revoked that was issued here or elsewhere, if it is."""
        revocations = self._live.in_force.revocations
        return None if revocations is None else revocations.of_token(jti, issued_at, self._clock())

    def with_roles_in_force(self, principal: Principal) -> Principal:
        """A principal with the roles that its subject has been given at run time, if it has."""
        roles = self._live.in_force.roles.get(principal.subject)
        return principal if roles is None else principal.with_roles(roles)


def _ended(key: ApiKey | None, now: float) -> Decision | None:
    """Why nobody acts with an API key any more, if so: the configuration does not name it, or its time is over."""
    if key is None:
        return Decision(False, Reason.API_KEY_REMOVED, "api_keys")
    if key.expired(now):
        return Decision(False, Reason.API_KEY_EXPIRED, "api_keys.expires_at")
    return None
