"""A signature belongs to one message, for one while."""

from __future__ import annotations

import json
from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskiq_flow_security import AuthenticationError, Permission, UnsignableMessageError
from taskiq_flow_security.core.principal import Scope
from taskiq_flow_security.tokens import jws
from taskiq_flow_security.tokens.keys import KeySpec, Use
from taskiq_flow_security.tokens.message_signature import Delegation, MessageSignature, MessageSigner
from tests.unit.tokens.keys import ALGORITHMS, NOW, OTHER_SECRET, PRIVATE, keyring, public_spec, spec
from tests.unit.tokens.test_jws import json_values

PAYLOAD = b'{"task_id":"1"}'
LATER = NOW + 600
HEADER: dict[str, Any] = {
    "alg": "HS256",
    "b64": False,
    "crit": ["b64"],
    "kid": "one",
    "typ": "taskiq-message+jws",
    "iat": int(NOW),
    "exp": int(LATER),
    "jti": "id",
}


def signer(*specs: KeySpec) -> MessageSigner:
    return MessageSigner(keyring(*specs), leeway=10)


def verify(signing: MessageSigner, text: object, payload: bytes, now: float) -> MessageSignature:
    """What a signature says that is accepted now."""
    verified = signing.read(text, payload, now)
    signing.check_times(verified, now)
    return verified


def reason(text: object, *specs: KeySpec, payload: bytes = PAYLOAD, now: float = NOW) -> str:
    with pytest.raises(AuthenticationError) as refusal:
        verify(signer(*specs), text, payload, now)
    return refusal.value.reason


def sign(header: dict[str, Any], payload: bytes = PAYLOAD, *, attached: bytes = b"", use: Use = Use.SEND) -> str:
    """A signature with any header, by who holds the key."""
    protected = jws.encode_segment(json.dumps(header).encode())
    signature = jws.sign(keyring().signer(use, NOW), protected, payload)
    return b".".join((protected, attached, signature)).decode()


@given(st.binary(max_size=64))
def test_what_was_signed_is_verified(payload: bytes) -> None:
    text, signed = signer().sign(payload, NOW, LATER)
    assert verify(signer(), text, payload, NOW) == signed


@given(st.binary(max_size=32), st.data())
def test_a_signature_is_for_no_other_payload(payload: bytes, data: st.DataObject) -> None:
    other = data.draw(st.binary(max_size=32).filter(lambda other: other != payload))
    assert reason(signer().sign(payload, NOW, LATER)[0], payload=other) == "bad_signature"


@pytest.mark.parametrize("alg", ALGORITHMS)
def test_who_only_verifies_believes_what_was_signed(alg: str) -> None:
    text, signed = signer(spec(alg=alg)).sign(PAYLOAD, NOW, LATER)
    assert verify(signer(public_spec(alg=alg)), text, PAYLOAD, NOW) == signed


@pytest.mark.parametrize("alg", PRIVATE)
def test_a_signature_is_a_detached_jws_that_others_can_verify(alg: str) -> None:
    text, signed = signer(spec(alg=alg)).sign(PAYLOAD, NOW, LATER)
    read = jwt.PyJWS().decode_complete(text, PRIVATE[alg].public_key(), [alg], detached_payload=PAYLOAD)
    assert read["header"] == HEADER | {"alg": alg, "jti": signed.jti}
    assert read["payload"] == PAYLOAD


def test_a_signature_says_by_whom_and_for_how_long() -> None:
    _, signed = signer().sign(PAYLOAD, NOW + 0.9, LATER + 0.9)
    assert (signed.kid, signed.issued_at, signed.expires_at) == ("one", NOW + 0.9, LATER)


def test_two_signatures_of_one_message_can_be_told_apart() -> None:
    signing = signer()
    assert signing.sign(PAYLOAD, NOW, LATER)[1].jti != signing.sign(PAYLOAD, NOW, LATER)[1].jti


def test_any_id_of_a_key_can_stand_in_a_header() -> None:
    for kid in ('a"b', "back\\slash", "{}", "'"):
        text, _ = signer(spec(kid)).sign(PAYLOAD, NOW, LATER)
        assert verify(signer(spec(kid)), text, PAYLOAD, NOW).kid == kid


delegations = st.builds(
    Delegation,
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), max_size=4).map(tuple),
    st.builds(
        Scope,
        st.none() | st.frozensets(st.sampled_from(Permission)),
        st.none() | st.frozensets(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), max_size=3),
    ),
)


@given(delegations)
def test_the_terms_of_a_delegation_are_signed_with_the_message(delegation: Delegation) -> None:
    text, signed = signer().sign(PAYLOAD, NOW, LATER, delegation)
    assert verify(signer(), text, PAYLOAD, NOW) == signed
    assert signed.delegation == delegation


