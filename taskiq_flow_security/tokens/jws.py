"""Compact JWS (RFC 7515), with attached or detached payload, by keys that know their algorithm.

Works on PyJWT's algorithm objects: its `encode` and `decode` take several times as long, and read the clock.
"""

from __future__ import annotations

import binascii
from binascii import a2b_base64, b2a_base64
from typing import Any, NamedTuple

from pydantic_core import from_json

from taskiq_flow_security.core.reasons import Reason
from taskiq_flow_security.errors import AuthenticationError
from taskiq_flow_security.tokens.keyring import Key, Keyring, Use

MAX_BYTES = 8192
"""Longer tokens are refused before anything is decoded."""


class Jws(NamedTuple):
    """A token taken apart, its header checked, its signature not yet."""

    header: dict[str, Any]
    protected: bytes
    """The header as it was signed: base64url."""
    payload: bytes
    """base64url; empty if detached."""
    signature: bytes
    kid: str


_TO_URLSAFE = bytes.maketrans(b"+/", b"-_")
_FROM_URLSAFE = bytes.maketrans(b"-_", b"+/")


def encode_segment(data: bytes) -> bytes:
    """base64url without padding (RFC 7515 section 2)."""
    return b2a_base64(data, newline=False).translate(_TO_URLSAFE).rstrip(b"=")


def decode_segment(segment: bytes) -> bytes:
    """The inverse of `encode_segment`, which must be exact: no padding, no other spelling of the same bytes."""
    data = _decode(segment)
    if encode_segment(data) != segment:
        raise malformed()
    return data


def _decode(segment: bytes) -> bytes:
    try:
        return a2b_base64(segment.translate(_FROM_URLSAFE) + b"==")
    except binascii.Error:
        raise malformed() from None


def parse(token: object, header_names: frozenset[str], typ: str) -> Jws:
    """Take a compact token apart and check its header against what the one kind of token expected here may have.

    Any other header parameter is refused, which covers ``jku``, ``jwk``, ``x5u`` and an unknown ``crit``.
    """
    if not isinstance(token, str):
        raise malformed()
    if len(token) > MAX_BYTES:
        raise AuthenticationError(Reason.OVERSIZED, f"A token may have {MAX_BYTES} bytes at most.")
    try:
        protected, payload, signature = token.encode("ascii").split(b".")
        header = from_json(_decode(protected))  # its spelling is signed, so that any will do
    except ValueError:  # not ASCII, not three segments, not JSON, or too deep
        raise malformed() from None
    if not isinstance(header, dict) or header.keys() != header_names:
        raise malformed()
    if header["typ"] != typ:
        raise AuthenticationError(Reason.WRONG_TYPE, f"Not a token of the type {typ}.")
    if not isinstance(header["kid"], str):
        raise malformed()
    return Jws(header, protected, payload, decode_segment(signature), header["kid"])


def verify(jws: Jws, payload: bytes, keyring: Keyring, use: Use, now: float, leeway: float) -> Key:
    """Check the signature over header and payload; the payload as it was signed. Returns the key that made it."""
    key = keyring.verifier(use, jws.kid, now, leeway)
    if jws.header["alg"] != key.alg:
        raise AuthenticationError(Reason.WRONG_ALGORITHM, "The key is not for that algorithm.")
    if not key.verify(jws.protected + b"." + payload, jws.signature):
        raise AuthenticationError(Reason.BAD_SIGNATURE, "The signature does not match.")
    return key


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
