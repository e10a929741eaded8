"""A signature belongs to one task's result or progress, in one environment."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskiq_flow_security import AuthenticationError, UnsignableMessageError
from taskiq_flow_security.tokens import jws
from taskiq_flow_security.tokens.keys import KeySpec, Use
from taskiq_flow_security.tokens.message_signature import MessageSigner
from taskiq_flow_security.tokens.result_signature import Binding, Purpose, ResultSigner
from tests.unit.tokens.keys import ALGORITHMS, NOW, OTHER_SECRET, keyring, public_spec, spec

DATA = b"what was stored"
RESULT = Binding(Purpose.RESULT, "task-1")
HEADER = {"alg": "HS256", "kid": "one", "typ": "taskiq-result+jwt"}

task_ids = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
bindings = st.builds(Binding, st.sampled_from(Purpose), task_ids)


def signer(*specs: KeySpec, audience: str = "production") -> ResultSigner:
    return ResultSigner(keyring(*specs), audience, leeway=10)


def signature(data: bytes = DATA, binding: Binding = RESULT, by: ResultSigner | None = None) -> str:
    return (by or signer()).sign(data, binding, NOW).decode()


def reason(
    token: str, *specs: KeySpec, data: bytes = DATA, binding: Binding = RESULT, audience: str = "production"
) -> str:
    with pytest.raises(AuthenticationError) as refusal:
        signer(*specs, audience=audience).verify(token, data, binding, NOW)
    return refusal.value.reason


def forge(claims: object, header: dict[str, Any] = HEADER, use: Use = Use.RESULT) -> str:
    """A token with any header and claims, by who holds the key."""
    protected, payload = (jws.encode_segment(json.dumps(part).encode()) for part in (header, claims))
    return b".".join((protected, payload, jws.sign(keyring().signer(use, NOW), protected, payload))).decode()


@pytest.mark.parametrize("alg", ALGORITHMS)
@pytest.mark.parametrize("purpose", Purpose)
def test_what_was_signed_is_verified_by_who_holds_the_verifying_part(alg: str, purpose: Purpose) -> None:
    binding = Binding(purpose, "task-1")
    signer(public_spec(alg=alg)).verify(signature(DATA, binding, signer(spec(alg=alg))), DATA, binding, NOW)


@given(st.binary(max_size=64), bindings)
def test_any_bytes_of_any_task_can_be_signed(data: bytes, binding: Binding) -> None:
    signer().verify(signature(data, binding), data, binding, NOW)


@given(st.binary(max_size=32), st.data())
def test_a_signature_is_for_no_other_bytes(data: bytes, draw: st.DataObject) -> None:
    other = draw.draw(st.binary(max_size=32).filter(lambda other: other != data))
    assert reason(signature(data), data=other) == "bad_signature"


@given(bindings, bindings)
def test_a_signature_is_for_no_other_task_or_purpose(signed: Binding, read: Binding) -> None:
    if signed.purpose != read.purpose:
        assert reason(signature(DATA, signed), binding=read) == "wrong_type"
    elif signed != read:
        assert reason(signature(DATA, signed), binding=read) == "wrong_task"


def test_a_signature_is_for_one_environment() -> None:
    assert reason(signature(), audience="staging") == "wrong_audience"


def test_a_key_that_is_not_known_proves_nothing() -> None:
    assert reason(signature(by=signer(spec("two")))) == "unknown_key"
    assert reason(signature(by=signer(spec(secret=OTHER_SECRET)))) == "bad_signature"


def test_whoever_may_send_may_sign_results_and_who_may_only_issue_may_not() -> None:
    assert signer(spec(uses=frozenset({Use.SEND}))).can_sign(NOW)
    assert not signer(spec(uses=frozenset({Use.ISSUE}))).can_sign(NOW)
    assert not signer(public_spec()).can_sign(NOW)


def test_a_retired_key_proves_nothing_and_a_key_beside_the_first_one_does() -> None:
    signed = signature()
    signer(spec("two"), spec("one")).verify(signed, DATA, RESULT, NOW)
    assert reason(signed, spec("one", not_after=NOW - 60)) == "unknown_key"


@pytest.mark.parametrize("alg", ALGORITHMS)
def test_the_signature_of_a_message_is_not_one_of_a_result_nor_the_reverse(alg: str) -> None:
    messages = MessageSigner(keyring(spec(alg=alg)), leeway=10)
    message_signature, _ = messages.sign(DATA, NOW, NOW + 600)
    assert reason(message_signature, spec(alg=alg)) == "malformed"
    with pytest.raises(AuthenticationError):
        messages.read(signature(by=signer(spec(alg=alg))), DATA, NOW)


@pytest.mark.parametrize("use", [Use.SEND, Use.ISSUE])
def test_of_one_secret_the_keys_for_other_uses_sign_no_results(use: Use) -> None:
    digest = "80d0b1aaf0ba3a5d8ad1ae4bd30e4ce5f6dd2f6fdbf1cf1f6a3b9cf6f0b5ac5e"
    assert reason(forge({"aud": "production", "task_id": "task-1", "sha256": digest}, use=use)) == "bad_signature"


@pytest.mark.parametrize("claims", [{}, [], None, "x", {"aud": "production", "task_id": "task-1"}])
def test_whoever_holds_a_key_must_still_say_what_is_signed(claims: object) -> None:
    assert reason(forge(claims)) == "invalid_claims"


@pytest.mark.parametrize("change", [{"typ": "JWT"}, {"alg": "none"}, {"kid": "two"}, {"crit": ["exp"]}, {"jku": "x"}])
def test_the_header_decides_nothing(change: dict[str, Any]) -> None:
    assert reason(forge({}, HEADER | change)) in {"wrong_type", "wrong_algorithm", "unknown_key", "malformed"}


@given(st.text(max_size=400))
def test_text_is_no_signature(text: str) -> None:
    reason(text)


@pytest.mark.parametrize("task_id", ["\ud800", "x" * 8192])
def test_a_task_id_that_fits_into_no_token_is_said_so(task_id: str) -> None:
    with pytest.raises(UnsignableMessageError, match="task id"):
        signature(binding=Binding(Purpose.RESULT, task_id))
