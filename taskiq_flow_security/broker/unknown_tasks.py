"""Refuses messages for tasks that this worker does not have, which TaskIQ drops before it asks any middleware."""

from __future__ import annotations

import asyncio

from taskiq.message import TaskiqMessage

from taskiq_flow_security.broker import refusal, run_events
from taskiq_flow_security.broker.delivery import Delivery
from taskiq_flow_security.broker.task_events import record_arrival_denied
from taskiq_flow_security.core.reasons import Reason
from taskiq_flow_security.errors import AccessDeniedError, FlowSecurityError
from taskiq_flow_security.security import FlowSecurity


class UnknownTasks:
    """Answers whoever waits for such a task; where it is a `broadcast`, other workers may have it, and nobody does."""

    def __init__(self, security: FlowSecurity, *, broadcast: bool) -> None:
        self._security = security
        self._broadcast = broadcast
        self._answers: set[asyncio.Task[None]] = set()

    def refuse(self, message: TaskiqMessage, delivery: Delivery) -> None:
        """Record that an authentic message cannot run here, and answer it."""
        if self._security.monitoring or _running_loop() is None:
            return  # or no receiver asks: somebody only reads it
        error = AccessDeniedError(
            Reason.UNKNOWN_TASK,
            "The worker that was given this message does not have its task; import its module there: "
            "`taskiq worker module:broker package.tasks`.",
        )
        delivery.error = error
        record_arrival_denied(self._security, message, delivery, error)
        run_events.decided(self._security, message, delivery)
        self.answer(delivery, error)

    def answer(self, delivery: Delivery, error: FlowSecurityError) -> None:
        """Tell whoever waits for such a task, as soon as the event loop can, why it does not run."""
        loop = _running_loop()
        if loop is None or self._broadcast or self._security.monitoring:
            return
        answer = loop.create_task(refusal.answer(delivery.broker, delivery.task_id, error))
        self._answers.add(answer)  # or nothing would keep it from being collected
        answer.add_done_callback(self._answers.discard)

    async def close(self) -> None:
        """Wait until everybody is answered."""
        await asyncio.gather(*self._answers)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
