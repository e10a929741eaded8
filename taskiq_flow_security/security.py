"""The composition root: one object made from the configuration, given to every adapter."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pydantic import SecretStr

from taskiq_flow_security import acting
from taskiq_flow_security.acting import Acting
from taskiq_flow_security.audit import AuditLogger
from taskiq_flow_security.config import TaskiqFlowConfig, timestamp
from taskiq_flow_security.core.events import AuditEvent, EventName, Outcome
from taskiq_flow_security.core.policy import AccessRequest, Decision, Policy, decide
from taskiq_flow_security.core.principal import Permission, Principal
from taskiq_flow_security.core.reasons import Reason
from taskiq_flow_security.credentials import (
    ApiKey,
    ApiKeys,
    BearerKey,
    BearerTokens,
    bearer_key_from_pem,
    bearer_keys_from_jwks,
)
from taskiq_flow_security.errors import AuthenticationError, ConfigurationError
from taskiq_flow_security.rate_limits import RateLimits
from taskiq_flow_security.tokens.keyring import Keyring, KeySpec, Use
from taskiq_flow_security.tokens.message_signature import MessageSigner
from taskiq_flow_security.tokens.principal_token import PRINCIPAL_LABEL, PrincipalToken, PrincipalTokens

_logger = logging.getLogger(__name__)

_MIN_API_KEY_LENGTH = 20


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
        self.audit = audit or AuditLogger()
        self.clock = clock
        self.enabled = config.security_enabled
        self.monitoring = config.enforcement == "monitor"
        self.policy = Policy.from_roles(config.pipeline_acls, config.task_acls)
        self.rate_limits = RateLimits(config.rate_limit_storage.get_secret_value())
        self._api_keys = _api_keys(config)
        self._lists_api_keys = "api_keys" in config.model_fields_set  # also if the last one has been removed
        self._bearer_tokens = _bearer_tokens(config)
        self._keyring = _keyring(config)
        self.principals = PrincipalTokens(
            self._keyring,
            config.principal_issuer,
            config.principal_audience,
            config.clock_leeway,
        )
        self.messages = MessageSigner(self._keyring, config.clock_leeway)
        if not self.enabled:
            _logger.warning("security_enabled is False: every task runs, whoever asks for it.")
            return
        if self.monitoring:
            _logger.warning('enforcement is "monitor": what should be refused is recorded and runs.')
        for setting in ("unsafe_jwt_without_exp", "unsafe_pickle_messages"):
            if getattr(config, setting):
                _logger.warning("%s is set: see the settings for what that lets in.", setting)

    async def authenticate(self, *, api_key: str | None = None, bearer: str | None = None) -> Principal:
        """The principal of an API key or a bearer token.

        Raises `AuthenticationError` for anything else than exactly one credential that is valid now.
        """
        txn = new_id()
        now = self.clock()
        try:
            principal = self._authenticate(api_key, bearer, txn, now)
        except AuthenticationError as error:
            self.audit.record(
                AuditEvent(
                    event=EventName.AUTHN_LOGIN_FAIL,
                    time=now,
                    outcome=Outcome.DENY,
                    reason=error.reason,
                    txn=txn,
                )
            )
            raise
        self.audit.record(
            AuditEvent(
                event=EventName.AUTHN_LOGIN_SUCCESS,
                time=now,
                outcome=Outcome.ALLOW,
                reason="api_key" if principal.api_key_id else "bearer",
                sub=principal.subject,
                roles=principal.roles,
                txn=txn,
                key_id=principal.api_key_id,
            )
        )
        return principal

    @contextmanager
    def acting_as(self, principal: Principal, *, pipeline: str | None = None) -> Iterator[Principal]:
        """Kick tasks in this principal's name inside the block.

        `pipeline` names the pipeline of tasks that belong to none by registration.
        """
        if not isinstance(principal, Principal):
            raise TypeError(f"acting_as needs a Principal, not {type(principal).__name__}")
        with acting.scope(Acting(principal, self._txn(principal), self, pipeline)):
            yield principal

    def labels_for(self, principal: Principal) -> dict[str, str]:
        """Labels for an explicit kick: ``task.kicker().with_labels(**security.labels_for(principal)).kiq(...)``.

        They hold a credential; it leaves the process only together with the message that is kicked with it.
        """
        if not self.enabled:
            return {}
        now = self.clock()
        token = self.principals.issue(principal, self._txn(principal), now, now + self.config.principal_ttl)
        return {PRINCIPAL_LABEL: token.text}

    def explain(
        self,
        principal: Principal,
        *,
        permission: Permission | str = Permission.EXECUTE,
        pipeline: str | None = None,
        task: str | None = None,
    ) -> Decision:
        """Whether the principal may do this now, and which rule says so. Never raises; records nothing."""
        if permission not in set(Permission):
            return Decision(False, Reason.INVALID_REQUEST, "unknown permission")
        try:
            return self.decide(principal, AccessRequest(Permission(permission), pipeline, task))
        except Exception as error:  # noqa: BLE001 (an explanation never raises; an error means deny)
            return Decision(False, Reason.INVALID_REQUEST, f"{type(error).__name__} while deciding")

    def decide(self, principal: Principal, request: AccessRequest) -> Decision:
        """Answer a request by this process's own configuration as it is now."""
        if not self.enabled:
            return Decision(True, Reason.SECURITY_DISABLED, "security_enabled")
        if principal.api_key_id is not None and self._lists_api_keys:
            key = self._api_keys.find(principal.api_key_id)
            if key is None:
                return Decision(False, Reason.API_KEY_REMOVED, "api_keys")
            if key.expired(self.clock()):
                return Decision(False, Reason.API_KEY_EXPIRED, "api_keys.expires_at")
            if (key.roles, key.permissions, key.pipelines) != (
                principal.roles,
                principal.permissions,
                principal.pipelines,
            ):
                # The key's rights have changed since the principal was issued: neither set may exceed the other.
                decision = decide(self.policy, key.principal(), request)
                if not decision.allowed:
                    return decision
        return decide(self.policy, principal, request)

    async def count_use(self, principal: Principal, request: AccessRequest) -> None:
        """Count an allowed request against its guard's rate limit.

        Raises `RateLimitExceededError`, or `BackendUnavailableError` where it cannot be counted.
        """
        limit = None if request.guard is None else request.guard.rate_limit
        if limit is not None and self.enabled and self.config.rate_limit_enabled:
            await self.rate_limits.hit(limit, "task", str(request.task), principal.subject)

    def token_for(self, actor: Acting, now: float, until: float) -> PrincipalToken:
        """The actor's principal as signed, valid `until` then if it is for this process to say.

        A principal that came with a message is passed on as it is. Raises `AuthenticationError` where that one is no
        longer valid, or where this process has no key to issue another.
        """
        if actor.token is not None and actor.received:
            return self.principals.verify(actor.token.text, now)
        if actor.token is None or actor.token.expires_at < until:
            # With this much to spare, the next kicks of the same scope find the token good enough.
            spare = self.config.principal_ttl - self.config.queue_ttl
            actor.token = self.principals.issue(actor.principal, actor.txn, now, until + spare)
        return actor.token

    def _authenticate(self, api_key: str | None, bearer: str | None, txn: str, now: float) -> Principal:
        if api_key is not None and bearer is not None:
            raise AuthenticationError(
                Reason.SEVERAL_CREDENTIALS,
                "Give one credential: an API key or a bearer token.",
            )
        if api_key is not None:
            return self._api_keys.authenticate(api_key, now).principal(txn)
        if bearer is not None:
            return self._bearer_tokens.authenticate(bearer, txn, now)
        raise AuthenticationError(Reason.NO_CREDENTIALS, "Give an API key or a bearer token.")

    def actor(self) -> Acting | None:
        """Who acts here in the eyes of this object, if anybody."""
        actor = acting.current()
        return actor if actor is not None and actor.owner is self else None

    def _txn(self, principal: Principal) -> str:
        if principal.txn is not None:
            return principal.txn
        actor = self.actor()
        return actor.txn if actor is not None else new_id()


