"""Keys of every algorithm, made once."""

from __future__ import annotations

from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from taskiq_flow_security.tokens.keyring import Keyring
from taskiq_flow_security.tokens.keys import KeySpec, Use

NOW = 1_800_000_000.0
SECRET = "a-secret-of-more-than-32-bytes-0123456789"
OTHER_SECRET = "another-secret-of-more-than-32-bytes-0123"

PRIVATE: dict[str, Any] = {
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "RS256": rsa.generate_private_key(65537, 2048),
}
ALGORITHMS = ["HS256", *PRIVATE]


def private_pem(key: Any) -> str:
    return str(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode())


def public_pem(key: Any) -> str:
    return str(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode())


def spec(kid: str = "one", alg: str = "HS256", **changes: Any) -> KeySpec:
    """A key for everything, with these changes."""
    material = {"secret": SECRET} if alg == "HS256" else {"private_key": private_pem(PRIVATE[alg])}
    settings: dict[str, Any] = {"kid": kid, "alg": alg, "uses": frozenset(Use), **material}
    return KeySpec(**(settings | changes))


def public_spec(kid: str = "one", alg: str = "EdDSA", **changes: Any) -> KeySpec:
    """The same key where this process only verifies."""
    if alg == "HS256":
        return spec(kid, alg, verify_only=True, **changes)
    return spec(kid, alg, private_key=None, public_key=public_pem(PRIVATE[alg]), **changes)


def keyring(*specs: KeySpec) -> Keyring:
    return Keyring.from_specs(specs or [spec()])
