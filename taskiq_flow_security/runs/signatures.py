"""Runs and events as signed text, for stores that others can write to.

Compact JWS (RFC 7515) with a ``typ`` for each purpose. What they say names the environment (``aud``) and the pipeline,
so that nothing can be used in another place than the one it was made for. A run is signed as principals are
(`Use.ISSUE`), which a worker cannot where keys are asymmetric; events are signed as messages are (`Use.SEND`).
"""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import to_json

from taskiq_flow_security.core.reasons import Reason
from taskiq_flow_security.errors import AuthenticationError
from taskiq_flow_security.runs.events import RunEvent
from taskiq_flow_security.runs.records import Run
from taskiq_flow_security.tokens import jws
from taskiq_flow_security.tokens.jws import JwsHeader
from taskiq_flow_security.tokens.keyring import Keyring
from taskiq_flow_security.tokens.keys import Use

EVENTS_TTL = 60.0
"""Seconds for which events are news; what arrives later is a copy."""

_RUN_TYP = "taskiq-run+jwt"
_EVENTS_TYP = "taskiq-run-events+jwt"


class _Claims(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    aud: str
    iat: int
    exp: int


class _RunClaims(_Claims):
    run: Run


class EventBatch(_Claims):
    """Events of one pipeline that one process has published."""

    pipeline_id: str
    source: str
    """Random for each process that publishes."""
    number: int
    """Rises from batch to batch of a source."""
    events: list[RunEvent]


C = TypeVar("C", bound=_Claims)


class RunSignatures:
    """Signs and verifies runs and events. `audience` names the environment."""

    def __init__(self, keyring: Keyring, audience: str, leeway: float) -> None:
        self._keyring = keyring
        self._leeway = leeway
        self._audience = audience

    def sign_run(self, run: Run, now: float, ttl: float) -> str:
        """A run that is believed for `ttl` seconds.

        Raises `AuthenticationError` where this process has no key to issue with, or the run is too long for a token.
        """
        return self._sign(
            Use.ISSUE, _RUN_TYP, _RunClaims(aud=self._audience, iat=int(now), exp=int(now + ttl), run=run), now
        )

    def read_run(self, text: object, pipeline_id: str, now: float) -> Run:
        """The run of this pipeline that was signed, or `AuthenticationError`."""
        run = self._read(Use.ISSUE, _RUN_TYP, _RunClaims, text, now).run
        if run.pipeline_id != pipeline_id:
            raise _elsewhere()
        return run

    def sign_events(self, pipeline_id: str, events: list[RunEvent], source: str, number: int, now: float) -> str:
        """A batch of events.

        Raises `AuthenticationError` where this process has no key to send with, or the batch is too long for a token.
        """
        batch = EventBatch(
            aud=self._audience,
            iat=int(now),
            exp=int(now + EVENTS_TTL),
            pipeline_id=pipeline_id,
            source=source,
            number=number,
            events=events,
        )
        return self._sign(Use.SEND, _EVENTS_TYP, batch, now)

    def read_events(self, text: object, pipeline_id: str, now: float) -> EventBatch:
        """The batch of this pipeline that was signed, or `AuthenticationError`."""
        batch = self._read(Use.SEND, _EVENTS_TYP, EventBatch, text, now)
        if {batch.pipeline_id, *(event.pipeline_id for event in batch.events)} != {pipeline_id}:
            raise _elsewhere()
        return batch

    def _sign(self, use: Use, typ: str, claims: _Claims, now: float) -> str:
        key = self._keyring.signer(use, now)
        text = jws.compact(key, typ, to_json(claims)).decode()
        if len(text) > jws.MAX_BYTES:
            raise AuthenticationError(Reason.OVERSIZED, f"It does not fit into {jws.MAX_BYTES} bytes.")
        return text

    def _read(self, use: Use, typ: str, claims_type: type[C], text: object, now: float) -> C:
        token = jws.parse(_as_text(text))
        header = jws.read_header(token, JwsHeader, typ)
        jws.verify(token, header.alg, token.payload, self._keyring.verifier(use, header.kid, now, self._leeway))
        try:
            claims = claims_type.model_validate_json(jws.decode_segment(token.payload))
        except ValidationError:
            raise AuthenticationError(Reason.INVALID_CLAIMS, "The claims are not as they should be.") from None
        if claims.aud != self._audience:
            raise _elsewhere()
        jws.check_times(claims.iat, claims.exp, now, self._leeway)
        return claims


def _as_text(data: object) -> object:
    # Every byte becomes a character, so that what is not ASCII is refused as such, and what is too long as that.
    return data.decode("latin-1") if isinstance(data, bytes) else data


def _elsewhere() -> AuthenticationError:
    return AuthenticationError(Reason.WRONG_AUDIENCE, "It is for another pipeline or environment.")
