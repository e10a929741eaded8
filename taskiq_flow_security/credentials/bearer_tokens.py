"""Bearer tokens (JWT) of an identity provider."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from taskiq_flow_security.core.principal import ANONYMOUS, OWN_SUBJECTS, Permission, Principal
from taskiq_flow_security.core.reasons import Reason
from taskiq_flow_security.errors import AuthenticationError, ConfigurationError
from taskiq_flow_security.tokens.jws import MAX_BYTES, check_times

_logger = logging.getLogger(__name__)

_BEARER_TYPES = frozenset({"jwt", "at+jwt"})
"""RFC 7519 section 5.1 and RFC 9068 section 2.1, in lower case. A token of another declared type is no bearer token."""

_KEY_HEADERS = frozenset({"crit", "jku", "jwk", "x5u", "x5c"})
"""Header parameters by which a token would bring its own key or its own rules (RFC 8725 section 3.10)."""

_TOO_LATE = 253_402_300_800
"""The year 10000, in seconds since the epoch: whoever names a later moment counts in milliseconds."""

_PUBLIC_ALGORITHMS = frozenset(
    {
        "RS256",
        "RS384",
        "RS512",
        "PS256",
        "PS384",
        "PS512",
        "ES256",
        "ES384",
        "ES512",
        "EdDSA",
    }
)
_ALGORITHMS = ", ".join(sorted(_PUBLIC_ALGORITHMS))

_CURVES: dict[object, frozenset[object]] = {
    "EC": frozenset({"P-256", "P-384", "P-521"}),
    "OKP": frozenset({"Ed25519", "Ed448"}),
}
"""By the type of a key, those that the algorithms know."""

_SECRET_PARAMETERS = frozenset({"d", "k", "p", "priv"})
"""RFC 7518 sections 6.2.2, 6.3.2 and 6.4; the private keys of the type ``AKP``."""


@dataclass(frozen=True, slots=True)
class BearerKey:
    """A key that verifies bearer tokens, with the one algorithm that it is for."""

    alg: str
    key: Any = field(repr=False)
    kid: str | None = None


class BearerTokens:
    """Verifies bearer tokens as RFC 8725 asks: the algorithm belongs to the key, and all claims are checked."""

    def __init__(
        self,
        keys: Iterable[BearerKey],
        *,
        audience: str | None,
        issuer: str | None,
        require_exp: bool,
        leeway: float,
    ) -> None:
        self._keys = tuple(keys)
        self._audience = audience
        self._issuer = issuer
        self._required = ["sub", "roles", *(["exp"] if require_exp else [])]
        self._leeway = leeway

    def authenticate(self, token: object, txn: str, now: float) -> Principal:
        """The principal of a bearer token, or `AuthenticationError`."""
        if not self._keys:
            raise AuthenticationError(
                Reason.BEARER_NOT_ACCEPTED,
                "Bearer tokens are not accepted here; set jwt_secret, jwt_public_keys or jwt_jwks_file.",
            )
        if not isinstance(token, str):
            raise AuthenticationError(Reason.MALFORMED, "Not a well-formed token.")
        if len(token) > MAX_BYTES:
            raise AuthenticationError(Reason.OVERSIZED, f"A token may have {MAX_BYTES} bytes at most.")
        try:
            claims = self._verify(token)
            not_before, expires_at = _seconds(claims, "nbf", 0), _seconds(claims, "exp", math.inf)
            principal = _principal(claims, txn, None if expires_at == math.inf else expires_at)
        except AuthenticationError:
            raise
        except jwt.PyJWTError as error:
            raise _authentication_error(error) from None
        except Exception:  # noqa: BLE001 (whatever a hostile token does to a parser, it gets nobody in)
            raise AuthenticationError(Reason.INVALID_CLAIMS, "The token's claims are not as they should be.") from None
        check_times(not_before, expires_at, now, self._leeway)
        return principal

    def _verify(self, token: str) -> dict[str, Any]:
        header = jwt.get_unverified_header(token)
        if not _KEY_HEADERS.isdisjoint(header):
            raise AuthenticationError(Reason.MALFORMED, "The token's header names keys or rules of its own.")
        if str(header.get("typ", "JWT")).lower().removeprefix("application/") not in _BEARER_TYPES:
            raise AuthenticationError(Reason.WRONG_TYPE, "Not a bearer token.")
        kid = header.get("kid")
        keys = [key for key in self._keys if kid is None or key.kid is None or key.kid == kid]
        if not keys:
            raise AuthenticationError(Reason.UNKNOWN_KEY, "No key of this process has that id.")
        keys = [key for key in keys if key.alg == header.get("alg")]
        if not keys:
            raise AuthenticationError(Reason.WRONG_ALGORITHM, "No key of this process is for that algorithm.")
        for key in keys[:-1]:
            try:
                return self._decode(token, key)
            except jwt.InvalidSignatureError:
                continue
        return self._decode(token, keys[-1])

    def _decode(self, token: str, key: BearerKey) -> dict[str, Any]:
        return jwt.decode(
            token,
            key.key,
            algorithms=[key.alg],
            audience=self._audience,
            issuer=self._issuer,
            # PyJWT would read the clock; the times are checked by the caller.
            options={
                "require": self._required,
                "verify_exp": False,
                "verify_nbf": False,
                "verify_iat": False,
            },
        )


def bearer_key_from_pem(pem: str) -> BearerKey:
    """A public key from PEM; its type fixes the algorithm. Raises `ConfigurationError`."""
    try:
        key = load_pem_public_key(pem.encode())
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if isinstance(key, RSAPublicKey) and key.key_size >= 2048:
        return BearerKey("RS256", key)
    if isinstance(key, EllipticCurvePublicKey) and key.curve.name == "secp256r1":
        return BearerKey("ES256", key)
    if isinstance(key, Ed25519PublicKey):
        return BearerKey("EdDSA", key)
    raise ConfigurationError("jwt_public_keys: give PEM public keys of type RSA (2048 bits or more), P-256 or Ed25519.")


def bearer_keys_from_jwks(path: Path) -> list[BearerKey]:
    """The signature keys of a JWK set file. Raises `ConfigurationError`.

    A key that is for something else, or of a kind that is not known here, is left out (RFC 7517 section 5), which is
    logged; one that is secret, or wrong, is an error.
    """
    try:
        entries = [dict(entry) for entry in json.loads(path.read_text())["keys"]]
    except OSError as error:
        raise ConfigurationError(f"jwt_jwks_file: {path} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, RecursionError):
        entries = []
    keys = []
    for number, entry in enumerate(entries, 1):
        name = f"key {number} ({str(entry.get('kid', 'without a kid'))[:64]!r})"
        try:
            if _is_for_bearer_tokens(entry):
                keys.append(_bearer_key_from_jwk(entry))
            else:
                _logger.info("jwt_jwks_file: %s is left out, as it signs by none of %s.", name, _ALGORITHMS)
        except (ValueError, TypeError, KeyError, AttributeError, jwt.PyJWTError):
            problem = f"jwt_jwks_file: {name} of {path} is not a public key that is good enough for {_ALGORITHMS}."
        else:
            continue
        raise ConfigurationError(problem)  # out here, so that it does not carry the key along
    if not keys:
        raise ConfigurationError(f"jwt_jwks_file: {path} must be a JWK set of public keys for {_ALGORITHMS}.")
    return keys


def _is_for_bearer_tokens(entry: dict[str, Any]) -> bool:
    """Whether a key is one to verify with, by algorithms that are known here. Raises `ValueError` for one that is
    secret, whatever it is for.
    """
    kind = entry.get("kty")
    if kind == "oct" or not _SECRET_PARAMETERS.isdisjoint(entry):
        raise ValueError("a secret")
    if entry.get("use", "sig") != "sig" or "verify" not in entry.get("key_ops", ["verify"]):
        return False
    if entry.get("alg", "RS256") not in _PUBLIC_ALGORITHMS:
        return False
    if kind == "RSA":
        return True
    return kind in _CURVES and ("crv" not in entry or entry["crv"] in _CURVES[kind])


def _bearer_key_from_jwk(entry: dict[str, Any]) -> BearerKey:
    jwk = jwt.PyJWK(entry)
    if jwk.algorithm_name not in _PUBLIC_ALGORITHMS:
        raise ValueError
    if jwk.Algorithm.check_key_length(jwk.key) is not None:
        raise ValueError
    return BearerKey(jwk.algorithm_name, jwk.key, jwk.key_id)


def _principal(claims: dict[str, Any], txn: str, expires_at: float | None) -> Principal:
    roles, permissions, pipelines = (
        claims["roles"],
        claims.get("permissions"),
        claims.get("pipelines", []),
    )
    for names in (roles, permissions or [], pipelines):
        if not isinstance(names, list):
            raise TypeError
    if permissions is not None:
        # An identity provider names other applications' permissions too; they grant nothing here.
        permissions = [name for name in permissions if name in set(Permission)]
    if claims["sub"] == ANONYMOUS.subject or str(claims["sub"]).startswith(OWN_SUBJECTS):
        raise ValueError("the subject of somebody else")
    return Principal(
        claims["sub"],
        roles,
        permissions,
        pipelines,
        txn=txn,
        expires_at=expires_at,
        token_id=claims.get("jti"),
        token_issued_at=_seconds(claims, "iat", 0),  # without one, it is from before whatever is asked for
    )


def _seconds(claims: dict[str, Any], name: str, default: float) -> float:
    if name not in claims:
        return default
    value = claims[name]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise TypeError
    if value >= _TOO_LATE:
        raise ValueError("no seconds since the epoch")
    return value


_REASONS: tuple[tuple[type[Exception], Reason, str], ...] = (
    (jwt.InvalidSignatureError, Reason.BAD_SIGNATURE, "The signature does not match."),
    (
        jwt.InvalidAlgorithmError,
        Reason.WRONG_ALGORITHM,
        "The key is not for that algorithm.",
    ),
    (
        jwt.InvalidAudienceError,
        Reason.WRONG_AUDIENCE,
        "The token is for another audience.",
    ),
    (jwt.InvalidIssuerError, Reason.WRONG_ISSUER, "The token is from another issuer."),
    (jwt.DecodeError, Reason.MALFORMED, "Not a well-formed token."),
)


def _authentication_error(error: jwt.PyJWTError) -> AuthenticationError:
    for kind, reason, message in _REASONS:
        if isinstance(error, kind):
            return AuthenticationError(reason, message)
    return AuthenticationError(
        Reason.INVALID_CLAIMS,
        "The token needs the claims sub, roles (a list) and exp, and whatever is configured.",
    )
