"""Principals as signed: issued here, or passed on as they came."""

from __future__ import annotations

from taskiq_flow_security.acting import Acting
from taskiq_flow_security.audit import KeyRotations
from taskiq_flow_security.authorization import Authorization
from taskiq_flow_security.config import TaskiqFlowConfig
from taskiq_flow_security.core.principal import Principal
from taskiq_flow_security.core.reasons import Reason
from taskiq_flow_security.errors import AuthenticationError
from taskiq_flow_security.tokens.keys import Use
from taskiq_flow_security.tokens.principal_token import PrincipalToken, PrincipalTokens


class Issuer:
    """Issues principals, and accepts those that were issued elsewhere, for as long as nobody has revoked them."""

    def __init__(
        self,
        config: TaskiqFlowConfig,
        principals: PrincipalTokens,
        authorization: Authorization,
        rotations: KeyRotations,
    ) -> None:
        self._principal_ttl = config.principal_ttl
        self._principals = principals
        self._authorization = authorization
        self._rotations = rotations

    def verify(self, text: object, now: float) -> PrincipalToken:
        """The principal of a token that is accepted now. Raises `AuthenticationError` for any other."""
        token = self._principals.verify(text, now)
        if self._authorization.revoked(token.jti, token.issued_at) is not None:
            raise AuthenticationError(Reason.REVOKED, "The principal has been revoked; authenticate again.")
        return token

    def issue(self, principal: Principal, txn: str, now: float) -> PrincipalToken:
        """Sign a principal.

        Raises `AuthenticationError` where its login has ended, or where this process has no key to issue with.
        """
        if self._authorization.is_over(principal, now):
            raise AuthenticationError(Reason.EXPIRED, "The login has ended; authenticate again.")
        until = now + self._principal_ttl
        if principal.issued_until is not None:
            until = min(until, principal.issued_until)
        token = self._principals.issue(principal, txn, now, until)
        self._rotations.signed_with(Use.ISSUE, token.kid)
        return token

    def keeps(self, token: PrincipalToken) -> bool:
        """Whether `token_for` gives this one again and again while it is valid, until the policy says otherwise."""
        return self._principals.by_lasting_key(token)

    def token_for(self, actor: Acting, now: float, until: float) -> PrincipalToken:
        """The actor's principal as signed; where this process issues it, valid `until` then.

        A principal that came with a message is passed on as it is. Raises as `verify` or `issue`.
        """
        token = actor.token
        if token is not None and actor.received:
            return self.verify(token.text, now)
        if (
            token is None
            or token.expires_at < until
            or self._authorization.is_over(actor.principal, now)
            or self._authorization.revoked(token.jti, token.issued_at) is not None
            or not self._principals.by_present_key(token, now)
        ):
            token = actor.token = self.issue(actor.principal, actor.txn, now)
        return token