@pytest.mark.parametrize(
    "terms",
    [
        {"act": "a"},
        {"act": [1]},
        {"act": None},
        {"scope": []},
        {"scope": {"permissions": ["all"]}},
        {"scope": {"x": 1}},
    ],
    ids=str,
)
def test_terms_of_another_type_are_refused_even_from_who_holds_the_key(terms: dict[str, Any]) -> None:
    assert reason(sign(HEADER | terms)) == "malformed"


def test_the_key_that_signs_changes_with_the_time() -> None:
    rotating = signer(spec("old", not_after=NOW + 60), spec("new", secret=OTHER_SECRET))
    assert rotating.sign(PAYLOAD, NOW, NOW + 59)[1].kid == "old"
    assert rotating.sign(PAYLOAD, NOW, LATER)[1].kid == "new"  # which lasts as long as what it signs
    text, signed = rotating.sign(PAYLOAD, NOW + 60, LATER)
    assert signed.kid == "new"
    assert verify(rotating, text, PAYLOAD, NOW + 60) == signed


def test_the_helper_of_these_tests_makes_signatures_that_are_accepted() -> None:
    assert verify(signer(), sign(HEADER), PAYLOAD, NOW).jti == "id"


def test_signatures_are_refused_for_their_own_reason() -> None:
    text = signer().sign(PAYLOAD, NOW, LATER)[0]
    assert reason(text, spec(secret=OTHER_SECRET)) == "bad_signature"
    assert reason(text, spec("two")) == "unknown_key"
    assert reason(text, spec(uses=frozenset({Use.ISSUE}))) == "unknown_key"
    assert reason(text, public_spec()) == "wrong_algorithm"
    assert reason(text, now=NOW - 11) == "not_yet_valid"
    assert reason(text, now=LATER + 10) == "expired"
    assert reason(sign(HEADER, use=Use.ISSUE)) == "bad_signature"
    assert reason(sign({**HEADER, "typ": "taskiq-principal+jwt"})) == "wrong_type"
    assert reason(sign({**HEADER, "alg": "none"})) == "wrong_algorithm"
    assert reason(None) == reason(7) == reason([text]) == reason({}) == reason("") == "malformed"


def test_a_signature_that_was_read_is_still_to_be_asked_for_its_time() -> None:
    text, signed = signer().sign(PAYLOAD, NOW, LATER)
    assert signer().read(text, PAYLOAD, LATER + 3600) == signed
    with pytest.raises(AuthenticationError):
        signer().check_times(signed, LATER + 3600)


@pytest.mark.parametrize("name", HEADER)
def test_a_header_without_one_of_its_parameters_is_refused(name: str) -> None:
    assert reason(sign({key: value for key, value in HEADER.items() if key != name})) == "malformed"


@pytest.mark.parametrize(
    "changes",
    [
        {"b64": True},
        {"b64": None},
        {"b64": 0},
        {"crit": []},
        {"crit": ["b64", "b64"]},
        {"crit": ["b64", "exp"]},
        {"crit": "b64"},
        {"crit": {"b64": 1}},
        {"iat": True},
        {"iat": float("nan")},
        {"iat": "1"},
        {"iat": None},
        {"exp": float(LATER)},
        {"exp": None},
        {"exp": []},
        {"jti": 7},
        {"jti": None},
        {"kid": None},
        {"jku": "https://evil"},
        {"x5u": "https://evil"},
        {"jwk": {}},
        {"nbf": 0},
    ],
    ids=str,
)
def test_another_header_is_refused_even_from_who_holds_the_key(changes: dict[str, Any]) -> None:
    assert reason(sign(HEADER | changes)) == "malformed"


def test_a_payload_is_neither_brought_along_nor_encoded() -> None:
    encoded = jws.encode_segment(PAYLOAD)
    assert reason(sign(HEADER, encoded, attached=encoded)) == "malformed"
    assert reason(sign(HEADER, encoded)) == "bad_signature"


moments = st.integers(int(NOW) - 700, int(NOW) + 700)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            **{name: st.just(value) | json_values for name, value in HEADER.items() if name != "jti"},
            "iat": moments,
            "exp": moments,
        },
    )
)
def test_whatever_a_header_says_instead_is_refused_or_means_the_same(changes: dict[str, Any]) -> None:
    try:
        signed = verify(signer(), sign(HEADER | changes), PAYLOAD, NOW)
    except AuthenticationError:
        return
    assert signed.kid == "one"
    assert signed.issued_at <= NOW + 10
    assert signed.expires_at > NOW - 10


@pytest.mark.parametrize(("letter", "fit"), [("x", 4900), ("ä", 2450)])
def test_terms_that_fit_are_counted_in_bytes(letter: str, fit: int) -> None:
    signer().check_fits(Delegation(pipeline=letter * fit))
    with pytest.raises(UnsignableMessageError, match="do not fit into 5000 bytes"):
        signer().check_fits(Delegation(pipeline=letter * (fit + 100)))


def test_who_holds_no_key_to_send_with_cannot_sign() -> None:
    with pytest.raises(AuthenticationError) as refusal:
        signer(public_spec()).sign(PAYLOAD, NOW, LATER)
    assert refusal.value.reason == "cannot_issue"
