"""Refuses messages that have run, and notes which have."""

from __future__ import annotations

import logging

from taskiq.abc.broker import AsyncBroker
from taskiq.message import TaskiqMessage

from taskiq_flow_security.broker import delivery as deliveries
from taskiq_flow_security.broker.arrivals import ended_within
from taskiq_flow_security.broker.delivery import Delivery, Task
from taskiq_flow_security.broker.guard import guard_of
from taskiq_flow_security.broker.task_events import record_arrival_denied
from taskiq_flow_security.core.reasons import Reason
from taskiq_flow_security.errors import (
    AccessDeniedError,
    AuthenticationError,
    BackendUnavailableError,
    ConfigurationError,
    FlowSecurityError,
)
from taskiq_flow_security.ids import new_id
from taskiq_flow_security.replay import Progress, SharedReplays
from taskiq_flow_security.security import FlowSecurity
from taskiq_flow_security.stores.losses import Losses
from taskiq_flow_security.tokens.message_signature import MessageSignature

_waits = Losses(logging.getLogger(__name__), "messages wait")
_unnoted = Losses(logging.getLogger(__name__), "messages have completed and could not be noted as such")

_AWAY = "the store of those that have completed is away"

_FIRST_PAUSE, _LAST_PAUSE = 0.1, 1.0
"""Seconds between two attempts to reach the store."""

_GRACE = 1.0
"""Seconds that a store which is back is left to those who have completed something, before it is believed that nobody
has."""


