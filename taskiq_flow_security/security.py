"""The composition root: one object made from the configuration, given to every adapter."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar

from taskiq.abc.result_backend import AsyncResultBackend

from taskiq_flow_security import acting, from_config
from taskiq_flow_security.acting import Acting
from taskiq_flow_security.audit import AuditLogger
from taskiq_flow_security.config import TaskiqFlowConfig
from taskiq_flow_security.core.events import AuditEvent, EventName, Outcome
from taskiq_flow_security.core.policy import AccessRequest, Decision, Policy, decide
from taskiq_flow_security.core.principal import ANONYMOUS, SERVICE_PREFIX, Permission, Principal
from taskiq_flow_security.core.reasons import Reason
from taskiq_flow_security.credentials import ApiKey
from taskiq_flow_security.errors import AuthenticationError, BackendUnavailableError, ConfigurationError
from taskiq_flow_security.ids import new_id
from taskiq_flow_security.live_policy import Administration
from taskiq_flow_security.live_policy.in_force import InForce
from taskiq_flow_security.rate_limits import RateLimits
from taskiq_flow_security.results import ProtectedResults, ResultSeal
from taskiq_flow_security.tokens.keyring import Use
from taskiq_flow_security.tokens.message_signature import SCHEDULE_TYP, MessageSigner
from taskiq_flow_security.tokens.principal_token import PRINCIPAL_LABEL, PrincipalToken, PrincipalTokens
from taskiq_flow_security.tokens.result_signature import ResultSigner

_logger = logging.getLogger(__name__)

R = TypeVar("R")

_UNSAFE = ("unsafe_jwt_without_exp", "unsafe_pickle_messages", "unsafe_allow_replays", "unsafe_allow_unchecked")
"""Settings that are logged here; those of the HTTP edge are logged there."""


class FlowSecurity:
    """Knows who may do what, and proves and checks who asks.

    Make one for a process and give it to `SecurityMiddleware` and `HTTPSecurityMiddleware`. Raises
    `ConfigurationError` if the configuration cannot secure anything.
    """

    def __init__(
        self,
        config: TaskiqFlowConfig,
        *,
        audit: AuditLogger | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.config = config
        self.audit = audit or from_config.audit(config)
        self.clock = clock
        self.rate_limits: RateLimits | None = None
        if config.security_enabled and config.rate_limit_enabled:
            self.rate_limits = RateLimits(config.rate_limit_storage.get_secret_value())
        self.api_keys = from_config.api_keys(config)
        self._lists_api_keys = "api_keys" in config.model_fields_set  # also if the last one has been removed
        self._bearer_tokens = from_config.bearer_tokens(config)
        keyring = from_config.keyring(config, clock())
        self.principals = PrincipalTokens(
            keyring,
            config.principal_issuer,
            config.principal_audience,
            config.clock_leeway,
        )
        self._signed_with: dict[Use, str] = {}
        self.messages = MessageSigner(keyring, config.clock_leeway)
        self.schedules = MessageSigner(keyring, config.clock_leeway, SCHEDULE_TYP)
        self.results = ResultSeal(
            ResultSigner(keyring, config.principal_audience, config.clock_leeway),
            self.audit,
            clock,
            enabled=self.enabled,
            monitoring=self.monitoring,
        )
        self.runs, self.run_events = from_config.runs(config, keyring, clock)
        self.replays = from_config.replays(config, clock)
        self.live = from_config.live_policy(config, keyring, clock)
        self.administration = Administration(self.live, self.decide, self.audit, clock)
        if not self.enabled:
            _logger.warning("security_enabled is False: every task runs, whoever asks for it.")
            return
        if self.monitoring:
            _logger.warning('enforcement is "monitor": what should be refused is recorded and runs.')
        for setting in _UNSAFE:
            if getattr(config, setting):
                _logger.warning("%s is set: see the settings for what that lets in.", setting)

    @property
    def enabled(self) -> bool:
        """Whether anything is secured at all."""
        return self.config.security_enabled

    @property
    def monitoring(self) -> bool:
        """Whether what should be refused is only recorded."""
        return self.config.enforcement == "monitor"

    @property
    def policy(self) -> Policy:
        """The access control lists that are in force now."""
        return self.live.in_force.policy

    async def authenticate(
        self, *, api_key: str | None = None, bearer: str | None = None, ip: str | None = None
    ) -> Principal:
        """The principal of an API key or a bearer token. `ip` is the client's address, for the audit log.

        Raises `AuthenticationError` for anything else than exactly one credential that is valid now, and
        `BackendUnavailableError` where the policy is stale (see the setting `policy_max_age`). Where security is off,
        everybody is ``ANONYMOUS``, whatever they give, as at the HTTP edge.
        """
        if not self.enabled:
            return ANONYMOUS
        await self.live.catch_up()
        txn = new_id()
        try:
            principal = self.identify(api_key=api_key, bearer=bearer, txn=txn)
        except (AuthenticationError, BackendUnavailableError) as error:
            self.audit.record(
                AuditEvent(
                    event=EventName.AUTHN_LOGIN_FAIL,
                    time=self.clock(),
                    outcome=Outcome.DENY,
                    reason=error.reason,
                    txn=txn,
                    ip=ip,
                )
            )
            raise
        self.record_login(principal, ip)
        return principal

    def identify(self, *, api_key: str | None = None, bearer: str | None = None, txn: str) -> Principal:
        """As `authenticate`, but records nothing: that is left to the caller.

        Raises `BackendUnavailableError` where the policy is stale (see the setting `policy_max_age`).
        """
        if api_key is not None and bearer is not None:
            raise AuthenticationError(
                Reason.SEVERAL_CREDENTIALS,
                "Give one credential: an API key or a bearer token.",
            )
        if self.live.stale and not self.live.caught_up():
            raise BackendUnavailableError("Nobody can tell now what has been revoked; try again later.")
        now = self.clock()
        if api_key is not None:
            principal = self.api_keys.authenticate(api_key, now).principal(txn)
        elif bearer is not None:
            principal = self._bearer_tokens.authenticate(bearer, txn, now)
        else:
            raise AuthenticationError(Reason.NO_CREDENTIALS, "Give an API key or a bearer token.")
        in_force = self.live.in_force
        if in_force.revocations is not None and in_force.revocations.of_principal(principal, now) is not None:
            reason = Reason.REVOKED if api_key is None else Reason.API_KEY_REVOKED
            raise AuthenticationError(reason, "The credential has been revoked; ask for a new one.")
        return principal if not in_force.roles else _with_roles_in_force(principal, in_force)

    def record_login(self, principal: Principal, ip: str | None = None) -> None:
        """Record that somebody has proved to be this principal."""
        if self.audit.records(Outcome.ALLOW):
            self.audit.record(
                AuditEvent(
                    event=EventName.AUTHN_LOGIN_SUCCESS,
                    time=self.clock(),
                    outcome=Outcome.ALLOW,
                    reason="api_key" if principal.api_key_id else "bearer",
                    sub=principal.subject,
                    roles=principal.roles,
                    txn=principal.txn,
                    key_id=principal.api_key_id,
                    ip=ip,
                )
            )

    def service(self, name: str) -> Principal:
        """The principal of a service, for work that nobody has asked for: ``acting_as(security.service("nightly"))``.

        Its rights are in the setting `services`. Raises `ConfigurationError` if there is none of this name.
        """
        service = self.config.services.get(name)
        if service is None:
            raise ConfigurationError(f"services: there is no service {name!r}; name it there, with its roles.")
        principal = Principal(f"{SERVICE_PREFIX}{name}", service.roles, service.permissions, service.pipelines)
        return _with_roles_in_force(principal, self.live.in_force)

    @contextmanager
    def acting_as(self, principal: Principal, *, pipeline: str | None = None) -> Iterator[Principal]:
        """Kick tasks in this principal's name inside the block.

        `pipeline` names the pipeline of tasks that belong to none by registration.
        """
        if not isinstance(principal, Principal):
            raise TypeError(f"acting_as needs a Principal, not {type(principal).__name__}")
        narrowed = self._narrowed(principal)
        if narrowed is not None:
            actor = replace(narrowed, pipeline=pipeline or narrowed.pipeline)
        else:
            before = self.actor()
            actor = Acting(
                principal, self._txn(principal), self, pipeline, actors=() if before is None else before.actors
            )
        with acting.scope(actor):
            yield actor.principal

    def _narrowed(self, principal: Principal) -> Acting | None:
        """Who acts here, as far as this principal is it: one that came with a message, and stays what its issuer has
        signed.

        ``None`` for anybody else. What is left of its rights is less than both, or the same.
        """
        actor = self.actor()
        if actor is None or not actor.received or not actor.principal.same_identity(principal):
            return None
        return replace(actor, principal=actor.principal.within(principal.scope))

    def labels_for(self, principal: Principal) -> dict[str, str]:
        """Labels for an explicit kick: ``task.kicker().with_labels(**security.labels_for(principal)).kiq(...)``.

        They hold a credential; it leaves the process only together with the message that is kicked with it. For the
        principal that a task runs for, they are the one that it came with. Raises `AuthenticationError` where its login
        has ended, or where this process has no key to issue with.
        """
        if not self.enabled:
            return {}
        now = self.clock()
        narrowed = self._narrowed(principal)
        if narrowed is not None:
            principal = narrowed.principal
            if narrowed.token is not None and narrowed.token.principal == principal:
                return {PRINCIPAL_LABEL: self.token_for(narrowed, now, now).text}
        self._require_login(principal, now)
        return {PRINCIPAL_LABEL: self._issue(principal, self._txn(principal), now).text}

    def protect_results(self, backend: AsyncResultBackend[R]) -> ProtectedResults[R]:
        """Sign what this result backend stores, and believe nothing that it returns unsigned.

        One line, on workers and on whoever waits: ``broker.with_result_backend(security.protect_results(backend))``.
        `ProtectedResults` tells what that is worth. Raises `ConfigurationError` for a backend it cannot protect.
        """
        return ProtectedResults(backend, self.results)

    def explain(
        self,
        principal: Principal,
        *,
        permission: Permission | str = Permission.EXECUTE,
        pipeline: str | None = None,
        task: str | None = None,
    ) -> Decision:
        """Whether the policy lets the principal do this now, and which rule says so.

        Never raises, and records nothing. The guard that a task may have, and the pipeline that it belongs to by
        registration, are a broker's matter and not asked.
        """
        try:
            if permission not in set(Permission):
                return Decision(False, Reason.INVALID_REQUEST, "unknown permission")
            return self.decide(principal, AccessRequest(Permission(permission), pipeline, task))
        except Exception as error:  # noqa: BLE001 (an explanation never raises; an error means deny)
            return Decision(False, Reason.INVALID_REQUEST, f"{type(error).__name__} while deciding")

    def decide(self, principal: Principal, request: AccessRequest) -> Decision:
        """Answer a request by what is in force in this process now."""
        if not self.enabled:
            return Decision(True, Reason.SECURITY_DISABLED, "security_enabled")
        if self.live.stale and not self.live.caught_up():
            return Decision(False, Reason.POLICY_STALE, "policy_max_age")
        in_force, key = self.live.in_force, None
        if in_force.revocations is not None:
            rule = in_force.revocations.of_principal(principal, self.clock())
            if rule is not None:
                return Decision(False, Reason.REVOKED, rule)
        if principal.api_key_id is not None and self._lists_api_keys:
            key = self.api_keys.find(principal.api_key_id)
            if key is None or key.expires_at is not None:
                ended = _ended(key, self.clock())
                if ended is not None:
                    return ended
        decision = decide(in_force.policy, principal, request)
        if decision.allowed and (key is not None or in_force.roles):
            current = _with_roles_in_force(principal if key is None else key.principal(), in_force)
            if not current.same_rights(principal):
                # They have changed since the principal was issued: neither set may exceed the other.
                also = decide(in_force.policy, current, request)
                return decision if also.allowed else also
        return decision

    def login_ended(self, principal: Principal) -> Reason | None:
        """Why the login that a principal comes from is over, if it is."""
        now = self.clock()
        if principal.expires_at is not None and now >= principal.expires_at:
            return Reason.EXPIRED
        revocations = self.live.in_force.revocations
        if revocations is not None and revocations.of_principal(principal, now) is not None:
            return Reason.REVOKED
        if principal.api_key_id is None or not self._lists_api_keys:
            return None
        ended = _ended(self.api_keys.find(principal.api_key_id), now)
        return None if ended is None else ended.reason

    def verify_principal(self, text: object, now: float) -> PrincipalToken:
        """The principal of a token that is accepted now. Raises `AuthenticationError` for any other."""
        token = self.principals.verify(text, now)
        if self.revoked(token.jti, token.issued_at) is not None:
            raise AuthenticationError(Reason.REVOKED, "The principal has been revoked; authenticate again.")
        return token

    def revoked(self, jti: str, issued_at: float) -> str | None:
        """The rule by which a token is revoked that was issued here or elsewhere, if it is."""
        revocations = self.live.in_force.revocations
        return None if revocations is None else revocations.of_token(jti, issued_at, self.clock())

    def token_for(self, actor: Acting, now: float, until: float) -> PrincipalToken:
        """The actor's principal as signed; where this process issues it, valid `until` then.

        A principal that came with a message is passed on as it is. Raises `AuthenticationError` where that one is no
        longer valid, where the login has ended, or where this process has no key to issue with.
        """
        if actor.token is not None and actor.received:
            return self.verify_principal(actor.token.text, now)
        self._require_login(actor.principal, now)
        token = actor.token
        if (
            token is None
            or token.expires_at < until
            or self.revoked(token.jti, token.issued_at)
            or not self.principals.by_present_key(token, now, self._end_of(actor.principal, now))
        ):
            token = actor.token = self._issue(actor.principal, actor.txn, now)
        return token

    def _require_login(self, principal: Principal, now: float) -> None:
        for end in (principal.expires_at, principal.issued_until):
            if end is not None and now - self.config.clock_leeway >= end:
                raise AuthenticationError(Reason.EXPIRED, "The login has ended; authenticate again.")

    def _issue(self, principal: Principal, txn: str, now: float) -> PrincipalToken:
        token = self.principals.issue(principal, txn, now, self._end_of(principal, now))
        self.signed_with(Use.ISSUE, token.kid)
        return token

    def _end_of(self, principal: Principal, now: float) -> float:
        """Until when a principal is accepted that is issued now."""
        end = now + self.config.principal_ttl
        return end if principal.issued_until is None else min(end, principal.issued_until)

    def signed_with(self, use: Use, kid: str) -> None:
        """Note which key has signed, and record it where that is another one than before."""
        before = self._signed_with.get(use)
        if before == kid:
            return
        self._signed_with[use] = kid
        if before is not None:
            self.audit.record(
                AuditEvent(
                    event=EventName.KEY_ROTATED,
                    time=self.clock(),
                    outcome=Outcome.ALLOW,
                    rule=use,
                    key_id=kid,
                    change=f"{before} -> {kid}",
                )
            )

    def actor(self) -> Acting | None:
        """Who acts here in the eyes of this object, if anybody."""
        actor = acting.current()
        return actor if actor is not None and actor.owner is self else None

    def _txn(self, principal: Principal) -> str:
        if principal.txn is not None:
            return principal.txn
        actor = self.actor()
        return actor.txn if actor is not None else new_id()


def _ended(key: ApiKey | None, now: float) -> Decision | None:
    """Why nobody acts with an API key any more, if so: the configuration does not name it, or its time is over."""
    if key is None:
        return Decision(False, Reason.API_KEY_REMOVED, "api_keys")
    if key.expired(now):
        return Decision(False, Reason.API_KEY_EXPIRED, "api_keys.expires_at")
    return None


def _with_roles_in_force(principal: Principal, in_force: InForce) -> Principal:
    """A principal with the roles that its subject has been given at run time, if it has."""
    roles = in_force.roles.get(principal.subject)
    return principal if roles is None else principal.with_roles(roles)
