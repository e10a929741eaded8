"""What a user wraps around a result backend."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

from taskiq.abc.result_backend import AsyncResultBackend
from taskiq.abc.serializer import TaskiqSerializer
from taskiq.brokers.inmemory_broker import InmemoryResultBackend
from taskiq.depends.progress_tracker import TaskProgress
from taskiq.result import TaskiqResult
from taskiq.result_backends.dummy import DummyResultBackend
from taskiq.serializers import PickleSerializer

from taskiq_flow_security.core.reasons import Reason
from taskiq_flow_security.errors import ConfigurationError, ResultVerificationError
from taskiq_flow_security.results.seal import ResultSeal
from taskiq_flow_security.results.serializer import SealingSerializer, accessing
from taskiq_flow_security.tokens.result_signature import Binding, Purpose

_logger = logging.getLogger(__name__)

R = TypeVar("R")


class Kept(NamedTuple):
    """What TaskIQ's in-memory backend keeps: an object of this process, with what it was kept as."""

    binding: Binding
    value: Any


class ProtectedResults(AsyncResultBackend[R]):
    """A result backend whose store need not be trusted; made by `FlowSecurity.protect_results`.

    Results and progress are signed together with their task id, what they are, and the environment
    (`principal_audience`), and nothing is decoded, least of all unpickled, before that is verified. In place of a
    result that cannot be, the waiter gets an error result at once: ``raise_for_error()`` raises
    `ResultVerificationError`. (An exception would reach it as TaskIQ's ``ResultGetError`` only.) Of progress, which has
    no place for an error, `get_progress` raises it. Each is an audit event.

    The backend's own serializer, expiry and deletion stay as they are. It belongs to this object from now on; use it
    through this one only.

    What this does not do: whoever can write to the store can still delete results, or put back an older result or
    progress of the *same* task id, so let TaskIQ make the ids. With asymmetric keys each worker signs with its own
    ``send`` key, and who waits needs the public keys of all workers; a stolen worker can then forge results, also of
    tasks that it has not run. A key has to stay configured for as long as its results are to be read.
    """

    def __init__(self, inner: AsyncResultBackend[R], seal: ResultSeal) -> None:
        self.inner = inner
        self._seal = seal
        self._serializer: SealingSerializer | None = None
        self._keeps_objects = isinstance(inner, InmemoryResultBackend) and not hasattr(inner, "serializer")
        self._install()
        if (
            seal.enabled
            and seal.monitoring
            and self._serializer
            and isinstance(self._serializer.inner, PickleSerializer)
        ):
            _logger.warning(
                "Results that are not signed are unpickled while security is only monitored: whoever can write to the "
                "result backend runs code in this process."
            )

    async def startup(self) -> None:
        """Start the backend. Raises `ConfigurationError` if it cannot be protected."""
        self._install()
        await self.inner.startup()

    async def shutdown(self) -> None:
        """Stop the backend."""
        await self.inner.shutdown()

    async def set_result(self, task_id: str, result: TaskiqResult[R]) -> None:
        """Sign and store a result. Raises `AuthenticationError` where this process has no key to sign it with."""
        binding = Binding(Purpose.RESULT, task_id)
        self._install()
        with accessing(binding) as access:
            await self.inner.set_result(task_id, self._outgoing(binding, result))
        if self._seal.enabled and not (access.used or self._keeps_objects):
            raise _unprotectable(self.inner)

    async def is_result_ready(self, task_id: str) -> bool:
        """Whether anything is stored as the task's result, believable or not."""
        return await self.inner.is_result_ready(task_id)

    async def get_result(self, task_id: str, with_logs: bool = False) -> TaskiqResult[R]:
        """The result of a task, or an error result that says why there is none to be believed."""
        binding = Binding(Purpose.RESULT, task_id)
        self._install()
        try:
            with accessing(binding) as access:
                stored = await self.inner.get_result(task_id, with_logs=with_logs)
            result: TaskiqResult[R] = self._incoming(binding, stored, access.used)
        except ResultVerificationError as error:
            # Without the error's frames, which hold what was read.
            refusal = ResultVerificationError(*error.args)
            return TaskiqResult[Any](is_err=True, return_value=None, execution_time=0, error=refusal)
        return result

    async def set_progress(self, task_id: str, progress: TaskProgress[Any]) -> None:
        """Sign and store progress, where the backend stores any. Raises as `set_result`."""
        binding = Binding(Purpose.PROGRESS, task_id)
        self._install()
        with accessing(binding):
            await self.inner.set_progress(task_id, self._outgoing(binding, progress))

    async def get_progress(self, task_id: str) -> TaskProgress[Any] | None:
        """The progress of a task. Raises `ResultVerificationError` if it cannot be believed.

        So does TaskIQ's ``ProgressTracker.set_progress`` where it is given no ``meta`` and reads the last one.
        """
        binding = Binding(Purpose.PROGRESS, task_id)
        self._install()
        with accessing(binding) as access:
            stored = await self.inner.get_progress(task_id)
        if stored is None:
            return None
        progress: TaskProgress[Any] = self._incoming(binding, stored, access.used)
        return progress

    def check(self, *, is_worker: bool) -> None:
        """Raise `ConfigurationError` if this process cannot do its part."""
        self._install()
        if is_worker and not self._seal.can_store():
            raise ConfigurationError(
                "This worker cannot sign results; give it a key of its own for `send` in signing_keys, with its secret "
                "or private key."
            )

    def _outgoing(self, binding: Binding, value: Any) -> Any:
        return Kept(binding, value) if self._keeps_objects and self._seal.enabled else value

    def _incoming(self, binding: Binding, stored: Any, passed: bool) -> Any:
        """What the backend returned, if it has `passed` the serializer that verifies, or was kept here."""
        kept = stored if self._keeps_objects and isinstance(stored, Kept) else None
        if self._seal.enabled and not passed:
            if kept is None:
                self._seal.refuse(binding, Reason.UNSIGNED, "It did not pass a protected result backend.")
            elif kept.binding.task_id != binding.task_id:
                self._seal.refuse(binding, Reason.WRONG_TASK, "It was stored for another task.")
            elif kept.binding != binding:
                self._seal.refuse(binding, Reason.WRONG_TYPE, "It was stored as something else.")
        return stored if kept is None else kept.value

    def _install(self) -> None:
        """Put the serializer in place if it is not, or no longer."""
        if self._keeps_objects:
            return
        serializer = _serializer_of(self.inner)
        if serializer is not None and serializer is self._serializer:
            return
        if isinstance(serializer, SealingSerializer):
            raise ConfigurationError("The result backend is protected already; protect each one once.")
        if serializer is not None:
            self._serializer = SealingSerializer(serializer, self._seal)
            with suppress(AttributeError):  # which the check below reports
                self.inner.serializer = self._serializer  # type: ignore[attr-defined]  # it was just looked up
        if self._seal.enabled and (serializer is None or _serializer_of(self.inner) is not self._serializer):
            raise _unprotectable(self.inner)


def check_results(backend: AsyncResultBackend[Any], *, is_worker: bool) -> None:
    """Look at a secured broker's result backend at start-up; warn where anybody's results would be believed."""
    if isinstance(backend, ProtectedResults):
        backend.check(is_worker=is_worker)
    elif not isinstance(backend, (InmemoryResultBackend, DummyResultBackend)):
        _logger.warning(
            "Results are not protected: whoever can write to the result backend decides what callers get and, if it "
            "uses pickle, runs code there. Use broker.with_result_backend(security.protect_results(backend))."
        )


def _serializer_of(backend: AsyncResultBackend[Any]) -> TaskiqSerializer | None:
    serializer = getattr(backend, "serializer", None)
    return serializer if isinstance(serializer, TaskiqSerializer) else None


def _unprotectable(backend: AsyncResultBackend[Any]) -> ConfigurationError:
    return ConfigurationError(
        f"Results in a {type(backend).__name__} cannot be protected: it does not read and write them through a TaskIQ "
        "serializer in its attribute `serializer`, as those of taskiq-redis and taskiq-nats do. Use a backend that "
        "does, or give yours such an attribute."
    )
