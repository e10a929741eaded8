"""A stored policy is believed only as it was signed, by who may sign it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import to_json

from taskiq_flow_security import AuthenticationError, ConfigurationError, Revocation
from taskiq_flow_security.core.principal import Principal
from taskiq_flow_security.live_policy import signature
from taskiq_flow_security.live_policy.document import PolicyDocument, Revoked
from taskiq_flow_security.live_policy.signature import PolicySigner
from taskiq_flow_security.tokens.keyring import Keyring
from taskiq_flow_security.tokens.keys import KeySpec, Use
from taskiq_flow_security.tokens.principal_token import PrincipalTokens
from tests.unit.tokens.keys import ALGORITHMS, NOW, OTHER_SECRET, PRIVATE, keyring, public_spec, spec

REFUSALS = {"malformed", "bad_signature", "invalid_claims", "unknown_key", "wrong_algorithm", "wrong_type"}

DOCUMENT = PolicyDocument(version=3, pipeline_acls={"data": {"execute": ["ops"]}}, roles={"ada": ["ops"]})


def signer(*specs: KeySpec, audience: str = "test") -> PolicySigner:
    return PolicySigner(keyring(*specs), audience, leeway=10, lasting=60)


SIGNED = signer().sign(DOCUMENT, NOW)


def reason(signed: bytes, by: PolicySigner | None = None) -> str:
    with pytest.raises(AuthenticationError) as refusal:
        (by or signer()).read(signed, NOW)
    return refusal.value.reason


@pytest.mark.parametrize("alg", ALGORITHMS)
def test_what_was_signed_is_read(alg: str) -> None:
    signed = signer(spec(alg=alg)).sign(DOCUMENT, NOW)
    assert signer(public_spec(alg=alg)).read(signed, NOW) == DOCUMENT


@given(st.data())
def test_no_byte_can_be_changed_removed_or_added(data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(SIGNED) - 1))
    byte = data.draw(st.binary(max_size=2))
    changed = SIGNED[:at] + byte + SIGNED[at + 1 :]
    if changed != SIGNED:
        assert reason(changed) in {
            "malformed",
            "bad_signature",
            "invalid_claims",
            "unknown_key",
            "wrong_algorithm",
            "wrong_type",
        }


@given(st.binary(max_size=200))
def test_anything_else_is_refused(data: bytes) -> None:
    assert reason(data) == "malformed"


def test_a_document_cannot_be_put_in_the_place_of_the_signed_one() -> None:
    other = to_json(DOCUMENT.model_copy(update={"roles": {"mallory": ["ops"]}}))
    assert reason(SIGNED.partition(b"\n")[0] + b"\n" + other) == "bad_signature"


def test_a_policy_is_for_one_environment_and_by_a_known_key() -> None:
    assert reason(SIGNED, signer(audience="other")) == "wrong_audience"
    assert reason(SIGNED, signer(spec(secret=OTHER_SECRET))) == "bad_signature"
    assert reason(SIGNED, signer(spec("two"))) == "unknown_key"


@pytest.mark.parametrize("alg", PRIVATE)
def test_who_only_verifies_or_only_sends_cannot_sign_one(alg: str) -> None:
    for own in (public_spec(alg=alg), spec(alg=alg, uses=frozenset({Use.SEND}))):
        with pytest.raises(AuthenticationError) as refusal:
            signer(own).sign(DOCUMENT, NOW)
        assert refusal.value.reason == "cannot_issue"


def test_a_key_to_send_with_signs_no_policy() -> None:
    signed = signer(spec(alg="EdDSA")).sign(DOCUMENT, NOW)
    assert reason(signed, signer(spec(alg="EdDSA", uses=frozenset({Use.SEND})))) == "unknown_key"


def test_a_principal_is_no_policy_nor_the_reverse() -> None:
    keys = keyring()
    principals = PrincipalTokens(keys, "issuer", "test", leeway=10)
    token = principals.issue(Principal("ada"), "txn", NOW, NOW + 60).text.encode()
    assert reason(token + b"\n" + SIGNED.partition(b"\n")[2]) == "wrong_type"
    with pytest.raises(AuthenticationError):
        principals.verify(SIGNED.partition(b"\n")[0].decode(), NOW)


def test_a_key_neither_signs_nor_is_believed_in_a_policy_that_revokes_it() -> None:
    revoking = DOCUMENT.with_revoked(Revoked().with_(Revocation(signing_key="one")))
    with pytest.raises(AuthenticationError):
        signer().sign(revoking, NOW)
    both = signer(spec("one"), spec("two"))
    signed = both.sign(revoking, NOW)
    assert both.read(signed, NOW) == revoking
    by_itself = Keyring.from_specs([spec("one")])
    by_itself.without = lambda kids: by_itself  # type: ignore[method-assign]  # what a thief's code would do
    forged = PolicySigner(by_itself, "test", 10, 60).sign(revoking, NOW)
    assert reason(forged, both) == "revoked"


def test_a_document_that_is_too_long_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signature, "MAX_BYTES", 8192 + 50)
    with pytest.raises(ConfigurationError, match="settings"):
        signer().sign(DOCUMENT, NOW)
