"""Bytes as they are stored: what the user's serializer made, then a signature.

The signature comes last because `pickle.loads`, which TaskIQ's result backends use by default, ignores what follows: a
process without this package can still read what one with it has stored.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple

from taskiq_flow_security.audit import AuditLogger
from taskiq_flow_security.core.events import AuditEvent, EventName, Outcome
from taskiq_flow_security.core.reasons import Reason
from taskiq_flow_security.errors import AuthenticationError, ResultVerificationError, UnsignableMessageError
from taskiq_flow_security.tokens import jws
from taskiq_flow_security.tokens.result_signature import Binding, ResultSigner

_logger = logging.getLogger(__name__)

MARK = b"\ntaskiq-flow-signature:"
"""Stands between the two. No signature contains it, so that the last one in the data is the one that was put there."""


class _Parts(NamedTuple):
    body_length: int
    token: str | None


class ResultSeal:
    """Signs what is stored and verifies what is read, as this process is configured."""

    def __init__(
        self,
        signer: ResultSigner,
        audit: AuditLogger,
        clock: Callable[[], float],
        *,
        enabled: bool,
        monitoring: bool,
    ) -> None:
        self._signer = signer
        self._audit = audit
        self._clock = clock
        self.enabled = enabled
        """Where it is not, nothing is signed or verified, but what is signed can be read."""
        self.monitoring = monitoring

    def can_store(self) -> bool:
        """Whether this process has a key to sign with, or needs none."""
        return not self.enabled or self.monitoring or self._signer.can_sign(self._clock())

    def close(self, data: bytes, binding: Binding) -> bytes:
        """The data as it is to be stored; not signed if it cannot be and refusals are only recorded.

        Raises `AuthenticationError` or `UnsignableMessageError` otherwise, as `ResultSigner.sign`.
        """
        try:
            signature = self._signer.sign(data, binding, self._clock())
        except (AuthenticationError, UnsignableMessageError):
            if not self.monitoring:
                raise
            return data
        return b"".join((data, MARK, signature))

    def open(self, stored: bytes, binding: Binding) -> bytes:
        """The data that was stored under this binding. Raises `ResultVerificationError` for any other."""
        stored = bytes(stored)  # some backends return other types of bytes
        parts = _take_apart(stored)
        try:
            self._verify(stored, parts, binding)
        except AuthenticationError as error:
            self.refuse(binding, error.reason, str(error.args[1]))
        except Exception:
            _logger.exception("What is stored for a task cannot be verified because of an unexpected error.")
            self.refuse(binding, Reason.INTERNAL_ERROR, "An unexpected error kept it from being verified.")
        return stored[: parts.body_length]

    def refuse(self, binding: Binding, reason: str, message: str) -> None:
        """Record a refusal and raise `ResultVerificationError`, unless refusals are only recorded."""
        try:
            self._audit.record(
                AuditEvent(
                    event=EventName.RESULT_SHADOW_DENY if self.monitoring else EventName.RESULT_SIGNATURE_FAIL,
                    time=self._clock(),
                    outcome=Outcome.DENY,
                    reason=reason,
                    rule=binding.purpose,
                    task_id=binding.task_id,
                )
            )
        except Exception:
            _logger.exception("A refusal cannot be recorded.")  # and stays one
        if not self.monitoring:
            raise ResultVerificationError(reason, f"The {binding.purpose} cannot be believed. {message}")

    def _verify(self, stored: bytes, parts: _Parts, binding: Binding) -> None:
        if parts.token is None:
            raise AuthenticationError(
                Reason.UNSIGNED, "It is not signed; let the workers' result backend be protected, too."
            )
        self._signer.verify(parts.token, memoryview(stored)[: parts.body_length], binding, self._clock())


def body_of(stored: bytes) -> bytes:
    """The data without its signature, if it has one, unverified: for where security is off."""
    return stored[: _take_apart(stored).body_length]


def _take_apart(stored: bytes) -> _Parts:
    """Only the end of the data is searched, however much there is of it."""
    at = stored.rfind(MARK, max(0, len(stored) - len(MARK) - jws.MAX_BYTES))
    if at < 0:
        return _Parts(len(stored), None)
    return _Parts(at, stored[at + len(MARK) :].decode("latin-1"))  # of which `jws` takes ASCII only
