"""The signature of a stored result or progress: a JWT (RFC 7519) that names its task and the digest of its bytes.

The digest is signed rather than the bytes, so that a large result is read once and never copied.
"""

from __future__ import annotations

from hashlib import sha256
from typing import NamedTuple, TypedDict

from pydantic_core import from_json, to_json

from taskiq_flow_security.core.reasons import Reason
from taskiq_flow_security.core.string_enum import StringEnum
from taskiq_flow_security.errors import AuthenticationError, UnsignableMessageError
from taskiq_flow_security.tokens import jws
from taskiq_flow_security.tokens.keyring import Keyring
from taskiq_flow_security.tokens.keys import Key, Use


class Purpose(StringEnum):
    """What a task stores."""

    RESULT = "result"
    PROGRESS = "progress"


_TYP = {purpose: f"taskiq-{purpose}+jwt" for purpose in Purpose}
"""Asymmetric keys sign messages too; the type keeps all three apart (RFC 8725 section 3.11)."""


class Binding(NamedTuple):
    """What stored bytes are, and whose."""

    purpose: Purpose
    task_id: str


class _Claims(TypedDict):
    """What a signature says, in this order."""

    aud: str
    task_id: str
    sha256: str


class ResultSigner:
    """Signs and verifies what tasks store, with the keys for `Use.RESULT`."""

    def __init__(self, keyring: Keyring, audience: str, leeway: float) -> None:
        self._keyring = keyring
        self._audience = audience
        self._leeway = leeway
        self._headers: dict[tuple[str, Purpose], bytes] = {}

    def can_sign(self, now: float) -> bool:
        """Whether this process has a key to sign results with."""
        try:
            self._keyring.signer(Use.RESULT, now)
        except AuthenticationError:
            return False
        return True

    def sign(self, data: bytes, binding: Binding, now: float) -> bytes:
        """The signature that makes these bytes the task's result or progress.

        Raises `AuthenticationError` where this process has no key to sign with, and `UnsignableMessageError` for a
        task id that fits into no token.
        """
        key = self._keyring.signer(Use.RESULT, now)
        protected = self._header(key, binding.purpose)
        try:
            payload = _payload(self._claims(data, binding))
        except ValueError:  # a lone surrogate
            raise _unsignable() from None
        token = b".".join((protected, payload, jws.sign(key, protected, payload)))
        if len(token) > jws.MAX_BYTES:
            raise _unsignable()
        return token

    def verify(self, token: str, data: bytes | memoryview, binding: Binding, now: float) -> None:
        """Check that these bytes were signed as the task's result or progress, or raise `AuthenticationError`.

        How old they are does not matter, only that their key is still in use.
        """
        parsed = jws.parse(token)
        header = jws.read_header(parsed, jws.JwsHeader, _TYP[binding.purpose])
        key = self._keyring.verifier(Use.RESULT, header.kid, now, self._leeway)
        jws.verify(parsed, header.alg, parsed.payload, key)
        expected = self._claims(data, binding)
        if parsed.payload != _payload(expected):
            raise _difference(parsed.payload, expected)

    def _claims(self, data: bytes | memoryview, binding: Binding) -> _Claims:
        return {"aud": self._audience, "task_id": binding.task_id, "sha256": sha256(data).hexdigest()}

    def _header(self, key: Key, purpose: Purpose) -> bytes:
        header = self._headers.get((key.kid, purpose))
        if header is None:
            header = jws.encode_segment(to_json({"alg": key.alg, "kid": key.kid, "typ": _TYP[purpose]}))
            self._headers[key.kid, purpose] = header
        return header


def _payload(claims: _Claims) -> bytes:
    return jws.encode_segment(to_json(claims))


def _difference(payload: bytes, expected: _Claims) -> AuthenticationError:
    """Why a signature, genuine in itself, is not the expected one."""
    claims = from_json(jws.decode_segment(payload))
    if not isinstance(claims, dict) or claims.keys() != expected.keys():
        return AuthenticationError(Reason.INVALID_CLAIMS, "Its signature does not say what it should.")
    if claims["aud"] != expected["aud"]:
        return AuthenticationError(Reason.WRONG_AUDIENCE, "It was stored in another environment.")
    if claims["task_id"] != expected["task_id"]:
        return AuthenticationError(Reason.WRONG_TASK, "It was stored for another task.")
    return AuthenticationError(Reason.BAD_SIGNATURE, "It was altered after it was stored.")


def _unsignable() -> UnsignableMessageError:
    return UnsignableMessageError("The result cannot be signed: its task id is too long, or no valid text.")
