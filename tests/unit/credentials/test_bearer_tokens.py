"""Who gets in with a bearer token, and why all others do not."""

from __future__ import annotations

import base64
import json
import time
import traceback
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import RSAAlgorithm

from taskiq_flow_security import (
    AuthenticationError,
    ConfigurationError,
    FlowSecurity,
    Permission,
    Principal,
    TaskiqFlowConfig,
)

SECRET = "s" * 32
RSA = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()
PRIVATE: dict[str, Any] = {"RS256": RSA, "ES256": EC, "EdDSA": ED}
CLAIMS: dict[str, Any] = {"sub": "alice", "roles": ["processor"], "exp": time.time() + 36_000}


def pem(alg: str) -> str:
    return str(PRIVATE[alg].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode())


def security(**settings: Any) -> FlowSecurity:
    return FlowSecurity(TaskiqFlowConfig(**({"jwt_secret": SECRET} | settings)))


def token(key: Any = SECRET, alg: str = "HS256", headers: dict[str, Any] | None = None, **claims: Any) -> str:
    """A token with these claims; one that is ``None`` is left out."""
    merged = {name: value for name, value in (CLAIMS | claims).items() if value is not None}
    return jwt.encode(merged, key, alg, headers=headers)


def encode(part: bytes) -> str:
    return base64.urlsafe_b64encode(part).rstrip(b"=").decode()


async def reason(text: Any, **settings: Any) -> str:
    with pytest.raises(AuthenticationError) as refusal:
        await security(**settings).authenticate(bearer=text)
    return refusal.value.reason


async def test_subject_and_roles_are_taken_from_the_claims() -> None:
    principal = await security().authenticate(bearer=token())
    assert principal == Principal("alice", ["processor"])
    assert principal.permissions is None
    assert principal.expires_at == CLAIMS["exp"]


async def test_permissions_and_pipelines_are_taken_from_the_claims_if_they_are_there() -> None:
    text = token(permissions=["execute", "billing:read"], pipelines=["a"])
    principal = await security().authenticate(bearer=text)
    assert principal.permissions == frozenset({Permission.EXECUTE})
    assert principal.pipelines == frozenset({"a"})


@pytest.mark.parametrize("alg", PRIVATE)
async def test_a_public_key_verifies_with_the_algorithm_of_its_type(alg: str) -> None:
    principal = await security(jwt_public_keys=[pem(alg)]).authenticate(bearer=token(PRIVATE[alg], alg))
    assert principal.subject == "alice"


async def test_each_of_several_public_keys_verifies() -> None:
    other = ed25519.Ed25519PrivateKey.generate()
    other_pem = other.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    both = security(jwt_public_keys=[pem("EdDSA"), other_pem])
    for key in (ED, other):
        assert (await both.authenticate(bearer=token(key, "EdDSA"))).subject == "alice"


def jwks(path: Path, *keys: dict[str, Any]) -> Path:
    path.write_text(json.dumps({"keys": list(keys)}))
    return path


def jwk(alg: str, **members: Any) -> dict[str, Any]:
    algorithm = jwt.get_algorithm_by_name(alg)
    return {**json.loads(algorithm.to_jwk(PRIVATE[alg].public_key())), "alg": alg, "use": "sig", **members}


@pytest.mark.parametrize("alg", PRIVATE)
async def test_a_key_of_a_jwk_set_verifies_tokens_that_name_it(alg: str, tmp_path: Path) -> None:
    path = jwks(tmp_path / "jwks.json", jwk(alg, kid="one"), {"kty": "RSA", "use": "enc"})
    named = token(PRIVATE[alg], alg, {"kid": "one"})
    assert (await security(jwt_jwks_file=path).authenticate(bearer=named)).subject == "alice"
    other = token(PRIVATE[alg], alg, {"kid": "two"})
    assert await reason(other, jwt_jwks_file=path, jwt_secret=None, signing_keys=SIGNING) == "unknown_key"


SIGNING = [{"kid": "k", "alg": "HS256", "uses": ["issue", "send"], "secret": "x" * 32}]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"keys": []}',
        '{"keys": [{"kty": "oct", "k": "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0"}]}',
        '{"keys": [{"kty": "RSA", "n": "AQAB", "e": "AQAB"}]}',
        '{"keys": "no"}',
        "[" * 5000,
    ],
)
def test_a_jwk_set_without_usable_public_keys_is_a_configuration_error(content: str, tmp_path: Path) -> None:
    path = tmp_path / "jwks.json"
    path.write_text(content)
    with pytest.raises(ConfigurationError, match="jwt_jwks_file"):
        security(jwt_jwks_file=path)


UNKNOWN_KINDS: list[dict[str, Any]] = [
    {"kty": "XX", "kid": "other"},
    {"kty": "RSA", "alg": "RSA-OAEP", "kid": "other", "n": "AQAB", "e": "AQAB"},
    {"kty": "EC", "crv": "secp256k1", "kid": "other", "x": "AA", "y": "AA"},
    {"kty": "OKP", "crv": "X25519", "kid": "other", "x": "AA"},
    {"kty": "RSA", "use": "enc", "kid": "other"},
    {"kty": "RSA", "key_ops": ["wrapKey"], "kid": "other"},
]


