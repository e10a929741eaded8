"""Refuses messages for tasks that this worker does not have, which TaskIQ drops before it asks any middleware."""

from __future__ import annotations

import asyncio

from taskiq.message import TaskiqMessage

from taskiq_flow_security.broker import refusal, run_events
from taskiq_flow_security.broker.delivery import Delivery
from taskiq_flow_security.broker.task_events import record_arrival_denied
from taskiq_flow_security.core.reasons import Reason
from taskiq_flow_security.errors import AccessDeniedError
from taskiq_flow_security.security import FlowSecurity


class UnknownTasks:
    """Answers whoever waits for such a task; where it is a `broadcast`, other workers may have it, and nobody does."""

    def __init__(self, security: FlowSecurity, *, broadcast: bool) -> None:
        self._security = security
        self._broadcast = broadcast
        self._answers: set[asyncio.Task[None]] = set()

    def refuse(self, message: TaskiqMessage, delivery: Delivery) -> None:
        """Record that an authentic message cannot run here. It is answered later, as soon as the event loop can."""
        if self._security.monitoring:
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return  # no receiver asks: somebody only reads it
        error = AccessDeniedError(
            Reason.UNKNOWN_TASK,
            "The worker that was given this message does not have its task; import its module there: "
            "`taskiq worker module:broker package.tasks`.",
        )
        delivery.error = error
        record_arrival_denied(self._security, message, delivery, error)
        run_events.decided(self._security, message, delivery)
        if not self._broadcast:
            answer = loop.create_task(refusal.answer(delivery.broker, message.task_id, error))
            self._answers.add(answer)  # or nothing would keep it from being collected
            answer.add_done_callback(self._answers.discard)

    async def close(self) -> None:
        """Wait until everybody is answered."""
        await asyncio.gather(*self._answers)
