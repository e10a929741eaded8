"""A policy as signed bytes, for a store that others can write to.

First a compact JWS (RFC 7515) of its own ``typ``, which names the environment and the digest of what follows; then,
after a line break, the document as JSON. It is signed as principals are (`Use.ISSUE`): who can say who somebody is can
say what they may do, and a worker with asymmetric keys can do neither.
"""

from __future__ import annotations

from hashlib import sha256

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import to_json

from taskiq_flow_security.core.reasons import Reason
from taskiq_flow_security.errors import AuthenticationError, ConfigurationError
from taskiq_flow_security.live_policy.document import PolicyDocument
from taskiq_flow_security.tokens import jws
from taskiq_flow_security.tokens.jws import Jws, JwsHeader
from taskiq_flow_security.tokens.keyring import Keyring
from taskiq_flow_security.tokens.keys import Key, Use

MAX_BYTES = 4 * 1024 * 1024
"""Of what is longer nothing is read."""

_TYP = "taskiq-policy+jwt"


class _Claims(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    aud: str
    iat: int
    sha256: str


class PolicySigner:
    """Signs and verifies policies. `audience` names the environment."""

    def __init__(self, keyring: Keyring, audience: str, leeway: float, lasting: float) -> None:
        """A policy is signed by a key that lasts for so many seconds more, if there is one, as principals are."""
        self._keyring = keyring
        self._audience = audience
        self._leeway = leeway
        self._lasting = lasting

    def sign(self, document: PolicyDocument, now: float) -> bytes:
        """The document, signed. A key that it revokes, or did once, does not sign it.

        Raises `AuthenticationError` where this process has no other key to issue with, and `ConfigurationError` for a
        document that is too long.
        """
        # Only what is said, so that a process that knows less settings can read what says nothing of others.
        body = document.model_dump_json(exclude_defaults=True).encode()
        if len(body) > MAX_BYTES - jws.MAX_BYTES:
            raise ConfigurationError(
                f"What is changed at run time may have {MAX_BYTES} bytes; put what stays into the settings."
            )
        key = self._key(document, now)
        claims = _Claims(aud=self._audience, iat=int(now), sha256=sha256(body).hexdigest())
        return jws.compact(key, _TYP, to_json(claims)) + b"\n" + body

    def read(self, signed: bytes, now: float) -> PolicyDocument:
        """The document that was signed, or `AuthenticationError`. Whoever signed must not be revoked by it."""
        text, _, body = signed.partition(b"\n")
        token, header = _parse(text)
        jws.verify(token, header.alg, token.payload, self._keyring.verifier(Use.ISSUE, header.kid, now, self._leeway))
        try:
            claims = _Claims.model_validate_json(jws.decode_segment(token.payload))
            if claims.aud != self._audience:
                raise AuthenticationError(Reason.WRONG_AUDIENCE, "The policy is for another environment.")
            if claims.sha256 != sha256(body).hexdigest():
                raise AuthenticationError(Reason.BAD_SIGNATURE, "The policy was altered after it was signed.")
            document = PolicyDocument.model_validate_json(body)
        except ValidationError:
            raise AuthenticationError(Reason.INVALID_CLAIMS, "The policy is not as it should be.") from None
        if header.kid in document.revoked.signing_key:
            raise AuthenticationError(Reason.REVOKED, "The key that signed the policy is revoked by it.")
        return document

    def signs_otherwise(self, signed: bytes, document: PolicyDocument, now: float) -> bool:
        """Whether this process would sign a document with another key than it was signed with, if with any."""
        try:
            return self._key(document, now).kid != _parse(signed.partition(b"\n")[0])[1].kid
        except AuthenticationError:
            return False

    def _key(self, document: PolicyDocument, now: float) -> Key:
        keyring = self._keyring.without([*document.revoked.signing_key, *document.revoked.reinstated])
        return keyring.signer(Use.ISSUE, now, now + self._lasting)


def _parse(text: bytes) -> tuple[Jws, JwsHeader]:
    token = jws.parse(text.decode("latin-1"))
    return token, jws.read_header(token, JwsHeader, _TYP)
