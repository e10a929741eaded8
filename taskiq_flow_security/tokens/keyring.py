"""Keys, what each may be used for and when, and who signs next.

The algorithm and the use belong to the key, never to a token's header (RFC 8725 sections 3.1 and 3.2).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

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


class JwsAlgorithm(Protocol):
    """The part of `jwt.algorithms.Algorithm` that is used here; its types depend on the algorithm."""

    def sign(self, msg: bytes, key: Any) -> bytes: ...
    def verify(self, msg: bytes, key: Any, sig: bytes) -> bool: ...


@dataclass(frozen=True, slots=True)
class Key:
    """One key with its algorithm, for one use."""

    kid: str
    alg: str
    use: Use
    algorithm: JwsAlgorithm = field(repr=False)
    signing: Any = field(repr=False)
    """What the algorithm signs with; ``None`` where this process only verifies."""
    verifying: Any = field(repr=False)
    not_before: float | None = None
    not_after: float | None = None

    def usable(self, now: float, leeway: float = 0) -> bool:
        """Whether `now` lies within the key's validity window, widened by `leeway` seconds."""
        if self.not_before is not None and now + leeway < self.not_before:
            return False
        return self.not_after is None or now - leeway < self.not_after

    def sign(self, data: bytes) -> bytes:
        """Sign with the key's own algorithm."""
        return self.algorithm.sign(data, self.signing)

    def verify(self, data: bytes, signature: bytes) -> bool:
        """Whether the signature is this key's."""
        return self.algorithm.verify(data, self.verifying, signature)


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


class Keyring:
    """All keys of a process. The first usable one signs, all verify."""

    def __init__(self, keys: Iterable[Key]) -> None:
        self._keys = tuple(keys)
        self._by_kid = {(key.use, key.kid): key for key in self._keys}
        self._signers = {use: [k for k in self._keys if k.use is use and k.signing is not None] for use in Use}
        self._revoked: frozenset[str] = frozenset()

    @classmethod
    def from_specs(cls, specs: Iterable[KeySpec]) -> Keyring:
        """Parse key material. Raises `ConfigurationError` for a key that its algorithm cannot use."""
        return cls(key for spec in specs for key in _load(spec))

    @classmethod
    def derived(cls, secret: str) -> Keyring:
        """HS256 keys for every use from one secret, each independent of the others and of the secret itself."""
        kid = f"derived-{_derive(secret, 'kid')[:6].hex()}"
        return cls.from_specs([KeySpec(kid=kid, alg="HS256", uses=frozenset(Use), secret=secret)])

    def revoke(self, kids: Iterable[str]) -> None:
        """Neither sign with these keys any more nor believe what they have signed; no others than these."""
        self._revoked = frozenset(kids)

    def without(self, kids: Iterable[str]) -> Keyring:
        """A keyring of all keys but these, whatever is revoked here."""
        gone = frozenset(kids)
        return Keyring(key for key in self._keys if key.kid not in gone)

    def has(self, use: Use, now: float, leeway: float) -> bool:
        """Whether any key can be used to verify this use with."""
        return any(key.use is use and key.usable(now, leeway) for key in self._keys)

    def signs(self, use: Use, now: float) -> bool:
        """Whether this process has a key to sign this with."""
        return any(key.usable(now) and key.kid not in self._revoked for key in self._signers[use])

    def knows(self, use: Use, kid: str) -> bool:
        """Whether there is a key of this id for this use, usable or not."""
        return (use, kid) in self._by_kid

    def signer(self, use: Use, now: float, until: float | None = None) -> Key:
        """The key to sign with: the first that can be used, of those that can still be used to verify `until` then, if
        there is one. Raises `AuthenticationError` where this process has none.
        """
        first = None
        for key in self._signers[use]:
            if key.usable(now) and key.kid not in self._revoked:
                if until is None or key.not_after is None or key.not_after >= until:
                    return key
                first = first or key
        if first is not None:
            return first
        raise AuthenticationError(
            Reason.CANNOT_ISSUE,
            f'This process holds no usable key for "{use}"; add one with its secret or private key to signing_keys.',
        )

    def verifier(self, use: Use, kid: str, now: float, leeway: float) -> Key:
        """The key of this id for this use. Raises `AuthenticationError` if there is none, or it is over or revoked."""
        key = self._by_kid.get((use, kid))
        if key is None or not key.usable(now, leeway):
            raise AuthenticationError(
                Reason.UNKNOWN_KEY,
                "No usable key of this process has that id; give every process the same jwt_secret, or list the "
                "signer's public key in signing_keys.",
            )
        if kid in self._revoked:
            raise AuthenticationError(Reason.REVOKED, "The key that signed this has been revoked.")
        return key


class _HS256:
    """HS256 (RFC 7518 section 3.2) by a MAC that is keyed once and copied for each message; PyJWT's keys one anew."""

    def sign(self, msg: bytes, key: HMAC) -> bytes:
        mac = key.copy()
        mac.update(msg)
        return mac.finalize()

    def verify(self, msg: bytes, key: HMAC, sig: bytes) -> bool:
        mac = key.copy()
        mac.update(msg)
        try:
            mac.verify(sig)
        except InvalidSignature:
            return False
        return True


_ALGORITHMS = get_default_algorithms()
_HMAC_ALGORITHMS = {"HS256": _HS256()}
_PRIVATE_KEYS = {
    "EdDSA": Ed25519PrivateKey,
    "ES256": EllipticCurvePrivateKey,
    "RS256": RSAPrivateKey,
}
_PUBLIC_KEYS = {
    "EdDSA": Ed25519PublicKey,
    "ES256": EllipticCurvePublicKey,
    "RS256": RSAPublicKey,
}


def _load(spec: KeySpec) -> Iterable[Key]:
    algorithm = _HMAC_ALGORITHMS.get(spec.alg) or _ALGORITHMS[spec.alg]
    for use in Use:  # not over the set, so that the order is always the same
        if (Use.SEND if use is Use.RESULT else use) not in spec.uses:
            continue
        if spec.secret is not None:
            # The same secret for all uses must not mean the same key.
            signing = verifying = HMAC(_derive(spec.secret, use), hashes.SHA256())
        else:
            signing, verifying = _load_pem(spec)
        yield Key(
            kid=spec.kid,
            alg=spec.alg,
            use=use,
            algorithm=algorithm,
            signing=None if spec.verify_only else signing,
            verifying=verifying,
            not_before=spec.not_before,
            not_after=spec.not_after,
        )


def _load_pem(spec: KeySpec) -> tuple[Any, Any]:
    algorithm = _ALGORITHMS[spec.alg]
    try:
        if spec.private_key is not None:
            signing = serialization.load_pem_private_key(spec.private_key.encode(), password=None)
            if not isinstance(signing, _PRIVATE_KEYS[spec.alg]):
                raise InvalidKeyError
            verifying = signing.public_key()
        else:
            signing, verifying = (
                None,
                serialization.load_pem_public_key((spec.public_key or "").encode()),
            )
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
    return signing, verifying


def _derive(secret: str, purpose: str) -> bytes:
    """HKDF (RFC 5869) with an `info` of its own for each purpose."""
    info = f"taskiq-flow-security/v1/{purpose}".encode()
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=info).derive(secret.encode())
