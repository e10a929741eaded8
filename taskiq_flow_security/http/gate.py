"""What every request and every handshake goes through: who asks, for what, how often, and what is recorded of it."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from taskiq_flow_security import acting
from taskiq_flow_security.acting import Acting
from taskiq_flow_security.core.events import EventName, Outcome
from taskiq_flow_security.core.principal import ANONYMOUS, Principal
from taskiq_flow_security.core.reasons import Reason
from taskiq_flow_security.denial import denial_of
from taskiq_flow_security.errors import (
    AccessDeniedError,
    AuthenticationError,
    BackendUnavailableError,
    FlowSecurityError,
    RateLimitExceededError,
)
from taskiq_flow_security.http import credentials
from taskiq_flow_security.http.asgi import Scope, route_path, select_headers
from taskiq_flow_security.http.clients import FORWARDED_FOR, FORWARDED_PROTO, UNKNOWN, Client, TrustedProxies
from taskiq_flow_security.http.credentials import Credentials, find_credentials
from taskiq_flow_security.http.limits import EndpointLimits, FailedLogins
from taskiq_flow_security.http.precedents import Precedents
from taskiq_flow_security.http.rules import WEBSOCKET, Match, Rule, RuleTable, is_plain
from taskiq_flow_security.http.visit import Visit
from taskiq_flow_security.ids import new_id
from taskiq_flow_security.security import FlowSecurity

_logger = logging.getLogger(__name__)

_UNREADABLE = Client(UNKNOWN, secure=False)
"""Stands for the client of a connection that could not be read."""

_ALLOWED = EventName.AUTHZ_ALLOW, Outcome.ALLOW

_OF_REQUESTS = frozenset({credentials.API_KEY, credentials.AUTHORIZATION, FORWARDED_FOR, FORWARDED_PROTO})
_OF_HANDSHAKES = _OF_REQUESTS | {b"host", b"origin"}
"""The headers that decisions are made on."""


_LONGEST_METHOD, _LONGEST_PATH, _MOST_UNKNOWN = 20, 200, 100
"""Of what no rule knows, how much is logged: characters, and how many."""


class Gate:
    """Makes the decisions of the edge. Raises `ConfigurationError` if rules and settings do not fit together."""

    def __init__(self, security: FlowSecurity, rules: Iterable[Rule]) -> None:
        self.security = security
        self._rules = RuleTable(tuple(rules))
        config = security.config
        self._https_required = config.require_https
        self._proxies = TrustedProxies(config.trusted_proxies)
        self._limits: EndpointLimits | None = None
        self._failed_logins: FailedLogins | None = None
        if security.rate_limits is not None:
            self._limits = EndpointLimits(
                config, security.rate_limits, security.api_keys, security.live, self._rules.endpoints
            )
            self._failed_logins = FailedLogins(config, security.rate_limits)
        self._unknown: set[tuple[str, str]] = set()
        """Methods and paths that no rule knows and that were told of."""
        self._precedents = Precedents(security, self._limits, self._failed_logins)
        if not config.websocket_require_auth:
            _logger.warning("websocket_require_auth is False: anybody may connect and subscribe to every pipeline.")

    def visit(self, scope: Scope) -> Visit:
        """Read from a connection's scope what decisions are made on. Never raises; `require_usable` will."""
        txn = new_id()
        try:
            names = _OF_HANDSHAKES if scope["type"] == "websocket" else _OF_REQUESTS
            headers = select_headers(scope["headers"], names)
            client = self._proxies.client(scope, headers)
            return Visit(client, headers, scope.get("query_string", b""), self._find(scope), txn)
        except Exception as error:  # noqa: BLE001 (whatever it is, it is a reason to refuse, which is recorded)
            return Visit(_UNREADABLE, {}, b"", None, txn, error=error)

    def entered(self, scope: Scope, visit: Visit, principal: Principal) -> acting.scope:
        """Have the application know the principal, and act in its name inside the block that this is for.

        Nobody acts where everybody may come, unless nothing is refused anyway: then it is ``ANONYMOUS``.
        """
        scope.setdefault("state", {})["principal"] = principal  # of this request only (ASGI 3.0, "Lifespan State")
        security = self.security
        if principal is ANONYMOUS and security.enabled and not security.monitoring:
            return acting.scope(None)
        return acting.scope(Acting(principal, visit.txn, security))

    def require_usable(self, visit: Visit) -> None:
        """Raise what kept a connection from being read, and `AccessDeniedError` for a plain one where the settings want
        a secure one. The first of all checks.
        """
        if visit.error is not None:
            raise visit.error
        if self._https_required and not visit.client.secure:
            raise AccessDeniedError(Reason.HTTPS_REQUIRED, "Use HTTPS or WSS; this connection is not encrypted.")

    async def credentials(self, visit: Visit) -> Credentials | None:
        """The credential that came with a visit, if there is one. Counts the visit by its client if it is unusable.

        Raises as `find_credentials` and `RateLimits.hit`.
        """
        try:
            return find_credentials(visit.headers, visit.query)
        except AuthenticationError:
            await self.count(visit)
            raise

    async def identify(self, visit: Visit, given: Credentials) -> Principal:
        """The principal of these credentials, in whose name the visit is made from here on.

        Raises `AuthenticationError`, or `RateLimitExceededError` for a client that has failed too often.
        """
        security, failed_logins = self.security, self._failed_logins
        if failed_logins is not None:
            failed_logins.check(visit.client, security.clock())
        await security.live.catch_up()
        try:
            principal = security.authentication.identify(api_key=given.api_key, bearer=given.bearer, txn=visit.txn)
        except AuthenticationError as failure:
            if failed_logins is not None:
                try:
                    await failed_logins.count(visit.client, security.clock())
                except BackendUnavailableError as error:
                    if not security.config.unsafe_allow_uncounted:  # or it is recorded where it is refused
                        self._record_refusal(visit, failure)
                    self._uncounted(visit, error)
            raise
        security.authentication.record_success(principal, visit.client.address)
        visit.principal = principal
        return principal

    async def admit(self, visit: Visit) -> Principal:
        """Decide about a request: who it is that may make it. Raises a `FlowSecurityError` for nobody."""
        self.require_usable(visit)
        if visit.match is not None and visit.match.rule.public:
            await self.count(visit)
            return self.welcome(visit)
        given = await self.credentials(visit)
        if given is None:
            await self.count(visit)
            raise AuthenticationError(
                Reason.NO_CREDENTIALS, "Send an API key in X-API-Key, or a token as Authorization: Bearer <token>."
            )
        principal = self._precedents.cover(visit, given)
        if principal is None:
            in_force = self.security.live.in_force
            principal = await self.identify(visit, given)
            await self.count(visit)
            self.authorize(visit, principal)
            self._precedents.remember(visit, principal, in_force)
        return principal

    def welcome(self, visit: Visit) -> Principal:
        """Let anybody make this visit."""
        self._record(visit, *_ALLOWED, Reason.PUBLIC)
        return ANONYMOUS

    def authorize(self, visit: Visit, principal: Principal) -> None:
        """Decide whether the principal may make this visit. Raises `AccessDeniedError`."""
        request = self.require_rule(visit).request
        if request is not None:
            visit.decision = decision = self.security.authorization.decide(principal, request)
            if not decision.allowed:
                raise AccessDeniedError(
                    decision.reason, f"{principal.subject} may not {request.permission} {request.resource}."
                )
        self._record(visit, *_ALLOWED, visit.grounds)

    def require_rule(self, visit: Visit) -> Match:
        """The rule of a visit. Raises `AccessDeniedError` where no rule knows the path."""
        if visit.match is None:
            raise AccessDeniedError(Reason.NO_RULE, "No rule lets anybody use this path with this method.")
        return visit.match

    def refuse(self, visit: Visit, error: Exception) -> FlowSecurityError | None:
        """Record a refusal. The error to answer with; ``None`` where refusals are only monitored."""
        error = denial_of(error, _logger, "A request")
        try:
            self._record_refusal(visit, error)
        except Exception:
            _logger.exception("A refusal cannot be recorded.")  # and stays one
        return None if self.security.monitoring else error

    def _find(self, scope: Scope) -> Match | None:
        if scope["type"] == "websocket":
            method = WEBSOCKET
        elif (method := scope["method"]) == WEBSOCKET:
            return None  # a request may have any word for a method
        if not is_plain(scope.get("raw_path") or b""):
            return None
        path = route_path(scope)
        match = self._rules.find(method, path)
        if match is None:
            self._tell_unknown(method, path)
        return match

    def _tell_unknown(self, method: str, path: str) -> None:
        """Log what no rule knows, each once, and not too many of them: any client can think of more."""
        unknown = method[:_LONGEST_METHOD], path[:_LONGEST_PATH]
        if unknown in self._unknown or len(self._unknown) >= _MOST_UNKNOWN or not self.security.enabled:
            return
        self._unknown.add(unknown)
        if self.security.monitoring:
            _logger.warning("No rule knows %a %a, which would be denied; give it a Rule.", *unknown)
        else:
            _logger.info("No rule knows %a %a, which is denied; if it is to be served, give it a Rule.", *unknown)

    async def count(self, visit: Visit) -> None:
        """Count a visit, by its principal or else by its client. Raises as `RateLimits.hit`."""
        if self._limits is None:
            return
        try:
            await self._limits.count(visit.endpoint, visit.principal, visit.client)
        except BackendUnavailableError as error:
            self._uncounted(visit, error)

    def _uncounted(self, visit: Visit, error: BackendUnavailableError) -> None:
        """Raise the error, unless the settings let pass what cannot be counted."""
        if not self.security.config.unsafe_allow_uncounted:
            raise error
        self._record(visit, EventName.AUTHZ_SHADOW_FAIL, Outcome.DENY, error.reason)

    def _record_refusal(self, visit: Visit, error: FlowSecurityError) -> None:
        event = EventName.AUTHZ_SHADOW_FAIL if self.security.monitoring else _refusal(error)
        self._record(visit, event, Outcome.DENY, error.reason)

    def _record(self, visit: Visit, event: EventName, outcome: Outcome, reason: str) -> None:
        security = self.security
        if security.audit.records(outcome):
            policy = security.live.in_force.policy
            security.audit.record(visit.event(event, security.clock(), outcome, reason, policy.hash))


def _refusal(error: FlowSecurityError) -> EventName:
    if isinstance(error, AuthenticationError):
        return EventName.AUTHN_LOGIN_FAIL
    if isinstance(error, RateLimitExceededError):
        return EventName.EXCESS_RATE_LIMIT_EXCEEDED
    return EventName.AUTHZ_FAIL
