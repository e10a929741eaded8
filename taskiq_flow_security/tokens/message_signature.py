"""The label ``taskiq_flow_signature``: a detached JWS over a whole message.

The payload is left out of the token (RFC 7515 appendix F) and signed as it is, not as base64url (RFC 7797). The header
carries when it was signed, how long the message may wait, and an id of its own.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from pydantic_core import to_json

from taskiq_flow_security.core.principal import UNRESTRICTED, Scope
from taskiq_flow_security.errors import UnsignableMessageError
from taskiq_flow_security.ids import new_id
from taskiq_flow_security.tokens import jws
from taskiq_flow_security.tokens.claims import Moment, ScopeClaim, Seconds
from taskiq_flow_security.tokens.jws import JwsHeader
from taskiq_flow_security.tokens.keyring import Keyring
from taskiq_flow_security.tokens.keys import Key, Use

SIGNATURE_LABEL = "taskiq_flow_signature"

TYP = "taskiq-message+jws"
SCHEDULE_TYP = "taskiq-schedule+jws"
"""Of what signs a schedule in its store, in the same way, which is no message."""

_MAX_TERMS = 5000
"""Bytes, so that the whole signature is no longer than `jws.MAX_BYTES`, whatever its key."""

_SEND, _FIRE = Use.SEND, Use.FIRE


class Delegation(NamedTuple):
    """On what terms a message is sent in its principal's name."""

    actors: tuple[str, ...] = ()
    """The tasks that have passed the principal on, the first one first."""
    scope: Scope = UNRESTRICTED
    """What they have left of its rights."""
    pipeline: str | None = None
    """The pipeline that is acted for: that of all that the task kicks, where that belongs to none by registration."""


NOT_DELEGATED = Delegation()


class Denial(NamedTuple):
    """Why the sender itself denies that a message may run, which somebody may wait for."""

    reason: str
    retry_after: float | None = None
    """Seconds until it might have been allowed, where a limit was used up."""


class MessageSignature(NamedTuple):
    """What a verified signature says of its message."""

    kid: str
    jti: str
    issued_at: float
    expires_at: int
    delegation: Delegation = NOT_DELEGATED
    denied: Denial | None = None
    """Why it is to be refused, if so."""
    use: Use = _SEND
    """What its key is for: `Use.FIRE` where that is what schedules send as they were granted, and nothing else."""
    counted: bool = False
    """Whether the kick was counted against the rate limit of its task's guard, which its sender may not know."""


class _Header(JwsHeader):
    b64: bool
    crit: tuple[Literal["b64"]]
    iat: Moment
    exp: int
    jti: str
    act: tuple[str, ...] = ()
    scope: ScopeClaim | None = None
    pipeline: str | None = None
    denied: str | None = None
    retry_after: Seconds | None = None
    counted: bool = False


class MessageSigner:
    """Signs and verifies messages, or schedules, with the keys for `Use.SEND` or, what schedules send, `Use.FIRE`."""

    def __init__(self, keyring: Keyring, leeway: float, typ: str = TYP) -> None:
        self._keyring = keyring
        self._leeway = leeway
        self._typ = typ
        self._headers: dict[str, str] = {}

    def signer(self, now: float, expires_at: float, *, fires: bool = False) -> Key:
        """The key that `sign` uses. Raises as that does."""
        use = _FIRE if fires and not self._keyring.signs(_SEND, now) else _SEND
        return self._keyring.signer(use, now, expires_at)

    def signs_whenever(self) -> bool:
        """Whether the key to send with is the same at any time, until it is revoked."""
        return _SEND in self._keyring.lasting

    def sign(
        self,
        payload: bytes,
        now: float,
        expires_at: float,
        delegation: Delegation = NOT_DELEGATED,
        denied: Denial | None = None,
        *,
        fires: bool = False,
        counted: bool = False,
        jti: str | None = None,
    ) -> tuple[str, MessageSignature]:
        """Sign a message, which a schedule `fires`, or somebody sends. It has an id of its own unless a `jti` is given.

        Raises `AuthenticationError` where this process has no key to do that with.
        """
        key = self._keyring.lasting.get(_SEND) or self.signer(now, expires_at, fires=fires)
        jti, until = jti or new_id(), int(expires_at)
        signature = MessageSignature(key.kid, jti, now, until, delegation, denied, key.use, counted)
        terms = ""
        if delegation is not NOT_DELEGATED or denied is not None or counted:
            terms = _terms(delegation, denied, counted=counted)
        # Only numbers and ids that were made here are filled in, so that nothing needs escaping.
        fixed = self._headers.get(key.kid) or self._fixed(key)
        header = f'{fixed},"iat":{now},"exp":{until},"jti":"{jti}"{terms}}}'
        protected = jws.encode_segment(header.encode())
        return (protected + b".." + jws.sign(key, protected, payload)).decode(), signature

    def check_fits(self, delegation: Delegation) -> None:
        """Raise `UnsignableMessageError` for terms that are too long for anybody to accept the signature."""
        if delegation is not NOT_DELEGATED and len(_terms(delegation).encode()) > _MAX_TERMS:
            raise UnsignableMessageError(
                f"The tasks that pass the principal on, and what it is restricted to, do not fit into {_MAX_TERMS} "
                "bytes; restrict it to fewer pipelines."
            )

    def check_times(self, signature: MessageSignature, now: float) -> None:
        """Raise `AuthenticationError` if a signature that was read is not valid now."""
        jws.check_times(signature.issued_at, signature.expires_at, now, self._leeway)

    def read(self, signature: object, payload: bytes, now: float) -> MessageSignature:
        """Check that this signature was made over this payload, or raise `AuthenticationError`.

        Whenever it is valid: `check_times` has to follow.
        """
        token = jws.parse(signature)
        if token.payload:
            raise jws.malformed()
        header = jws.read_header(token, _Header, self._typ)
        if header.b64:
            raise jws.malformed()
        key = self._keyring.verifier(_SEND, header.kid, now, self._leeway, or_else=_FIRE)
        jws.verify(token, header.alg, payload, key)
        delegation = NOT_DELEGATED
        if header.act or header.scope is not None or header.pipeline is not None:
            scope = UNRESTRICTED if header.scope is None else header.scope.scope()
            delegation = Delegation(header.act, scope, header.pipeline)
        return MessageSignature(
            header.kid,
            header.jti,
            header.iat,
            header.exp,
            delegation,
            None if header.denied is None else Denial(header.denied, header.retry_after),
            key.use,
            header.counted,
        )

    def _fixed(self, key: Key) -> str:
        """The part of the header that is the same for all messages of a key, its closing brace left out; kept."""
        fixed = {"alg": key.alg, "b64": False, "crit": ["b64"], "kid": key.kid, "typ": self._typ}
        header = self._headers[key.kid] = to_json(fixed).decode()[:-1]
        return header


def _terms(delegation: Delegation, denied: Denial | None = None, *, counted: bool = False) -> str:
    """The parameters of a header that say on what terms a message is sent, if on any."""
    claims = {
        "act": delegation.actors or None,
        "scope": ScopeClaim.of(delegation.scope),
        "pipeline": delegation.pipeline,
        "denied": None if denied is None else denied.reason,
        "retry_after": None if denied is None else denied.retry_after,
        "counted": counted or None,
    }
    said = {name: claim for name, claim in claims.items() if claim is not None}
    return f",{to_json(said, exclude_none=True).decode()[1:-1]}" if said else ""
