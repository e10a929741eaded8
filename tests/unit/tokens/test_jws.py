"""What a token looks like, and that nothing else passes for one."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskiq_flow_security import AuthenticationError
from taskiq_flow_security.tokens import jws
from taskiq_flow_security.tokens.keys import Use
from tests.unit.tokens.keys import NOW, OTHER_SECRET, keyring, spec

HEADER: dict[str, Any] = {"alg": "HS256", "kid": "one", "typ": "test+jwt"}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def encode(header: object) -> str:
    return jws.encode_segment(header if isinstance(header, bytes) else json.dumps(header).encode()).decode()


def token(header: object = HEADER, payload: str = "cGF5bG9hZA", signature: str = "c2lnbmF0dXJl") -> str:
    return f"{encode(header)}.{payload}.{signature}"


def read(text: object) -> tuple[jws.Jws, jws.JwsHeader]:
    parsed = jws.parse(text)
    return parsed, jws.read_header(parsed, jws.JwsHeader, "test+jwt")


def verify(text: object, payload: bytes, use: Use = Use.SEND) -> None:
    parsed, header = read(text)
    jws.verify(parsed, header.alg, payload, keyring().verifier(use, header.kid, NOW, 0))


def reason(text: object) -> str:
    with pytest.raises(AuthenticationError) as refusal:
        read(text)
    return refusal.value.reason


@given(st.binary(max_size=64))
def test_a_segment_is_base64url_without_padding(data: bytes) -> None:
    segment = jws.encode_segment(data)
    assert segment == base64.urlsafe_b64encode(data).rstrip(b"=")
    assert jws.decode_segment(segment) == data


@given(st.text("AQgw-_+/= \n.~\x80", max_size=12) | st.binary(max_size=12).map(lambda data: data.decode("latin-1")))
def test_bytes_have_one_spelling_as_a_segment(text: str) -> None:
    segment = text.encode("latin-1")
    try:
        data = jws.decode_segment(segment)
    except AuthenticationError:
        return
    assert jws.encode_segment(data) == segment


def test_a_token_is_taken_apart() -> None:
    parsed, header = read(token())
    assert header.model_dump() == HEADER
    assert (parsed.payload, parsed.signature) == (b"cGF5bG9hZA", b"signature")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "malformed"),
        (b"bytes", "malformed"),
        (["a", "b", "c"], "malformed"),
        ("", "malformed"),
        ("..", "malformed"),
        ("a.b", "malformed"),
        (token() + ".x", "malformed"),
        (token() + "=", "malformed"),
        (token() + "\n", "malformed"),
        (token() + "\u00e9", "malformed"),
        (token() + "\ud800", "malformed"),
        (token([]), "malformed"),
        (token("text"), "malformed"),
        (token({}), "malformed"),
        (token({"alg": "HS256", "kid": "one"}), "malformed"),
        (token({**HEADER, "kid": 1}), "malformed"),
        (token({**HEADER, "kid": {}}), "malformed"),
        (token({**HEADER, "crit": ["exp"]}), "malformed"),
        (token({**HEADER, "jku": "https://evil"}), "malformed"),
        (token({**HEADER, "jwk": {}}), "malformed"),
        (token({**HEADER, "x5u": "https://evil"}), "malformed"),
        (token({**HEADER, "typ": "JWT"}), "wrong_type"),
        (token({**HEADER, "typ": ["test+jwt"]}), "wrong_type"),
        (token({**HEADER, "typ": None}), "wrong_type"),
        (token(b"[" * 6000), "malformed"),
        (token(b'{"kid":' * 800), "malformed"),
        ("a" * (jws.MAX_BYTES + 1), "oversized"),
        ("a" * jws.MAX_BYTES, "malformed"),
    ],
    ids=str,
)
def test_what_is_no_such_token_is_refused_with_its_reason(text: object, expected: str) -> None:
    assert reason(text) == expected


@given(st.dictionaries(st.sampled_from(sorted(HEADER)) | st.text(max_size=4), json_values, max_size=4))
def test_whatever_json_a_header_is_nothing_but_a_refusal_comes_of_it(header: dict[str, Any]) -> None:
    with pytest.raises(AuthenticationError):
        verify(token(header), b"x")


@given(st.dictionaries(st.sampled_from(["alg", "kid"]), json_values, max_size=2))
def test_whatever_key_a_header_names_nothing_but_a_refusal_comes_of_it(changes: dict[str, Any]) -> None:
    with pytest.raises(AuthenticationError) as refusal:
        verify(token(HEADER | changes), b"x")
    assert refusal.value.reason in {"malformed", "unknown_key", "wrong_algorithm", "bad_signature"}


@given(st.text(max_size=60))
def test_whatever_text_a_token_is_nothing_but_a_refusal_comes_of_it(text: str) -> None:
    assert reason(text) == "malformed"


def signed(payload: bytes = b"cGF5bG9hZA", *, secret: str | None = None, **header: Any) -> str:
    key = keyring(spec() if secret is None else spec(secret=secret)).signer(Use.SEND, NOW)
    protected = jws.encode_segment(json.dumps(HEADER | header).encode())
    return b".".join((protected, payload, jws.sign(key, protected, payload))).decode()


def test_a_signature_by_the_named_key_for_this_use_is_accepted() -> None:
    verify(signed(), b"cGF5bG9hZA")


@pytest.mark.parametrize(
    ("text", "payload", "use", "expected"),
    [
        (signed(), b"another", Use.SEND, "bad_signature"),
        (signed(), b"cGF5bG9hZA", Use.ISSUE, "bad_signature"),
        (signed(secret=OTHER_SECRET), b"cGF5bG9hZA", Use.SEND, "bad_signature"),
        (signed(kid="two"), b"cGF5bG9hZA", Use.SEND, "unknown_key"),
        (signed(alg="none"), b"cGF5bG9hZA", Use.SEND, "wrong_algorithm"),
        (signed(alg="HS512"), b"cGF5bG9hZA", Use.SEND, "wrong_algorithm"),
        (signed(alg=["HS256"]), b"cGF5bG9hZA", Use.SEND, "wrong_algorithm"),
    ],
    ids=["another payload", "another use", "another secret", "another key id", "none", "a second algorithm", "a list"],
)
def test_any_other_signature_is_refused_with_its_reason(text: str, payload: bytes, use: Use, expected: str) -> None:
    with pytest.raises(AuthenticationError) as refusal:
        verify(text, payload, use)
    assert refusal.value.reason == expected


@pytest.mark.parametrize(
    ("now", "expected"),
    [(89, "not_yet_valid"), (90, None), (100, None), (200, None), (209.9, None), (210, "expired"), (211, "expired")],
)
def test_times_hold_within_the_leeway_and_no_longer(now: float, expected: str | None) -> None:
    if expected is None:
        jws.check_times(100, 200, now, leeway=10)
        return
    with pytest.raises(AuthenticationError) as refusal:
        jws.check_times(100, 200, now, leeway=10)
    assert refusal.value.reason == expected