@pytest.mark.parametrize("other", UNKNOWN_KINDS, ids=lambda key: "-".join(map(str, key.values())))
async def test_a_key_of_another_kind_in_a_jwk_set_is_left_out_and_logged(
    other: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    path = jwks(tmp_path / "jwks.json", other, jwk("EdDSA", kid="one"))
    named = token(PRIVATE["EdDSA"], "EdDSA", {"kid": "one"})
    assert (await security(jwt_jwks_file=path).authenticate(bearer=named)).subject == "alice"
    assert "jwt_jwks_file: key 1 ('other') is left out" in caplog.text


SECRETS: dict[str, dict[str, Any]] = {
    "symmetric": {"kty": "oct", "k": "c2VjcmV0"},
    "symmetric, to encrypt": {"kty": "oct", "k": "c2VjcmV0", "use": "enc"},
    "private": {**jwk("RS256"), "d": "c2VjcmV0"},
    "private, with its exponent left out": {**jwk("RS256"), "p": "c2VjcmV0"},
    "private, to encrypt": {**jwk("RS256"), "d": "c2VjcmV0", "use": "enc"},
    "private, of another kind": {"kty": "AKP", "priv": "c2VjcmV0"},
    "private, of another curve": {"kty": "EC", "crv": "secp256k1", "x": "AA", "y": "AA", "d": "c2VjcmV0"},
}
WRONG: dict[str, dict[str, Any]] = {
    "weak": {"kty": "RSA", "n": "AQAB", "e": "AQAB"},
    "no key": {"kty": []},
    "no curve": {"kty": "EC", "x": "AA", "y": "AA"},
    "another algorithm": {**jwk("RS256"), "alg": "ES256"},
}


@pytest.mark.parametrize("wrong", [*SECRETS.values(), *WRONG.values()], ids=[*SECRETS, *WRONG])
def test_a_key_that_should_stand_in_no_jwk_set_is_an_error_that_names_it(wrong: dict[str, Any], tmp_path: Path) -> None:
    encrypts = {"kty": "RSA", "use": "enc"}
    path = jwks(tmp_path / "jwks.json", encrypts, jwk("EdDSA", kid="one"), {**wrong, "kid": "wrong" * 100})
    with pytest.raises(ConfigurationError, match=r"jwt_jwks_file: key 3 \('(wrong){12}wron'\) of ") as refusal:
        security(jwt_jwks_file=path)
    assert "c2VjcmV0" not in "".join(traceback.format_exception(refusal.value))


def test_a_jwk_set_that_is_not_there_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"jwt_jwks_file.*cannot be read"):
        security(jwt_jwks_file=tmp_path / "none.json")