def new_id() -> str:
    """A random identifier: 96 bits in hexadecimal."""
    return secrets.token_hex(12)


def _api_keys(config: TaskiqFlowConfig) -> ApiKeys:
    keys = [
        ApiKey.parse(
            key.get_secret_value(),
            subject=entry.subject,
            roles=[entry.role],
            permissions=entry.permissions,
            pipelines=entry.pipelines,
            expires_at=timestamp(entry.expires_at),
        )
        for key, entry in config.api_keys.items()
    ]
    if len({key.id for key in keys}) != len(keys):
        raise ConfigurationError("api_keys: a key is given twice, in plain text and hashed; keep one of them.")
    guessable = [key for key in config.api_keys if len(key.get_secret_value()) < _MIN_API_KEY_LENGTH]
    if guessable:
        _logger.warning(
            "%d API keys have fewer than %d characters and can be guessed; make them with secrets.token_urlsafe().",
            len(guessable),
            _MIN_API_KEY_LENGTH,
        )
    return ApiKeys(keys)


def _bearer_tokens(config: TaskiqFlowConfig) -> BearerTokens:
    keys = [bearer_key_from_pem(pem) for pem in config.jwt_public_keys]
    if config.jwt_jwks_file is not None:
        keys += bearer_keys_from_jwks(config.jwt_jwks_file)
    if config.jwt_secret is not None:
        keys.append(BearerKey("HS256", config.jwt_secret.get_secret_value()))
    if config.security_enabled and config.auth_provider == "jwt" and not keys:
        raise ConfigurationError(
            'auth_provider: "jwt" needs a key to verify tokens; set jwt_secret, jwt_public_keys or jwt_jwks_file.'
        )
    return BearerTokens(
        keys,
        audience=config.jwt_audience,
        issuer=config.jwt_issuer,
        require_exp=not config.unsafe_jwt_without_exp,
        leeway=config.clock_leeway,
    )


def _reveal(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()


def _keyring(config: TaskiqFlowConfig) -> Keyring:
    if config.signing_keys:
        keyring = Keyring.from_specs(
            KeySpec(
                kid=key.kid,
                alg=key.alg,
                uses=frozenset(Use(use) for use in key.uses if use != "verify"),
                secret=_reveal(key.secret),
                private_key=_reveal(key.private_key),
                public_key=key.public_key,
                verify_only="verify" in key.uses,
                not_before=timestamp(key.not_before),
                not_after=timestamp(key.not_after),
            )
            for key in config.signing_keys
        )
    elif config.jwt_secret is not None:
        keyring = Keyring.derived(config.jwt_secret.get_secret_value())
    else:
        keyring = Keyring([])
    missing = [use for use in Use if not keyring.has(use)]
    if config.security_enabled and missing:
        raise ConfigurationError(
            f"signing_keys: there is no key for {' and '.join(missing)}; set jwt_secret (at least 32 bytes, the same "
            "in every process), or give signing_keys for both, or set security_enabled to false."
        )
    return keyring
