"""Requests that need not be decided about again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from taskiq_flow_security.authentication import login_of
from taskiq_flow_security.core.events import AuditEvent, EventName, Outcome
from taskiq_flow_security.core.principal import Principal
from taskiq_flow_security.http.credentials import Credentials
from taskiq_flow_security.http.limits import EndpointLimits, FailedLogins
from taskiq_flow_security.http.rules import Match
from taskiq_flow_security.http.visit import Visit
from taskiq_flow_security.live_policy import InForce
from taskiq_flow_security.security import FlowSecurity

_REMEMBERED = 4096
"""How many requests are remembered at most."""

_ALLOW = Outcome.ALLOW

_new = tuple.__new__  # what the constructor of a named tuple comes to; it would take twice as long


class _Recurrent:
    """An event that is recorded again and again: at another time, in another transaction, of another client."""

    __slots__ = ("_after_txn", "_before_txn", "_name")

    def __init__(self, event: AuditEvent) -> None:
        self._name, _, *before_txn, _, jti, key_id, _, _ = event  # the others are time, txn, ip and change
        self._before_txn = tuple(before_txn)
        self._after_txn = jti, key_id

    def at(self, time: float, txn: str, ip: str) -> AuditEvent:
        """The event of now."""
        return _new(AuditEvent, (self._name, time, *self._before_txn, txn, *self._after_txn, ip, None))


@dataclass(frozen=True, slots=True)
class _Precedent:
    """How a request was allowed, and what that depends on beside the API key, the match, and what is looked at each
    time.
    """

    principal: Principal
    hit: Callable[[], None] | None
    """Counts one more such request, if any limit does. Raises `RateLimitExceededError`."""
    login: _Recurrent
    allowed: _Recurrent
    in_force: InForce
    until: float
    """When the API key ends."""


class Precedents:
    """Allows a request like one before it: with the same API key, for the same, by what is still in force.

    It is counted and recorded like any other. Requests with bearer tokens, and those that are counted in a store that
    processes share, are decided about each time.
    """

    def __init__(
        self, security: FlowSecurity, limits: EndpointLimits | None, failed_logins: FailedLogins | None
    ) -> None:
        self._security = security
        self._limits = limits
        self._failed_logins = failed_logins
        self._remembered: dict[tuple[str, Match | None], _Precedent] = {}

    def cover(self, visit: Visit, given: Credentials) -> Principal | None:
        """The principal of a request that is allowed like one before it, which it is then; ``None`` for any other.

        Raises `RateLimitExceededError`, also for a client that has failed to log in too often.
        """
        security = self._security
        now, live = security.clock(), security.live
        if self._failed_logins is not None:
            self._failed_logins.check(visit.client, now)  # first: who is shut out learns nothing about any key
        key = security.api_keys.presented(given.api_key)
        known = None if key is None else self._remembered.get((key.id, visit.match))
        if known is None or live.in_force is not known.in_force or live.stale or now >= known.until:
            return None
        revocations = known.in_force.revocations
        if revocations is not None and revocations.of_principal(known.principal, now) is not None:
            return None
        txn, ip, audit = visit.txn, visit.client.address, security.audit
        visit.principal = principal = known.principal.in_transaction(txn)
        records = audit.records(_ALLOW)
        if records:
            audit.record(known.login.at(now, txn, ip))
        if known.hit is not None:
            known.hit()
        if records:
            audit.record(known.allowed.at(now, txn, ip))
        return principal

    def remember(self, visit: Visit, principal: Principal, in_force: InForce) -> None:
        """Remember a request that was allowed by what was in force, if others can be like it."""
        key_id, hit = principal.api_key_id, None
        if key_id is None:
            return
        if self._limits is not None:
            hit = self._limits.at_once(visit.endpoint, principal)
            if hit is None:
                return
        if len(self._remembered) >= _REMEMBERED:
            self._remembered.clear()
        self._remembered[key_id, visit.match] = _Precedent(
            principal,
            hit,
            _Recurrent(login_of(principal, 0.0, None)),
            _Recurrent(visit.event(EventName.AUTHZ_ALLOW, 0.0, _ALLOW, visit.grounds, in_force.policy.hash)),
            in_force,
            self._security.authorization.allows_until(principal),
        )