@pytest.mark.parametrize("text", ["", "no key", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----"])
def test_a_public_key_that_is_none_is_a_configuration_error(text: str) -> None:
    with pytest.raises(ConfigurationError, match="jwt_public_keys"):
        security(jwt_public_keys=[text])


def test_a_small_rsa_key_and_another_curve_are_configuration_errors(tmp_path: Path) -> None:
    small = rsa.generate_private_key(65537, 1024).public_key()  # noqa: S505 (that is the point)
    curve = ec.generate_private_key(ec.SECP384R1()).public_key()
    for key in (small, curve):
        text = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
        with pytest.raises(ConfigurationError, match="jwt_public_keys"):
            security(jwt_public_keys=[text])
    path = tmp_path / "jwks.json"
    path.write_text(json.dumps({"keys": [RSAAlgorithm.to_jwk(small, as_dict=True) | {"alg": "RS256"}]}))
    with pytest.raises(ConfigurationError, match="jwt_jwks_file"):
        security(jwt_jwks_file=path)


@pytest.mark.parametrize(
    ("claims", "expected"),
    [
        ({"sub": None}, "invalid_claims"),
        ({"sub": ""}, "invalid_claims"),
        ({"sub": "api-key:0123456789abcdef"}, "invalid_claims"),
        ({"sub": "service:nightly"}, "invalid_claims"),
        ({"sub": "anonymous"}, "invalid_claims"),
        ({"roles": None}, "invalid_claims"),
        ({"roles": "processor"}, "invalid_claims"),
        ({"roles": [7]}, "invalid_claims"),
        ({"permissions": "admin"}, "invalid_claims"),
        ({"pipelines": "a"}, "invalid_claims"),
        ({"pipelines": {"a": 1}}, "invalid_claims"),
        ({"exp": None}, "invalid_claims"),
        ({"exp": "tomorrow"}, "invalid_claims"),
        ({"exp": True}, "invalid_claims"),
        ({"exp": (time.time() + 36_000) * 1000}, "invalid_claims"),
        ({"exp": 1}, "expired"),
        ({"exp": -1}, "expired"),
        ({"nbf": time.time() + 36_000}, "not_yet_valid"),
        ({"nbf": []}, "invalid_claims"),
        ({"aud": "another"}, "wrong_audience"),
    ],
)
async def test_wrong_claims_are_refused_with_their_reason(claims: dict[str, Any], expected: str) -> None:
    assert await reason(token(**claims)) == expected


async def test_audience_and_issuer_must_be_the_configured_ones() -> None:
    settings = {"jwt_audience": "tasks", "jwt_issuer": "https://idp"}
    good = token(aud="tasks", iss="https://idp")
    assert (await security(**settings).authenticate(bearer=good)).subject == "alice"
    assert await reason(token(aud="tasks", iss="https://other"), **settings) == "wrong_issuer"
    assert await reason(token(aud="others", iss="https://idp"), **settings) == "wrong_audience"
    assert await reason(token(), **settings) == "invalid_claims"


async def test_only_the_unsafe_setting_lets_in_what_never_expires() -> None:
    principal = await security(unsafe_jwt_without_exp=True).authenticate(bearer=token(exp=None))
    assert principal.expires_at is None


async def test_an_algorithm_belongs_to_its_key() -> None:
    # The public key as an HMAC secret, which PyJWT itself refuses to sign with.
    header, payload, _ = token().split(".")
    confused = f"{encode(json.dumps({'alg': 'HS256', 'typ': 'JWT'}).encode())}.{payload}"
    mac = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256).sign(
        confused.encode(), pem("RS256").encode()
    )
    only_rsa = {"jwt_public_keys": [pem("RS256")], "jwt_secret": None, "signing_keys": SIGNING}
    assert await reason(f"{confused}.{encode(mac)}", **only_rsa) == "wrong_algorithm"
    nothing = f"{encode(json.dumps({'alg': 'none', 'typ': 'JWT'}).encode())}.{payload}."
    assert await reason(nothing) == "wrong_algorithm"
    assert await reason(token(SECRET * 2, "HS512")) == "wrong_algorithm"
    assert header


@pytest.mark.parametrize(
    "header",
    [{"jku": "https://evil"}, {"jwk": {"kty": "oct"}}, {"x5u": "https://evil"}, {"x5c": ["AA"]}, {"crit": ["exp"]}],
)
async def test_a_header_that_brings_its_own_key_or_rules_is_refused(header: dict[str, Any]) -> None:
    protected = encode(json.dumps({"alg": "HS256", "typ": "JWT", **header}).encode())
    payload = token().split(".")[1]
    mac = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256).sign(
        f"{protected}.{payload}".encode(), SECRET.encode()
    )
    assert await reason(f"{protected}.{payload}.{encode(mac)}") in ("malformed", "invalid_claims")


async def test_a_token_of_another_declared_type_is_no_bearer_token() -> None:
    for typ in ("taskiq-principal+jwt", "dpop+jwt", "JOSE"):
        assert await reason(token(headers={"typ": typ})) == "wrong_type"
    assert (await security().authenticate(bearer=token(headers={"typ": "at+jwt"}))).subject == "alice"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "malformed"),
        ("a", "malformed"),
        ("a.b", "malformed"),
        ("a.b.c", "malformed"),
        ("....", "malformed"),
        (f"{encode(b'[' * 6000)}.e30.AAAA", "malformed"),
        (f"{encode(b'[' * 5000)}.e30.AAAA", "malformed"),
        ("x" * 9000, "oversized"),
        ("\ud800.e30.AAAA", "invalid_claims"),
        (7, "malformed"),
        (b"bytes", "malformed"),
    ],
    ids=["empty", "one part", "two parts", "no base64", "dots", "huge", "deep", "long", "surrogate", "number", "bytes"],
)
async def test_what_is_no_token_is_refused_with_its_reason(text: Any, expected: str) -> None:
    assert await reason(text) == expected


async def test_any_changed_byte_is_refused() -> None:
    text = token()
    for position in range(0, len(text), 7):
        changed = text[:position] + ("A" if text[position] != "A" else "B") + text[position + 1 :]
        assert await reason(changed)


async def test_without_any_key_no_bearer_token_is_accepted() -> None:
    assert await reason(token(), jwt_secret=None, signing_keys=SIGNING) == "bearer_not_accepted"


async def test_exactly_one_credential_must_be_given() -> None:
    with pytest.raises(AuthenticationError) as nothing:
        await security().authenticate()
    assert nothing.value.reason == "no_credentials"
    with pytest.raises(AuthenticationError) as both:
        await security().authenticate(api_key="k", bearer=token())
    assert both.value.reason == "several_credentials"


async def test_every_login_is_an_event_that_says_how_it_ended(caplog: pytest.LogCaptureFixture) -> None:
    await security().authenticate(bearer=token())
    with pytest.raises(AuthenticationError):
        await security().authenticate(bearer="x")
    records = [record for record in caplog.records if record.name == "taskiq_flow.audit"]
    assert [record.getMessage() for record in records] == ["authn_login_success", "authn_login_fail"]
    assert [record.__dict__["reason"] for record in records] == ["bearer", "malformed"]
