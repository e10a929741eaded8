"""One key: its algorithm, what it may be used for and when, and how its material is read.

The algorithm and the use belong to the key, never to a token's header (RFC 8725 sections 3.1 and 3.2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ec import (
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.hazmat.primitives.hmac import HMAC
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from jwt import InvalidKeyError
from jwt.algorithms import get_default_algorithms

from taskiq_flow_security.core.reasons import Reason
from taskiq_flow_security.core.string_enum import StringEnum
from taskiq_flow_security.errors import AuthenticationError, ConfigurationError

Sign = Callable[[bytes], bytes]
Verify = Callable[[bytes, bytes], bool]
"""Whether the data, which comes first, has this signature."""


class Use(StringEnum):
    """What a key signs. A key for one use proves nothing for another."""

    ISSUE = "issue"
    """Principals."""
    SEND = "send"
    """Messages."""
    FIRE = "fire"
    """Messages that a schedule sends as its grant says: for a scheduler that is to be able to send nothing else."""
    RESULT = "result"
    """Results and progress. Whoever may send may sign them: a worker needs no key more."""


@dataclass(frozen=True, slots=True)
class Key:
    """One key with its algorithm, for one use."""

    kid: str
    alg: str
    use: Use
    sign: Sign = field(repr=False)
    """Raises `AuthenticationError` where the key does not sign."""
    verify: Verify = field(repr=False)
    signs: bool = True
    """Whether this process has what it takes to sign with it, and may."""
    not_before: float | None = None
    not_after: float | None = None

    @property
    def lasts(self) -> bool:
        """Whether it has no validity window."""
        return self.not_before is None and self.not_after is None

    def usable(self, now: float, leeway: float = 0) -> bool:
        """Whether `now` lies within the key's validity window, widened by `leeway` seconds."""
        if self.not_before is not None and now + leeway < self.not_before:
            return False
        return self.not_after is None or now - leeway < self.not_after


@dataclass(frozen=True, slots=True)
class KeySpec:
    """Key material as configured, before it is parsed. Exactly one of the three is given."""

    kid: str
    alg: str
    uses: frozenset[Use]
    secret: str | None = field(default=None, repr=False)
    private_key: str | None = field(default=None, repr=False)
    public_key: str | None = field(default=None, repr=False)
    verify_only: bool = False
    not_before: float | None = None
    not_after: float | None = None


def load(spec: KeySpec) -> Iterator[Key]:
    """The keys that configured material makes, one for each use.

    Raises `ConfigurationError` for material that its algorithm cannot use.
    """
    for use in Use:  # not over the set, so that the order is always the same
        if (Use.SEND if use is Use.RESULT else use) not in spec.uses:
            continue
        # The same secret for all uses must not mean the same key.
        sign, verify = _load_pem(spec) if spec.secret is None else _hs256(derive(spec.secret, use))
        yield Key(
            kid=spec.kid,
            alg=spec.alg,
            use=use,
            sign=_sign_nothing if sign is None or spec.verify_only else sign,
            verify=verify,
            signs=sign is not None and not spec.verify_only,
            not_before=spec.not_before,
            not_after=spec.not_after,
        )


def derive(secret: str, purpose: str) -> bytes:
    """HKDF (RFC 5869) with an `info` of its own for each purpose."""
    info = f"taskiq-flow-security/v1/{purpose}".encode()
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=info).derive(secret.encode())


def _sign_nothing(_: bytes) -> NoReturn:
    raise AuthenticationError(Reason.CANNOT_ISSUE, "This process may only verify with that key.")


def _hs256(secret: bytes) -> tuple[Sign, Verify]:
    """HS256 (RFC 7518 section 3.2) by a MAC that is keyed once and copied for each message; PyJWT's keys one anew."""
    keyed = HMAC(secret, hashes.SHA256())

    def sign(data: bytes) -> bytes:
        mac = keyed.copy()
        mac.update(data)
        return mac.finalize()

    def verify(data: bytes, signature: bytes) -> bool:
        mac = keyed.copy()
        mac.update(data)
        try:
            mac.verify(signature)
        except InvalidSignature:
            return False
        return True

    return sign, verify


_ALGORITHMS = get_default_algorithms()
_PRIVATE_KEYS: dict[str, Any] = {
    "EdDSA": Ed25519PrivateKey,
    "ES256": EllipticCurvePrivateKey,
    "RS256": RSAPrivateKey,
}
_PUBLIC_KEYS: dict[str, Any] = {
    "EdDSA": Ed25519PublicKey,
    "ES256": EllipticCurvePublicKey,
    "RS256": RSAPublicKey,
}


def _load_pem(spec: KeySpec) -> tuple[Sign | None, Verify]:
    algorithm: Any = _ALGORITHMS[spec.alg]  # the types of its keys are not the same for all
    signing: Any = None
    verifying: Any
    try:
        if spec.private_key is not None:
            signing = serialization.load_pem_private_key(spec.private_key.encode(), password=None)
            if not isinstance(signing, _PRIVATE_KEYS[spec.alg]):
                raise InvalidKeyError
            verifying = signing.public_key()
        else:
            verifying = serialization.load_pem_public_key((spec.public_key or "").encode())
            if not isinstance(verifying, _PUBLIC_KEYS[spec.alg]):
                raise InvalidKeyError
        algorithm.prepare_key(verifying)  # checks the curve
        usable = algorithm.check_key_length(verifying) is None
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidKeyError):
        usable = False
    if not usable:
        kind = "private_key" if spec.private_key is not None else "public_key"
        raise ConfigurationError(
            f"signing_keys: {kind} of {spec.kid!r} cannot be used with {spec.alg}; "
            "give an unencrypted PEM key of that type (EdDSA: Ed25519, ES256: P-256, RS256: RSA of 2048 bits or more)."
        )
    sign = None if signing is None else partial(algorithm.sign, key=signing)
    return sign, lambda data, signature: algorithm.verify(data, verifying, signature)
