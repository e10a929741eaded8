"""All keys of a process: who signs next, and what each verifies."""

from __future__ import annotations

from collections.abc import Iterable

from taskiq_flow_security.core.reasons import Reason
from taskiq_flow_security.errors import AuthenticationError
from taskiq_flow_security.tokens.keys import Key, KeySpec, Use, derive, load


class Keyring:
    """All keys of a process. The first usable one signs, all verify."""

    def __init__(self, keys: Iterable[Key]) -> None:
        self._keys = tuple(keys)
        self._by_kid = {(key.use, key.kid): key for key in self._keys}
        self._signers = {use: [k for k in self._keys if k.use is use and k.signs] for use in Use}
        self.revoke(())

    @classmethod
    def from_specs(cls, specs: Iterable[KeySpec]) -> Keyring:
        """Parse key material. Raises `ConfigurationError` for a key that its algorithm cannot use."""
        return cls(key for spec in specs for key in load(spec))

    @classmethod
    def derived(cls, secret: str) -> Keyring:
        """HS256 keys for every use from one secret, each independent of the others and of the secret itself."""
        kid = f"derived-{derive(secret, 'kid')[:6].hex()}"
        return cls.from_specs([KeySpec(kid=kid, alg="HS256", uses=frozenset(Use), secret=secret)])

    def revoke(self, kids: Iterable[str]) -> None:
        """Neither sign with these keys any more nor believe what they have signed; no others than these."""
        self._revoked = frozenset(kids)
        self.lasting = {
            use: keys[0]
            for use, keys in self._signers.items()
            if keys and keys[0].lasts and keys[0].kid not in self._revoked
        }
        """The key that signs each use whenever, until it is revoked: the first one, where it has no validity window."""
        self._believed = {name: key for name, key in self._by_kid.items() if key.lasts and key.kid not in self._revoked}
        """The keys that verify, whenever."""

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

    def signer(self, use: Use, now: float, until: float | None = None) -> Key:
        """The key to sign with: the first that can be used, of those that can still be used to verify `until` then, if
        there is one. Raises `AuthenticationError` where this process has none.
        """
        if (lasting := self.lasting.get(use)) is not None:
            return lasting
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

    def verifier(self, use: Use, kid: str, now: float, leeway: float, *, or_else: Use | None = None) -> Key:
        """The key of this id for this use or, if there is none, for that one.

        Raises `AuthenticationError` if there is none, or it is over or revoked.
        """
        if (believed := self._believed.get((use, kid))) is not None:
            return believed
        key = self._by_kid.get((use, kid))
        if key is None and or_else is not None:
            key = self._by_kid.get((or_else, kid))
        if key is None or not key.usable(now, leeway):
            raise AuthenticationError(
                Reason.UNKNOWN_KEY,
                "No usable key of this process has that id; give every process the same jwt_secret, or list the "
                "signer's public key in signing_keys.",
            )
        if kid in self._revoked:
            raise AuthenticationError(Reason.REVOKED, "The key that signed this has been revoked.")
        return key
