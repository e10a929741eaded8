"""Who somebody is, by the credential that they give."""

from __future__ import annotations

from collections.abc import Callable

from taskiq_flow_security.audit import AuditLogger
from taskiq_flow_security.authorization import Authorization
from taskiq_flow_security.core.events import AuditEvent, EventName, Outcome
from taskiq_flow_security.core.principal import Principal
from taskiq_flow_security.core.reasons import Reason
from taskiq_flow_security.credentials import ApiKeys, BearerTokens
from taskiq_flow_security.errors import AuthenticationError, BackendUnavailableError
from taskiq_flow_security.live_policy import LivePolicy

_ALLOW = Outcome.ALLOW


class Authentication:
    """Makes principals of API keys and bearer tokens, and records who has proved to be one."""

    def __init__(
        self,
        api_keys: ApiKeys,
        bearer_tokens: BearerTokens,
        live: LivePolicy,
        authorization: Authorization,
        audit: AuditLogger,
        clock: Callable[[], float],
    ) -> None:
        self._api_keys = api_keys
        self._bearer_tokens = bearer_tokens
        self._live = live
        self._authorization = authorization
        self._audit = audit
        self._clock = clock

    def identify(self, *, api_key: str | None = None, bearer: str | None = None, txn: str) -> Principal:
        """The principal of exactly one credential that is valid now. Nothing is recorded.

        Raises `AuthenticationError` for anything else, and `BackendUnavailableError` where the policy is stale (see the
        setting `policy_max_age`).
        """
        if api_key is not None and bearer is not None:
            raise AuthenticationError(
                Reason.SEVERAL_CREDENTIALS,
                "Give one credential: an API key or a bearer token.",
            )
        if self._live.stale and not self._live.caught_up():
            raise BackendUnavailableError("Nobody can tell now what has been revoked; try again later.")
        now = self._clock()
        if api_key is not None:
            principal = self._api_keys.authenticate(api_key, now).principal(txn)
        elif bearer is not None:
            principal = self._bearer_tokens.authenticate(bearer, txn, now)
        else:
            raise AuthenticationError(Reason.NO_CREDENTIALS, "Give an API key or a bearer token.")
        revocations = self._live.in_force.revocations
        if revocations is not None and revocations.of_principal(principal, now) is not None:
            reason = Reason.REVOKED if api_key is None else Reason.API_KEY_REVOKED
            raise AuthenticationError(reason, "The credential has been revoked; ask for a new one.")
        return self._authorization.with_roles_in_force(principal)

    def record_success(self, principal: Principal, ip: str | None = None) -> None:
        """Record that somebody has proved to be this principal. `ip` is the client's address."""
        if self._audit.records(_ALLOW):
            self._audit.record(login_of(principal, self._clock(), ip))

    def record_failure(self, reason: str, txn: str, ip: str | None = None) -> None:
        """Record that somebody has proved nothing."""
        self._audit.record(
            AuditEvent(
                event=EventName.AUTHN_LOGIN_FAIL,
                time=self._clock(),
                outcome=Outcome.DENY,
                reason=reason,
                txn=txn,
                ip=ip,
            )
        )


def login_of(principal: Principal, time: float, ip: str | None) -> AuditEvent:
    """What is recorded where somebody has proved to be this principal."""
    return AuditEvent(  # in the order of the fields: by their names, it would take twice as long
        EventName.AUTHN_LOGIN_SUCCESS,
        time,
        _ALLOW,
        "api_key" if principal.api_key_id else "bearer",
        None,  # rule
        None,  # policy_hash
        principal.subject,
        None,  # act
        principal.roles,
        None,  # pipeline
        None,  # permission
        None,  # task
        None,  # task_id
        principal.txn,
        None,  # jti
        principal.api_key_id,
        ip,
    )
