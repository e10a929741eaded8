"""Refuses messages that have run, and notes which have."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable

from taskiq.abc.broker import AsyncBroker
from taskiq.message import TaskiqMessage

from taskiq_flow_security.broker.access_requests import registered_guard
from taskiq_flow_security.broker.arrivals import ended_within
from taskiq_flow_security.broker.delivery import Delivery, Task
from taskiq_flow_security.broker.task_events import record_arrival_denied
from taskiq_flow_security.core.reasons import Reason
from taskiq_flow_security.errors import (
    AccessDeniedError,
    BackendUnavailableError,
    ConfigurationError,
)
from taskiq_flow_security.ids import new_id
from taskiq_flow_security.losses import Losses
from taskiq_flow_security.replay import Progress, SharedReplays
from taskiq_flow_security.security import FlowSecurity
from taskiq_flow_security.tokens.message_signature import MessageSignature

_logger = logging.getLogger(__name__)

_waits = Losses(_logger, "messages wait")
_unnoted = Losses(_logger, "messages have completed and could not be noted as such")

_COMPLETED = Progress.COMPLETED

_AWAY = "the store of those that have completed is away"

_FIRST_PAUSE, _LAST_PAUSE = 0.1, 0.5
"""Seconds between two attempts to note something."""

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
        self._broadcast = broadcast
        self._own = None if stores is None else stores.own
        self._shared = None if stores is None or broadcast else stores.shared
        self._noting: set[asyncio.Future[object]] = set()
        """What is being noted in the background; an event loop alone does not hold it."""

    def check_tasks(self, broker: AsyncBroker) -> None:
        """Raise `ConfigurationError` if a task asks for more than can be remembered, and warn where that is little."""
        if self._shared is not None:
            return
        if self._own is not None and not self._broadcast:
            _logger.warning(
                "shared_store is not set: each worker process remembers for itself what has completed, and forgets it "
                "when it ends, so that a copy of a message may run again in another one. Set it to a Redis that all "
                "workers share."
            )
        for name, task in broker.get_all_tasks().items():
            if _at_most_once(task):
                raise ConfigurationError(
                    f"The task {name} is guarded with at_most_once, which needs a store that outlives this process: "
                    'set shared_store to "redis://...", and neither unsafe_allow_replays nor broadcast.'
                )

    async def close(self) -> None:
        """Let what is under way be noted, then let go of connections."""
        while self._noting:
            await asyncio.wait(self._noting)
        if self._shared is not None:
            await self._shared.close()

    def is_new(self, signature: MessageSignature) -> bool:
        """Whether a verified message has not run before, as far as that is known without asking others."""
        return self._own is None or (self._shared is None and self._own.find(signature) is None)

    async def check(self, message: TaskiqMessage, delivery: Delivery) -> None:
        """Raise `AccessDeniedError` for a verified message that may not run because it has run before.

        Raises `BackendUnavailableError` where nobody can tell now.
        """
        if self._own is None:
            return
        signature = _signature(delivery)
        progress = self._own.find(signature)
        once = _at_most_once(delivery.task)
        if self._shared is not None and (progress is None or (progress is Progress.STARTED and not once)):
            progress = await self._ask(self._shared, message, delivery, signature)
            if progress is Progress.COMPLETED:
                self._own.note(signature, progress)
        self._require_new(delivery, progress, once=once)

    async def claim(self, delivery: Delivery) -> None:
        """Note that a message starts which may do so at most once. Raises as `check`."""
        if self._own is None:
            return
        signature = _signature(delivery)
        progress = self._own.find(signature)
        if progress is None and self._shared is not None:
            delivery.claimant = delivery.claimant or new_id()  # the same one, in case only the answer was lost
            progress = await self._shared.claim(signature, delivery.claimant)
        self._require_new(delivery, progress, once=True)
        self._own.note(signature, Progress.STARTED)

    async def complete(self, delivery: Delivery) -> None:
        """Note that a message has completed, if it was let run.

        Where that is not possible it waits, until the message expires or the worker ends. It is acked then all the
        same: its result is there, and what is not acked would certainly run again, where now only a copy might.
        """
        if _at_most_once(delivery.task):
            self.note(delivery)  # that it has started, which is noted, is enough
        elif self._note_here(delivery) and self._shared is not None:
            await self._complete(self._shared, delivery, _signature(delivery))

    def note(self, delivery: Delivery) -> None:
        """As `complete`, in the background."""
        if self._note_here(delivery) and self._shared is not None:
            self._await_noted(self._shared, delivery, self._shared.complete(_signature(delivery)))

    def _await_noted(self, shared: SharedReplays, delivery: Delivery, note: Awaitable[object]) -> None:
        """Let a note be made in the background and, if it cannot be made now, go on trying."""

        def noted(noting: asyncio.Future[object]) -> None:
            self._noting.discard(noting)
            if not noting.cancelled() and isinstance(noting.exception(), BackendUnavailableError):
                self._await_noted(shared, delivery, self._complete(shared, delivery, _signature(delivery)))

        noting = asyncio.ensure_future(note)
        self._noting.add(noting)
        noting.add_done_callback(noted)

    def _note_here(self, delivery: Delivery) -> bool:
        """Note in this process that a message has completed, if it was let run; whether it was."""
        own, signature = self._own, delivery.signature
        if own is None or signature is None or delivery.admitted is None:
            return False
        own.note(signature, _COMPLETED)
        return True

    async def _complete(self, shared: SharedReplays, delivery: Delivery, signature: MessageSignature) -> None:
        pause = _FIRST_PAUSE
        while True:
            try:
                await shared.complete(signature)
                return None
            except BackendUnavailableError:
                # What is claimed needs no more than that to stay what it is.
                if delivery.ended is None or self._runs_unchecked(delivery) or _at_most_once(delivery.task):
                    return _unnoted.add(_AWAY)
            if await ended_within(pause, delivery.ended):
                return _unnoted.add(_AWAY)
            if self._security.clock() - self._security.config.clock_leeway >= signature.expires_at:
                return None  # no copy of it will run
            pause = min(pause * 2, _LAST_PAUSE)

    async def _ask(
        self, shared: SharedReplays, message: TaskiqMessage, delivery: Delivery, signature: MessageSignature
    ) -> Progress | None:
        """How far the message has come; ``None`` if it is new, or runs anyway."""
        try:
            progress = await shared.progress(signature)
            if progress is None and delivery.unsure and delivery.ended is not None:
                if await ended_within(_GRACE, delivery.ended):
                    raise BackendUnavailableError(f"The worker ends before it is known what completed while {_AWAY}.")
                progress = await shared.progress(signature)
        except BackendUnavailableError as error:
            if self._runs_unchecked(delivery):
                record_arrival_denied(self._security, message, delivery, error, shadow=True)
                return None
            if not delivery.unsure:
                delivery.unsure = True
                _waits.add(_AWAY)
            raise
        delivery.unsure = False
        return progress

    def _runs_unchecked(self, delivery: Delivery) -> bool:
        """Whether a message runs of which nobody can tell now whether it has run before."""
        security = self._security
        return security.monitoring or (security.config.unsafe_allow_unchecked and not _at_most_once(delivery.task))

    def _require_new(self, delivery: Delivery, progress: Progress | None, *, once: bool) -> None:
        if progress is Progress.COMPLETED:
            # Who has waited for it has its result, or will have that of a retry.
            delivery.keep_result = not self._security.monitoring
            raise AccessDeniedError(Reason.REPLAYED, "The message has completed before.")
        if progress is Progress.STARTED and once:
            raise AccessDeniedError(Reason.REPLAYED, "The message has started before, and may do so at most once.")


def _at_most_once(task: Task | None) -> bool:
    guard = registered_guard(task)
    return guard is not None and guard.at_most_once


def _signature(delivery: Delivery) -> MessageSignature:
    assert delivery.signature is not None  # it was verified
    return delivery.signature