class Replays:
    """Knows for one broker which messages have run.

    Where it is a `broadcast`, each worker gets every message, and remembers for itself which it has run.
    """

    def __init__(self, security: FlowSecurity, *, broadcast: bool) -> None:
        stores = security.replays
        self._security = security
        self._own = None if stores is None else stores.own
        self._shared = None if stores is None or broadcast else stores.shared

    def check_tasks(self, broker: AsyncBroker) -> None:
        """Raise `ConfigurationError` if a task asks for more than can be remembered."""
        if self._shared is not None:
            return
        for name, task in broker.get_all_tasks().items():
            if _at_most_once(task):
                raise ConfigurationError(
                    f"The task {name} is guarded with at_most_once, which needs a store that outlives this process: "
                    'set shared_store to "redis://...", and neither unsafe_allow_replays nor broadcast.'
                )

    async def close(self) -> None:
        """Let go of connections."""
        if self._shared is not None:
            await self._shared.close()

    async def check(self, message: TaskiqMessage) -> None:
        """Note in this context's delivery why the message may not run, if it has run before.

        Where nobody can tell, it waits, and so does the message at its broker. Raises `BackendUnavailableError`, so
        that it is not acked, where the worker ends meanwhile.
        """
        delivery = deliveries.current.get()
        if (
            self._own is None
            or delivery is None
            or delivery.signature is None
            or delivery.token is None
            or delivery.error is not None
            or delivery.decided
            or delivery.task_id != message.task_id
            or delivery.task_name != message.task_name
        ):
            return  # it is refused, if it has to be, for another reason
        signature = delivery.signature
        once = _at_most_once(delivery.task)
        progress = self._own.find(signature)
        if progress is None or (progress is Progress.STARTED and not once):
            if self._shared is not None:
                progress = await self._ask(self._shared, message, delivery, signature, new_id() if once else None)
            if delivery.error is not None:
                return
            if progress is Progress.COMPLETED:
                self._own.note(signature, progress)
            elif once and progress is None:
                self._own.note(signature, Progress.STARTED)
        if progress is Progress.COMPLETED:
            # Who has waited for it has its result, or will have that of a retry.
            delivery.keep_result = not self._security.monitoring
            self._deny(message, delivery, AccessDeniedError(Reason.REPLAYED, "The message has completed before."))
        elif progress is Progress.STARTED and once:
            self._deny(
                message,
                delivery,
                AccessDeniedError(Reason.REPLAYED, "The message has started before, and may do so at most once."),
            )

    async def complete(self, delivery: Delivery) -> None:
        """Note that a message has run, if it has.

        Where that is not possible, it waits. Raises `BackendUnavailableError`, so that the message is not acked, where
        the worker ends meanwhile.
        """
        if self._own is None or delivery.signature is None or delivery.admitted is None:
            return
        self._own.note(delivery.signature, Progress.COMPLETED)
        if self._shared is not None:
            await self._complete(self._shared, delivery, delivery.signature)

    async def _complete(self, shared: SharedReplays, delivery: Delivery, signature: MessageSignature) -> None:
        pause = _FIRST_PAUSE
        while True:
            try:
                return await shared.complete(signature)
            except BackendUnavailableError:
                # What is claimed needs no more than that to stay what it is.
                if delivery.ended is None or self._runs_unchecked(delivery) or _at_most_once(delivery.task):
                    return _unnoted.add(_AWAY)
            if await ended_within(pause, delivery.ended):
                if delivery.kept:
                    raise _away()
                return _unnoted.add(_AWAY)
            if self._security.clock() - self._security.config.clock_leeway >= signature.expires_at:
                return None  # no copy of it will run
            pause = min(pause * 2, _LAST_PAUSE / 2)

    async def _ask(
        self,
        shared: SharedReplays,
        message: TaskiqMessage,
        delivery: Delivery,
        signature: MessageSignature,
        claimant: str | None,
    ) -> Progress | None:
        """How far the message has come; ``None`` if it is new, or its delivery says why it may not run anyway.

        For a `claimant`, it starts now.
        """
        try:
            return await _ask(shared, signature, claimant)
        except BackendUnavailableError as error:
            away = error
        if self._runs_unchecked(delivery):
            record_arrival_denied(self._security, message, delivery, away, shadow=True)
            return None
        if delivery.ended is None:  # it was not listened for: whoever has kicked it is here
            self._deny(message, delivery, away)
            return None
        record_arrival_denied(self._security, message, delivery, away)
        _waits.add(_AWAY)
        pause, back = _FIRST_PAUSE, False
        while not await ended_within(_GRACE if back else pause, delivery.ended):
            if self._expired(message, delivery):
                return None
            try:
                progress = await _ask(shared, signature, claimant)
            except BackendUnavailableError:
                pause, back = min(pause * 2, _LAST_PAUSE), False
            else:
                if back or progress is not None or claimant is not None:
                    return progress
                back = True
        if delivery.kept:
            raise _away()
        delivery.error = away  # recorded already
        return None

    def _runs_unchecked(self, delivery: Delivery) -> bool:
        """Whether a message runs of which nobody can tell now whether it has run before."""
        security = self._security
        return security.monitoring or (security.config.unsafe_allow_unchecked and not _at_most_once(delivery.task))

    def _expired(self, message: TaskiqMessage, delivery: Delivery) -> bool:
        """Whether a message has waited too long; noted in its delivery, if so."""
        assert delivery.signature is not None  # it was verified
        assert delivery.token is not None
        now = self._security.clock()
        try:
            self._security.messages.check_times(delivery.signature, now)
            self._security.principals.check_times(delivery.token, now)
        except AuthenticationError as error:
            self._deny(message, delivery, error)
            return True
        return False

    def _deny(self, message: TaskiqMessage, delivery: Delivery, error: FlowSecurityError) -> None:
        record_arrival_denied(self._security, message, delivery, error)
        delivery.error = error


def _at_most_once(task: Task | None) -> bool:
    guard = None if task is None else guard_of(task.original_func)
    return guard is not None and guard.at_most_once


async def _ask(shared: SharedReplays, signature: MessageSignature, claimant: str | None) -> Progress | None:
    return await (shared.progress(signature) if claimant is None else shared.claim(signature, claimant))


def _away() -> BackendUnavailableError:
    return BackendUnavailableError(
        f"The worker ends while {_AWAY}; the message is not acked, so that its broker delivers it again."
    )
