"""The label ``taskiq_flow_principal``: a principal as a JWT (RFC 7519), issued once and verified once."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import to_json

from taskiq_flow_security.core.principal import UNRESTRICTED, Permission, Principal
from taskiq_flow_security.core.reasons import Reason
from taskiq_flow_security.errors import AuthenticationError
from taskiq_flow_security.ids import new_id
from taskiq_flow_security.tokens import jws
from taskiq_flow_security.tokens.claims import LoginClaim, Moment, ScheduleClaim, ScopeClaim
from taskiq_flow_security.tokens.jws import JwsHeader
from taskiq_flow_security.tokens.keyring import Keyring
from taskiq_flow_security.tokens.keys import Use

PRINCIPAL_LABEL = "taskiq_flow_principal"

TYP = "taskiq-principal+jwt"
_CACHE_SIZE = 4096
_ISSUE = Use.ISSUE


@dataclass(frozen=True, slots=True)
class PrincipalToken:
    """A principal with the text that proves it."""

    text: str
    principal: Principal
    txn: str
    jti: str
    kid: str
    issued_at: float
    not_before: float
    expires_at: float
    schedule: ScheduleClaim | None = None
    """The schedule that it was issued for, if it was: for what that sends, and what comes of it."""

    def __repr__(self) -> str:  # the text is a credential
        return f"PrincipalToken(subject={self.principal.subject!r}, jti={self.jti!r}, kid={self.kid!r})"


class _Claims(BaseModel):
    """What a token says, of exactly these types."""

    model_config = ConfigDict(strict=True, frozen=True)

    iss: object
    aud: object
    sub: str
    roles: list[str]
    permissions: list[Permission] | None = None
    pipelines: list[str]
    api_key_id: str | None = None
    scope: ScopeClaim | None = None
    login: LoginClaim | None = None
    schedule: ScheduleClaim | None = None
    iat: Moment
    nbf: int
    exp: int
    jti: str
    txn: str


class PrincipalTokens:
    """Issues and verifies principals with the keys for `Use.ISSUE`.

    A verified token is kept by its exact text: only its times and its key are looked at again.
    """

    def __init__(self, keyring: Keyring, issuer: str, audience: str, leeway: float) -> None:
        self._keyring = keyring
        self._issuer = issuer
        self._audience = audience
        self._leeway = leeway
        self._verified: dict[str, PrincipalToken] = {}
        self._keeping = threading.Lock()

    def issue(
        self, principal: Principal, txn: str, now: float, expires_at: float, *, schedule: ScheduleClaim | None = None
    ) -> PrincipalToken:
        """Sign a principal, for this schedule only if one is given.

        Raises `AuthenticationError` where this process has no key to issue with.
        """
        key = self._keyring.signer(_ISSUE, now, expires_at)
        claims = _Claims(
            iss=self._issuer,
            aud=self._audience,
            sub=principal.subject,
            roles=sorted(principal.roles),
            permissions=None if principal.granted_permissions is None else sorted(principal.granted_permissions),
            pipelines=sorted(principal.granted_pipelines),
            api_key_id=principal.api_key_id,
            scope=ScopeClaim.of(principal.scope),
            login=LoginClaim.of(principal),
            schedule=schedule,
            iat=now,
            nbf=int(now),
            exp=int(expires_at),
            jti=new_id(),
            txn=txn,
        )
        text = jws.compact(key, TYP, to_json(claims, exclude_none=True)).decode()
        if len(text) > jws.MAX_BYTES:
            raise AuthenticationError(
                Reason.OVERSIZED,
                f"The principal does not fit into {jws.MAX_BYTES} bytes; give it fewer roles and pipelines.",
            )
        token = self._read(text, key.kid, claims)  # what the token says, whatever it was made from
        self._keep(token)
        return token

    def by_present_key(self, token: PrincipalToken, now: float) -> bool:
        """Whether the key of a token is the one that `issue` would use for it now. Raises as that does."""
        return self._keyring.signer(_ISSUE, now, token.expires_at).kid == token.kid

    def by_lasting_key(self, token: PrincipalToken) -> bool:
        """Whether the key of a token is the one to issue with, whenever."""
        lasting = self._keyring.lasting.get(_ISSUE)
        return lasting is not None and lasting.kid == token.kid

    def verify(self, text: object, now: float) -> PrincipalToken:
        """The principal of a token that this process accepts now, or `AuthenticationError`."""
        token = self.read(text, now)
        self.check_times(token, now)
        return token

    def check_times(self, token: PrincipalToken, now: float) -> None:
        """Raise `AuthenticationError` if a token that was read is not valid now."""
        jws.check_times(token.not_before, token.expires_at, now, self._leeway)

    def read(self, text: object, now: float) -> PrincipalToken:
        """As `verify`, but whenever the token is valid: `check_times` has to follow."""
        token = self._verified.get(text) if isinstance(text, str) else None
        if token is None:
            return self._verify(text, now)
        self._keyring.verifier(_ISSUE, token.kid, now, self._leeway)
        return token

    def _verify(self, text: object, now: float) -> PrincipalToken:
        parsed = jws.parse(text)
        header = jws.read_header(parsed, JwsHeader, TYP)
        key = self._keyring.verifier(_ISSUE, header.kid, now, self._leeway)
        jws.verify(parsed, header.alg, parsed.payload, key)
        try:
            claims = _Claims.model_validate_json(jws.decode_segment(parsed.payload))
            token = self._read(str(text), key.kid, claims)
        except (ValidationError, TypeError, ValueError):
            raise AuthenticationError(
                Reason.INVALID_CLAIMS,
                "The principal's claims are not as they should be.",
            ) from None
        self._keep(token)
        return token

    def _read(self, text: str, kid: str, claims: _Claims) -> PrincipalToken:
        if claims.iss != self._issuer:
            raise AuthenticationError(Reason.WRONG_ISSUER, "The principal is from another issuer.")
        if claims.aud != self._audience:
            raise AuthenticationError(Reason.WRONG_AUDIENCE, "The principal is for another environment.")
        principal = Principal(
            claims.sub,
            claims.roles,
            claims.permissions,
            claims.pipelines,
            api_key_id=claims.api_key_id,
            scope=UNRESTRICTED if claims.scope is None else claims.scope.scope(),
            txn=claims.txn,
            token_id=None if claims.login is None else claims.login.jti,
            token_issued_at=None if claims.login is None else claims.login.iat,
            issued_until=claims.exp,
        )
        return PrincipalToken(
            text, principal, claims.txn, claims.jti, kid, claims.iat, claims.nbf, claims.exp, claims.schedule
        )

    def _keep(self, token: PrincipalToken) -> None:
        with self._keeping:
            if len(self._verified) >= _CACHE_SIZE:
                del self._verified[next(iter(self._verified))]
            self._verified[token.text] = token
