"""The process that kicks and awaits results, such as a web application."""

from __future__ import annotations

from typing import Any, ParamSpec
from uuid import uuid4

from taskiq import AsyncTaskiqDecoratedTask, AsyncTaskiqTask, TaskiqResult
from taskiq.message import BrokerMessage
from typing_extensions import Self

from taskiq_flow_security import FlowSecurity, Principal, SecurityMiddleware
from tests.integration.settings import PROCESSOR, caller_config
from tests.integration.transports import Transport
from tests.integration.worker_app import clean

P = ParamSpec("P")

RESULT_SECONDS = 30


class Client:
    """A secured broker object for a queue, and beside it a bare one, such as whoever can write to the queue may use."""

    def __init__(self, transport: Transport, **settings: Any) -> None:
        self.transport = transport
        self.security = FlowSecurity(caller_config(**settings))
        self.broker = transport.broker().with_middlewares(SecurityMiddleware(self.security))
        self.broker.with_result_backend(self.security.protect_results(self.broker.result_backend))
        self._bare = transport.broker()

    async def __aenter__(self) -> Self:
        await self.broker.startup()
        await self._bare.startup()
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self._bare.shutdown()
        await self.broker.shutdown()

    def new_marker(self) -> str:
        """A marker for the ledger."""
        return f"{self.transport.name}:{uuid4().hex}"

    async def kick(
        self,
        task: AsyncTaskiqDecoratedTask[P, Any],
        principal: Principal = PROCESSOR,
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> AsyncTaskiqTask[Any]:
        """Kick a task in somebody's name."""
        with self.security.acting_as(principal):
            kicker = task.kicker().with_broker(self.broker)
            kicked: AsyncTaskiqTask[Any] = await kicker.kiq(*args, **kwargs)
        return kicked

    async def inject(self, message: BrokerMessage) -> AsyncTaskiqTask[Any]:
        """Put a message on the queue as it is."""
        await self._bare.kick(message)
        return AsyncTaskiqTask(message.task_id, self.broker.result_backend)

    async def result_of(self, task_id: str) -> TaskiqResult[Any]:
        """The result of a task that somebody has kicked, as soon as it is there."""
        return await result_of(AsyncTaskiqTask(task_id, self.broker.result_backend))

    async def settle(self) -> None:
        """Wait until a worker that runs one task at a time is done with all that was sent to it."""
        last = await self.kick(clean, PROCESSOR, self.new_marker(), [])
        result = await result_of(last)
        result.raise_for_error()


async def result_of(task: AsyncTaskiqTask[Any]) -> TaskiqResult[Any]:
    """The result of a task, as soon as it is there."""
    return await task.wait_result(check_interval=0.01, timeout=RESULT_SECONDS)
