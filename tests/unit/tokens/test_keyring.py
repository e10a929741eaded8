"""Which key signs what and when, and which one is believed."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st

from taskiq_flow_security import AuthenticationError, ConfigurationError
from taskiq_flow_security.tokens.keyring import Keyring
from taskiq_flow_security.tokens.keys import KeySpec, Use
from tests.unit.tokens.keys import (
    ALGORITHMS,
    NOW,
    OTHER_SECRET,
    PRIVATE,
    SECRET,
    keyring,
    private_pem,
    public_pem,
    public_spec,
    spec,
)

DATA = b"what is signed"


def refused(action: Callable[[], object]) -> str:
    with pytest.raises(AuthenticationError) as refusal:
        action()
    return refusal.value.reason


@pytest.mark.parametrize("use", Use)
@pytest.mark.parametrize("alg", ALGORITHMS)
def test_a_key_verifies_what_it_has_signed_and_nothing_else(alg: str, use: Use) -> None:
    key = keyring(spec(alg=alg)).signer(use, NOW)
    signature = key.sign(DATA)
    other = keyring(public_spec(alg=alg)).verifier(use, "one", NOW, 0)
    assert other.verify(DATA, signature)
    assert not other.verify(DATA + b"!", signature)
    assert not other.verify(DATA, signature[:-1] + bytes([signature[-1] ^ 1]))
    assert not other.verify(DATA, b"")


@pytest.mark.parametrize("alg", ALGORITHMS)
def test_who_holds_no_signing_part_cannot_sign(alg: str) -> None:
    keys = keyring(public_spec(alg=alg))
    for use in Use:
        assert keys.has(use, NOW, 0)
        assert refused(lambda use=use: keys.signer(use, NOW)) == "cannot_issue"  # type: ignore[misc]


def test_a_key_is_for_its_uses_only() -> None:
    keys = keyring(spec(uses=frozenset({Use.SEND})))
    assert keys.has(Use.SEND, NOW, 0)
    assert not keys.has(Use.ISSUE, NOW, 0)
    assert refused(lambda: keys.signer(Use.ISSUE, NOW)) == "cannot_issue"
    assert refused(lambda: keys.verifier(Use.ISSUE, "one", NOW, 0)) == "unknown_key"


@pytest.mark.parametrize("make", [lambda: keyring(spec()), lambda: Keyring.derived(SECRET)])
def test_one_secret_is_another_key_for_each_use(make: Callable[[], Keyring]) -> None:
    issuing, sending = (make().signer(use, NOW) for use in (Use.ISSUE, Use.SEND))
    assert not sending.verify(DATA, issuing.sign(DATA))
    assert not issuing.verify(DATA, sending.sign(DATA))
    for key in (issuing, sending):
        assert key.sign(DATA) != hmac.digest(SECRET.encode(), DATA, hashlib.sha256)


@pytest.mark.parametrize("use", Use)
def test_a_secret_is_made_a_key_by_hkdf_with_the_use_in_its_info(use: Use) -> None:
    # RFC 5869 section 2, one block of output.
    extracted = hmac.digest(b"\0" * 32, SECRET.encode(), hashlib.sha256)
    expanded = hmac.digest(extracted, b"taskiq-flow-security/v1/" + use.encode() + b"\x01", hashlib.sha256)
    assert keyring().signer(use, NOW).sign(DATA) == hmac.digest(expanded, DATA, hashlib.sha256)


def test_processes_with_one_secret_understand_each_other_and_those_with_another_do_not() -> None:
    here, there, elsewhere = Keyring.derived(SECRET), Keyring.derived(SECRET), Keyring.derived(OTHER_SECRET)
    key = here.signer(Use.SEND, NOW)
    assert there.verifier(Use.SEND, key.kid, NOW, 0).verify(DATA, key.sign(DATA))
    assert refused(lambda: elsewhere.verifier(Use.SEND, key.kid, NOW, 0)) == "unknown_key"


def test_no_key_shows_what_it_is_made_of() -> None:
    for alg in ALGORITHMS:
        key = spec(alg=alg)
        shown = f"{key!r} {keyring(key).signer(Use.SEND, NOW)!r} {keyring(key)!r}"
        for material in (SECRET, "BEGIN", "private_key=", "secret="):
            assert material not in shown
    assert SECRET not in Keyring.derived(SECRET).signer(Use.SEND, NOW).kid


def test_the_first_usable_key_signs_and_all_verify() -> None:
    keys = keyring(
        spec("future", not_before=NOW + 60),
        spec("past", not_after=NOW),
        public_spec("public"),
        spec("kept back", verify_only=True),
        spec("first"),
        spec("second"),
    )
    assert keys.signer(Use.SEND, NOW).kid == "first"
    assert keys.signer(Use.SEND, NOW + 60).kid == "future"
    assert keys.signer(Use.SEND, NOW - 1).kid == "past"
    for kid in ("public", "kept back", "first", "second"):
        assert keys.verifier(Use.SEND, kid, NOW, 0).kid == kid


@pytest.mark.parametrize(
    ("now", "usable"), [(89, False), (90, True), (100, True), (199, True), (209, True), (210, False)]
)
def test_a_key_verifies_within_its_time_and_the_leeway(now: float, usable: bool) -> None:
    keys = keyring(spec(not_before=100, not_after=200))
    if usable:
        assert keys.verifier(Use.SEND, "one", now, leeway=10).kid == "one"
    else:
        assert refused(lambda: keys.verifier(Use.SEND, "one", now, leeway=10)) == "unknown_key"


@pytest.mark.parametrize(("now", "usable"), [(99, False), (100, True), (199, True), (200, False)])
def test_a_key_signs_within_its_time_without_any_leeway(now: float, usable: bool) -> None:
    keys = keyring(spec(not_before=100, not_after=200))
    if usable:
        assert keys.signer(Use.SEND, now).kid == "one"
    else:
        assert refused(lambda: keys.signer(Use.SEND, now)) == "cannot_issue"


ROTATION: list[list[KeySpec]] = [
    [spec("old")],
    [spec("old"), spec("new", secret=OTHER_SECRET)],
    [spec("new", secret=OTHER_SECRET), spec("old")],
    [spec("new", secret=OTHER_SECRET), spec("old", verify_only=True)],
    [spec("new", secret=OTHER_SECRET)],
]
"""What the processes of a deployment are configured with, one after the other."""


@pytest.mark.parametrize("stage", range(len(ROTATION) - 1))
def test_a_rotation_refuses_nothing_while_processes_are_one_stage_apart(stage: int) -> None:
    rings = [keyring(*ROTATION[stage]), keyring(*ROTATION[stage + 1])]
    for sender in rings:
        key = sender.signer(Use.SEND, NOW)
        for verifier in rings:
            assert verifier.verifier(Use.SEND, key.kid, NOW, 0).verify(DATA, key.sign(DATA))


@given(st.floats(0, 400), st.floats(-10, 10))
def test_a_rotation_by_the_clock_refuses_nothing_while_clocks_differ_by_the_leeway(now: float, skew: float) -> None:
    keys = keyring(
        spec("old", not_after=200),
        spec("new", secret=OTHER_SECRET, not_before=100),
    )
    key = keys.signer(Use.SEND, now)
    assert keys.verifier(Use.SEND, key.kid, now + skew, leeway=10).verify(DATA, key.sign(DATA))


def test_a_process_without_keys_has_none_for_anything() -> None:
    assert not any(Keyring([]).has(use, NOW, 0) for use in Use)


ED25519 = ed25519.Ed25519PrivateKey.generate()
RSA_1024 = rsa.generate_private_key(65537, 1024)  # noqa: S505 (that is the point)
P_384 = ec.generate_private_key(ec.SECP384R1())
ED448 = ed448.Ed448PrivateKey.generate()
ENCRYPTED = ED25519.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"password")).decode()

UNUSABLE: dict[str, tuple[str, dict[str, Any]]] = {
    "no PEM": ("EdDSA", {"private_key": "no key"}),
    "empty": ("EdDSA", {"private_key": ""}),
    "beyond ASCII": ("EdDSA", {"private_key": "\u00e9"}),
    "encrypted": ("EdDSA", {"private_key": ENCRYPTED}),
    "P-256 for EdDSA": ("EdDSA", {"private_key": private_pem(PRIVATE["ES256"])}),
    "Ed448 for EdDSA": ("EdDSA", {"private_key": private_pem(ED448)}),
    "Ed25519 for ES256": ("ES256", {"private_key": private_pem(ED25519)}),
    "P-384 for ES256": ("ES256", {"private_key": private_pem(P_384)}),
    "P-256 for RS256": ("RS256", {"private_key": private_pem(PRIVATE["ES256"])}),
    "RSA of 1024 bits": ("RS256", {"private_key": private_pem(RSA_1024)}),
    "a public key as a private one": ("EdDSA", {"private_key": public_pem(ED25519)}),
    "a private key as a public one": ("EdDSA", {"private_key": None, "public_key": private_pem(ED25519)}),
    "P-384 for ES256, public": ("ES256", {"private_key": None, "public_key": public_pem(P_384)}),
    "RSA of 1024 bits, public": ("RS256", {"private_key": None, "public_key": public_pem(RSA_1024)}),
    "Ed25519 for RS256, public": ("RS256", {"private_key": None, "public_key": public_pem(ED25519)}),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_a_key_that_its_algorithm_cannot_use_is_a_configuration_error_that_shows_none_of_it(name: str) -> None:
    alg, material = UNUSABLE[name]
    with pytest.raises(ConfigurationError) as problem:
        keyring(spec("the-key", alg, **material))
    error = problem.value
    kind = "public_key" if "public_key" in material else "private_key"
    assert str(error).startswith(f"signing_keys: {kind} of 'the-key' cannot be used with {alg}; give ")
    assert error.__cause__ is None
    assert error.__context__ is None
    for text in filter(None, material.values()):
        assert not any(line in str(error) for line in text.splitlines() if len(line) > 6)
