"""A principal says on the other side what it said here, or nothing."""

from __future__ import annotations

import json
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given
from hypothesis import strategies as st

from taskiq_flow_security import AuthenticationError, Permission, Principal
from taskiq_flow_security.core.principal import Scope
from taskiq_flow_security.tokens import jws, principal_token
from taskiq_flow_security.tokens.keyring import Keyring
from taskiq_flow_security.tokens.keys import KeySpec, Use
from taskiq_flow_security.tokens.principal_token import PrincipalTokens
from tests.unit.tokens.keys import ALGORITHMS, NOW, OTHER_SECRET, PRIVATE, SECRET, keyring, public_spec, spec
from tests.unit.tokens.test_jws import json_values

LATER = NOW + 600

names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
principals = st.builds(
    Principal,
    names,
    st.sets(names, max_size=3),
    st.none() | st.sets(st.sampled_from(Permission)),
    st.sets(names, max_size=3),
    api_key_id=st.none() | names,
    scope=st.builds(
        Scope,
        st.none() | st.frozensets(st.sampled_from(Permission)),
        st.none() | st.frozensets(names, max_size=3),
    ),
)
alice = Principal("alice", ["processor"], ["execute"], ["data"], api_key_id="key-1")


def tokens(*specs: KeySpec, issuer: str = "issuer", audience: str = "test", keys: Keyring | None = None) -> Any:
    return PrincipalTokens(keys or keyring(*specs), issuer, audience, leeway=10)


def reason(text: object, *specs: KeySpec, now: float = NOW, **settings: Any) -> str:
    with pytest.raises(AuthenticationError) as refusal:
        tokens(*specs, **settings).verify(text, now)
    return refusal.value.reason


def issue(claims: object, header: dict[str, Any] | None = None, use: Use = Use.ISSUE) -> str:
    """A token with any claims, by who holds the key."""
    key = keyring().signer(use, NOW)
    fields = {"alg": key.alg, "kid": key.kid, "typ": "taskiq-principal+jwt"}
    protected = jws.encode_segment(json.dumps(fields | (header or {})).encode())
    payload = jws.encode_segment(json.dumps(claims).encode())
    return b".".join((protected, payload, jws.sign(key, protected, payload))).decode()


CLAIMS: dict[str, Any] = {
    "iss": "issuer",
    "aud": "test",
    "sub": "alice",
    "roles": ["processor"],
    "permissions": ["execute"],
    "pipelines": ["data"],
    "iat": int(NOW),
    "nbf": int(NOW),
    "exp": int(LATER),
    "jti": "id",
    "txn": "request-1",
}


@given(principals, names)
def test_a_principal_arrives_as_it_was_issued(principal: Principal, txn: str) -> None:
    issued = tokens().issue(principal, txn, NOW, LATER)
    arrived = tokens().verify(issued.text, NOW)
    assert arrived == issued
    assert arrived.principal == principal
    assert type(arrived.principal.permissions) is type(principal.permissions)
    assert arrived.txn == arrived.principal.txn == txn


@pytest.mark.parametrize("alg", ALGORITHMS)
def test_who_only_verifies_believes_what_was_issued(alg: str) -> None:
    issued = tokens(spec(alg=alg)).issue(alice, "request-1", NOW, LATER)
    assert tokens(public_spec(alg=alg)).verify(issued.text, NOW).principal == alice


@pytest.mark.parametrize("alg", PRIVATE)
def test_a_token_is_a_jwt_that_others_can_read(alg: str) -> None:
    text = tokens(spec(alg=alg)).issue(alice, "request-1", NOW, LATER).text
    read = jwt.decode_complete(
        text,
        PRIVATE[alg].public_key(),
        [alg],
        audience="test",
        issuer="issuer",
        options={"verify_exp": False, "verify_nbf": False, "verify_iat": False},
    )
    assert read["header"] == {"alg": alg, "kid": "one", "typ": "taskiq-principal+jwt"}
    assert read["payload"].pop("jti")
    assert read["payload"] == {name: value for name, value in CLAIMS.items() if name != "jti"} | {"api_key_id": "key-1"}


def test_a_token_holds_no_permissions_where_its_principal_has_none() -> None:
    text = tokens().issue(Principal("alice"), "request-1", NOW, LATER).text
    assert "permissions" not in jwt.decode(text, options={"verify_signature": False})


def test_two_tokens_of_one_principal_can_be_told_apart() -> None:
    issuing = tokens()
    assert issuing.issue(alice, "a", NOW, LATER).jti != issuing.issue(alice, "a", NOW, LATER).jti


def test_tokens_are_refused_for_their_own_reason() -> None:
    text = tokens().issue(alice, "request-1", NOW, LATER).text
    assert reason(text, issuer="another") == "wrong_issuer"
    assert reason(text, audience="production") == "wrong_audience"
    assert reason(text, spec(secret=OTHER_SECRET)) == "bad_signature"
    assert reason(text, spec("two")) == "unknown_key"
    assert reason(text, spec(uses=frozenset({Use.SEND}))) == "unknown_key"
    assert reason(text, public_spec()) == "wrong_algorithm"
    assert reason(text, now=NOW - 11) == "not_yet_valid"
    assert reason(text, now=LATER + 10) == "expired"
    assert reason(issue(CLAIMS, use=Use.SEND)) == "bad_signature"
    assert reason(issue(CLAIMS, {"typ": "JWT"})) == "wrong_type"
    assert reason(issue(CLAIMS, {"typ": "taskiq-message+jws"})) == "wrong_type"
    assert reason(issue({**CLAIMS, "iss": None})) == "wrong_issuer"
    assert reason(issue({**CLAIMS, "aud": ["test"]})) == "wrong_audience"
    assert reason(f"{text}x") in {"malformed", "bad_signature"}
    assert reason(None) == reason(7) == reason([text]) == reason("") == "malformed"


