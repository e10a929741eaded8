"""Tasks end, whatever they do with being cancelled."""

from __future__ import annotations

import asyncio

import pytest

from taskiq_flow_security.http import ending
from taskiq_flow_security.http.ending import end


async def _loses_a_cancellation(lost: asyncio.Event) -> None:
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if lost.is_set():
                raise
            lost.set()


async def test_a_task_that_loses_a_cancellation_is_cancelled_again() -> None:
    lost = asyncio.Event()
    task = asyncio.create_task(_loses_a_cancellation(lost))
    await asyncio.sleep(0)
    await asyncio.wait_for(end(task), 10 * ending._AGAIN)
    assert task.cancelled()
    assert lost.is_set()


async def test_a_task_that_is_ended_while_it_ends_others_leaves_none_of_them() -> None:
    lost = asyncio.Event()
    inner = asyncio.create_task(_loses_a_cancellation(lost))
    outer = asyncio.create_task(end(inner))
    await lost.wait()
    await end(outer)
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(inner, 10 * ending._AGAIN)


async def test_what_a_task_raises_at_its_end_is_left_there() -> None:
    async def fails() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise RuntimeError("at the end")

    tasks = [asyncio.create_task(fails()), asyncio.create_task(asyncio.sleep(0))]
    await asyncio.sleep(0)
    await end(*tasks)
    assert all(task.done() for task in tasks)
