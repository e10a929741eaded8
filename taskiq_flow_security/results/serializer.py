"""The one place that all stored bytes pass: the serializer of the result backend.

A serializer is told neither the task nor whether it is its result or its progress; the call of the backend that is
under way in this context knows both.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from taskiq.abc.serializer import TaskiqSerializer

from taskiq_flow_security.errors import ConfigurationError, ResultVerificationError
from taskiq_flow_security.results.seal import ResultSeal, body_of
from taskiq_flow_security.tokens.result_signature import Binding


@dataclass(slots=True)
class Access:
    """One call of a result backend."""

    binding: Binding
    used: bool = False
    """Whether a value has passed the serializer."""
    error: ResultVerificationError | None = None
    """Why it was refused, if so, whatever the backend makes of that."""


_current: ContextVar[Access | None] = ContextVar("taskiq_flow_security_result_access", default=None)


@contextmanager
def accessing(binding: Binding) -> Iterator[Access]:
    """Bind what passes the serializer inside the block; if that is refused, raise `ResultVerificationError`."""
    access = Access(binding)
    token = _current.set(access)
    try:
        yield access
    except Exception:
        if access.error is None:
            raise
    finally:
        _current.reset(token)
    if access.error is not None:
        raise access.error


class SealingSerializer(TaskiqSerializer):
    """Signs what the user's serializer has dumped, and lets it load nothing that is not signed."""

    def __init__(self, inner: TaskiqSerializer, seal: ResultSeal) -> None:
        self.inner = inner
        self._seal = seal

    def dumpb(self, value: Any) -> bytes:
        """Dump, then sign. Raises `ConfigurationError` outside of a call of `ProtectedResults`."""
        if not self._seal.enabled:
            return self.inner.dumpb(value)
        binding = _enter().binding
        return self._seal.close(self.inner.dumpb(value), binding)

    def loadb(self, value: bytes) -> Any:
        """Verify, then load. Raises `ResultVerificationError`, or `ConfigurationError` as `dumpb`."""
        if not self._seal.enabled:
            return self.inner.loadb(body_of(value))
        access = _enter()
        try:
            data = self._seal.open(value, access.binding)
        except ResultVerificationError as error:
            access.error = error
            raise
        return self.inner.loadb(data)


def _enter() -> Access:
    access = _current.get()
    if access is None:
        raise ConfigurationError(
            "The serializer of a protected result backend is used from outside: use the backend that "
            "security.protect_results() returned, not the one it was given; and one that has no threads of its own."
        )
    if access.used:
        raise ConfigurationError(
            "The result backend cannot be protected: it stores a result in several pieces, which could be exchanged. "
            "Use one that dumps a result at once."
        )
    access.used = True
    return access