@pytest.mark.parametrize("name", sorted(CLAIMS.keys() - {"permissions"}))
def test_a_token_without_a_claim_is_refused(name: str) -> None:
    assert reason(issue({key: value for key, value in CLAIMS.items() if key != name})) == "invalid_claims"


@pytest.mark.parametrize(
    "claims",
    [
        {"sub": ""},
        {"sub": 7},
        {"sub": None},
        {"roles": "processor"},
        {"roles": [1]},
        {"roles": None},
        {"roles": {"admin": 1}},
        {"permissions": "admin"},
        {"permissions": ["fly"]},
        {"permissions": {"admin": True}},
        {"pipelines": "*"},
        {"pipelines": None},
        {"pipelines": {"a": 1}},
        {"api_key_id": 7},
        {"api_key_id": ""},
        {"txn": ""},
        {"txn": None},
        {"jti": 1},
        {"exp": None},
        {"exp": True},
        {"exp": 2e9},
        {"exp": "2000000000"},
        {"nbf": False},
        {"nbf": 0.5},
    ],
    ids=str,
)
def test_a_claim_of_another_type_is_refused(claims: dict[str, Any]) -> None:
    assert reason(issue(CLAIMS | claims)) == "invalid_claims"


@given(json_values | st.dictionaries(st.sampled_from([*CLAIMS, "api_key_id"]), json_values).map(lambda c: CLAIMS | c))
def test_whatever_an_issuer_signs_is_a_principal_or_a_refusal(claims: object) -> None:
    try:
        token = tokens().verify(issue(claims), NOW)
    except AuthenticationError:
        return
    assert isinstance(claims, dict)
    assert token.principal.subject == claims["sub"]


def test_a_token_that_is_known_by_its_text_still_expires() -> None:
    knowing = tokens()
    text = knowing.issue(alice, "request-1", NOW, LATER).text
    assert knowing.verify(text, LATER + 9) is knowing.verify(text, NOW)
    for now, expected in ((LATER + 10, "expired"), (NOW - 11, "not_yet_valid")):
        with pytest.raises(AuthenticationError) as refusal:
            knowing.verify(text, now)
        assert refusal.value.reason == expected


def test_a_token_that_is_known_by_its_text_is_refused_when_the_time_of_its_key_is_over() -> None:
    knowing = tokens(spec(not_after=NOW + 60))
    text = knowing.issue(alice, "request-1", NOW, LATER).text
    assert knowing.verify(text, NOW + 69).principal == alice
    with pytest.raises(AuthenticationError) as refusal:
        knowing.verify(text, NOW + 70)
    assert refusal.value.reason == "unknown_key"


def test_another_spelling_of_a_known_token_is_not_known() -> None:
    knowing = tokens()
    text = knowing.issue(alice, "request-1", NOW, LATER).text
    for spelling in (f"{text}=", f" {text}", text.swapcase(), text + text[-1]):
        with pytest.raises(AuthenticationError):
            knowing.verify(spelling, NOW)


def test_only_so_many_tokens_are_kept_and_others_are_verified_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(principal_token, "_CACHE_SIZE", 2)
    knowing = tokens()
    issued = [knowing.issue(alice, str(number), NOW, LATER) for number in range(5)]
    for token in issued:
        assert knowing.verify(token.text, NOW) == token


def test_a_refused_token_is_not_known_afterwards() -> None:
    knowing = tokens()
    forged = tokens(spec(secret=OTHER_SECRET)).issue(alice, "request-1", NOW, LATER).text
    for _ in range(2):
        with pytest.raises(AuthenticationError) as refusal:
            knowing.verify(forged, NOW)
        assert refusal.value.reason == "bad_signature"


def test_a_principal_that_does_not_fit_into_a_token_is_not_issued() -> None:
    with pytest.raises(AuthenticationError, match="give it fewer roles and pipelines") as refusal:
        tokens().issue(Principal("alice", (f"role-{number}" for number in range(1000))), "request-1", NOW, LATER)
    assert refusal.value.reason == "oversized"


def test_who_holds_no_key_to_issue_with_cannot_issue() -> None:
    with pytest.raises(AuthenticationError) as refusal:
        tokens(public_spec()).issue(alice, "request-1", NOW, LATER)
    assert refusal.value.reason == "cannot_issue"


def test_a_token_does_not_show_its_text() -> None:
    token = tokens().issue(alice, "request-1", NOW, LATER)
    assert token.text not in f"{token!r} {token} {[token]}"
    assert "alice" in repr(token)


@pytest.mark.parametrize("keys", [Keyring.derived(SECRET), keyring()], ids=["jwt_secret", "a secret of signing_keys"])
def test_the_key_of_a_secret_is_derived_as_the_readme_says(keys: Keyring) -> None:
    text = PrincipalTokens(keys, "issuer", "audience", leeway=10).issue(alice, "txn", NOW, LATER).text
    key = HKDF(hashes.SHA256(), length=32, salt=None, info=b"taskiq-flow-security/v1/issue").derive(SECRET.encode())
    options: Any = {"verify_exp": False, "verify_nbf": False, "verify_iat": False}
    claims = jwt.decode(text, key, algorithms=["HS256"], audience="audience", issuer="issuer", options=options)
    assert claims["sub"] == "alice"
    with pytest.raises(jwt.InvalidSignatureError):
        jwt.decode(text, SECRET, algorithms=["HS256"], audience="audience", options=options)
