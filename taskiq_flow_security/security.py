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
from taskiq_flow_security.audit import AuditLogger, KeyRotations
from taskiq_flow_security.authentication import Authentication
from taskiq_flow_security.authorization import Authorization
from taskiq_flow_security.config import TaskiqFlowConfig
from taskiq_flow_security.core.policy import AccessRequest, Decision, Policy
from taskiq_flow_security.core.principal import ANONYMOUS, SERVICE_PREFIX, Permission, Principal
from taskiq_flow_security.core.reasons import Reason
from taskiq_flow_security.errors import AuthenticationError, BackendUnavailableError, ConfigurationError
from taskiq_flow_security.ids import new_id
from taskiq_flow_security.issuer import Issuer
from taskiq_flow_security.live_policy import Administration
from taskiq_flow_security.rate_limits import RateLimits
from taskiq_flow_security.results import ProtectedResults, ResultSeal
from taskiq_flow_security.tokens.message_signature import SCHEDULE_TYP, MessageSigner
from taskiq_flow_security.tokens.principal_token import PRINCIPAL_LABEL, PrincipalTokens
from taskiq_flow_security.tokens.result_signature import ResultSigner

_logger = logging.getLogger(__name__)

R = TypeVar("R")

_UNSAFE = tuple(name for name in TaskiqFlowConfig.model_fields if name.startswith("unsafe_"))
"""Settings that let something in, and are logged wherever they are set."""


class FlowSecurity:
    """Knows who may do what, and proves and checks who asks.

    Make one for a process and give it to `SecurityMiddleware` and `HTTPSecurityMiddleware`. `audit` records decisions
    in place of what the settings say; `clock` tells the seconds since the epoch in place of `time.time`. Raises
    `ConfigurationError` if the configuration cannot secure anything.
    """

    def __init__(
        self,
        config: TaskiqFlowConfig,
        *,
        audit: AuditLogger | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        if not isinstance(config, TaskiqFlowConfig):
            raise TypeError(f"FlowSecurity needs a TaskiqFlowConfig, not {type(config).__name__}")
        if not isinstance(audit, AuditLogger | None):
            raise TypeError(f"FlowSecurity needs an AuditLogger to record with, not {type(audit).__name__}")
        self.config = config
        self.audit = from_config.audit(config, audit)
        clock = self.clock = clock or _time
        self.rate_limits: RateLimits | None = None
        if config.security_enabled and config.rate_limit_enabled:
            self.rate_limits = RateLimits(config.rate_limit_storage.get_secret_value())
        self.api_keys = from_config.api_keys(config)
        keyring = from_config.keyring(config, clock())
        self.principals = PrincipalTokens(
            keyring,
            config.principal_issuer,
            config.principal_audience,
            config.clock_leeway,
        )
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
        self.authorization = Authorization(config, self.api_keys, self.live, clock)
        self.authentication = Authentication(
            self.api_keys, from_config.bearer_tokens(config), self.live, self.authorization, self.audit, clock
        )
        self.key_rotations = KeyRotations(self.audit, clock)
        self.issuer = Issuer(config, self.principals, self.authorization, self.key_rotations)
        self.administration = Administration(
            self.live, self.authorization.decide, self.authorization.login_ended, self.api_keys, self.audit, clock
        )
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
            principal = self.authentication.identify(api_key=api_key, bearer=bearer, txn=txn)
        except (AuthenticationError, BackendUnavailableError) as error:
            self.authentication.record_failure(error.reason, txn, ip)
            raise
        self.authentication.record_success(principal, ip)
        return principal

    def service(self, name: str) -> Principal:
        """The principal of a service, for work that nobody has asked for: ``acting_as(security.service("nightly"))``.

        Its rights are in the setting `services`. Raises `ConfigurationError` if there is none of this name.
        """
        service = self.config.services.get(name)
        if service is None:
            raise ConfigurationError(f"services: there is no service {name!r}; name it there, with its roles.")
        principal = Principal(f"{SERVICE_PREFIX}{name}", service.roles, service.permissions, service.pipelines)
        return self.authorization.with_roles_in_force(principal)

    @contextmanager
    def acting_as(self, principal: Principal, *, pipeline: str | None = None) -> Iterator[Principal]:
        """Kick tasks in this principal's name inside the block.

        `pipeline` names the pipeline of tasks that belong to none by registration. Without it, it stays what it is for
        whoever acts here already.
        """
        _require_principal(principal)
        narrowed = self._narrowed(principal)
        if narrowed is not None:
            actor = replace(narrowed, pipeline=pipeline or narrowed.pipeline, outer=acting.current())
        else:
            before = self.actor()
            if pipeline is None and before is not None and before.principal.same_identity(principal):
                pipeline = before.pipeline
            actor = Acting(
                principal,
                self._txn(principal),
                self,
                pipeline,
                actors=() if before is None else before.actors,
                outer=acting.current(),
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
        _require_principal(principal)
        if not self.enabled:
            return {}
        now = self.clock()
        narrowed = self._narrowed(principal)
        if narrowed is not None:
            principal = narrowed.principal
            if narrowed.token is not None and narrowed.token.principal == principal:
                return {PRINCIPAL_LABEL: self.issuer.token_for(narrowed, now, now).text}
        return {PRINCIPAL_LABEL: self.issuer.issue(principal, self._txn(principal), now).text}

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
            if self.enabled and self.authorization.is_over(principal, self.clock()):
                return Decision(False, Reason.EXPIRED, "the login has ended")
            return self.authorization.decide(principal, AccessRequest(Permission(permission), pipeline, task))
        except Exception as error:  # noqa: BLE001 (an explanation never raises; an error means deny)
            return Decision(False, Reason.INVALID_REQUEST, f"{type(error).__name__} while deciding")

    def actor(self) -> Acting | None:
        """Who acts here in the eyes of this object, if anybody."""
        actor = acting.current()
        while actor is not None and actor.owner is not self:
            actor = actor.outer
        return actor

    def _txn(self, principal: Principal) -> str:
        if principal.txn is not None:
            return principal.txn
        actor = self.actor()
        return actor.txn if actor is not None else new_id()


def _time() -> float:
    return time.time()  # looked up each time, so that tests can put another clock in its place


def _require_principal(principal: Principal) -> None:
    if not isinstance(principal, Principal):
        raise TypeError(f"a Principal is needed, not {type(principal).__name__}")
