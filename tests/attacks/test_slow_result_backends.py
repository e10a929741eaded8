"""A result backend that takes its time gives no forgery the last word, and keeps no worker from going on."""

from __future__ import annotations

import asyncio

from taskiq import TaskiqMessage, TaskiqMiddleware

from tests.attacks.forging import read, write
from tests.integration.inmemory.fixtures import NewProcess
from tests.integration.inmemory.harness import Process


class Waits(TaskiqMiddleware):
    """Takes its time over one task, as a middleware does that tells a server of it."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting = asyncio.Event()
        self.go_on = asyncio.Event()

    async def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
        if not self.waiting.is_set():
            self.waiting.set()
            await self.go_on.wait()
        return message


def _altered(data: bytes) -> bytes:
    return write(read(data).model_copy(update={"args": [[9, 9, 9]]}))


async def test_a_forgery_that_was_there_first_does_not_replace_the_result_of_the_genuine_message(
    new_process: NewProcess,
) -> None:
    waits = Waits()
    process = new_process(after=(waits,))
    data = await process.genuine()
    forged = asyncio.create_task(process.broker.deliver(_altered(data)))
    await waits.waiting.wait()
    result = (await process.broker.deliver(data)).result
    assert result.return_value == 6
    waits.go_on.set()
    await forged
    assert process.broker.result_backend.results[read(data).task_id] is result


async def test_a_forgery_is_acked_though_the_result_backend_never_answers(process: Process) -> None:
    async def never(task_id: str) -> bool:
        await asyncio.Event().wait()
        return True

    data = _altered(await process.genuine())
    process.broker.result_backend.is_result_ready = never  # type: ignore[method-assign]  # as if it hung
    outcome = await asyncio.wait_for(process.broker.deliver(data), 15)
    assert outcome.acks == 1
