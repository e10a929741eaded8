"""Compact JWS (RFC 7515), with attached or detached payload, by keys that know their algorithm.

Works on PyJWT's algorithm objects: its `encode` and `decode` take several times as long, and read the clock.
"""

from __future__ import annotations

import binascii
from binascii import a2b_base64, b2a_base64
from typing import NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import to_json

from taskiq_flow_security.core.reasons import Reason
from taskiq_flow_security.errors import AuthenticationError
from taskiq_flow_security.tokens.keys import Key

MAX_BYTES = 8192
"""Longer tokens are refused before anything is decoded."""


class Jws(NamedTuple):
    """A token taken apart; nothing in it is checked yet."""

    protected: bytes
    """The header as it was signed: base64url."""
    payload: bytes
    """base64url; empty if detached."""
    signature: bytes


class JwsHeader(BaseModel):
    """The protected header, to which a kind of token may add parameters.

    Any other parameter is refused, which covers ``jku``, ``jwk``, ``x5u`` and an unknown ``crit``.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    alg: object
    kid: str
    typ: object


H = TypeVar("H", bound=JwsHeader)


def encode_segment(data: bytes) -> bytes:
    """base64url without padding (RFC 7515 section 2)."""
    return b2a_base64(data, newline=False).rstrip(b"=").replace(b"+", b"-").replace(b"/", b"_")


def decode_segment(segment: bytes) -> bytes:
    """The inverse of `encode_segment`, which must be exact: no padding, no other spelling of the same bytes."""
    data = decode_any(segment)
    if encode_segment(data) != segment:
        raise malformed()
    return data


def decode_any(segment: bytes) -> bytes:
    """As `decode_segment`, for a segment that is signed as it is spelled, so that any spelling will do."""
    try:
        return a2b_base64(segment.replace(b"-", b"+").replace(b"_", b"/") + b"==")
    except binascii.Error:
        raise malformed() from None


def parse(token: object) -> Jws:
    """Take a compact token apart."""
    if not isinstance(token, str):
        raise malformed()
    if len(token) > MAX_BYTES:
        raise AuthenticationError(Reason.OVERSIZED, f"A token may have {MAX_BYTES} bytes at most.")
    try:
        protected, payload, signature = token.encode("ascii").split(b".")
    except ValueError:  # not ASCII, or not three segments
        raise malformed() from None
    return Jws(protected, payload, decode_segment(signature))


def read_header(jws: Jws, kind: type[H], typ: str) -> H:
    """The header of a token that must be of this kind."""
    try:
        header: H = kind.__pydantic_validator__.validate_json(decode_any(jws.protected))  # the quickest way in
    except ValidationError:
        raise malformed() from None
    if header.typ != typ:
        raise AuthenticationError(Reason.WRONG_TYPE, f"Not a token of the type {typ}.")
    return header


def verify(jws: Jws, alg: object, payload: bytes, key: Key) -> None:
    """Check a token's signature over its header, which names `alg`, and over a payload as it was signed."""
    if alg != key.alg:
        raise AuthenticationError(Reason.WRONG_ALGORITHM, "The key is not for that algorithm.")
    if not key.verify(jws.protected + b"." + payload, jws.signature):
        raise AuthenticationError(Reason.BAD_SIGNATURE, "The signature does not match.")


def sign(key: Key, protected: bytes, payload: bytes) -> bytes:
    """The signature segment over a header segment and a payload as it is to be signed."""
    return encode_segment(key.sign(protected + b"." + payload))


def malformed() -> AuthenticationError:
    """The error for what is not a token at all."""
    return AuthenticationError(Reason.MALFORMED, "Not a well-formed token.")


def check_times(not_before: float, expires_at: float, now: float, leeway: float) -> None:
    """RFC 7519 sections 4.1.4 and 4.1.5; `leeway` in seconds."""
    if now + leeway < not_before:
        raise AuthenticationError(Reason.NOT_YET_VALID, "Not valid yet; compare the clocks of both machines.")
    if now - leeway >= expires_at:
        raise AuthenticationError(Reason.EXPIRED, "No longer valid; ask again.")


def compact(key: Key, typ: str, claims: bytes) -> bytes:
    """A compact token of this type by a key, over claims as JSON."""
    protected = encode_segment(to_json(JwsHeader(alg=key.alg, kid=key.kid, typ=typ)))
    payload = encode_segment(claims)
    return b".".join((protected, payload, sign(key, protected, payload)))
