"""The clocks of two machines may differ by the leeway, 10 s by default; beyond it, a message is refused."""

from __future__ import annotations

from typing import Any

import pytest

from tests.integration.inmemory.fixtures import NewProcess
from tests.integration.inmemory.harness import Clock, Process


def skewed(new_process: NewProcess, clock: Clock, seconds: float, **settings: Any) -> Process:
    """A worker whose clock is ahead by so many seconds, or behind."""
    return new_process(clock=Clock(clock.now + seconds), **settings)


async def test_what_a_worker_gets_whose_clock_is_30_s_behind_is_refused_as_not_valid_yet(
    process: Process, new_process: NewProcess, clock: Clock
) -> None:
    worker = skewed(new_process, clock, -30)
    await worker.refuses(await process.genuine(), "not_yet_valid", serves=False)


async def test_what_a_worker_gets_whose_clock_is_30_s_ahead_is_refused_as_expired_where_it_may_not_wait_so_long(
    process: Process, new_process: NewProcess, clock: Clock
) -> None:
    worker = skewed(new_process, clock, 30)
    await worker.refuses(
        await process.kick(process.clean.kicker().with_labels(queue_ttl=15), [1]), "expired", serves=False
    )
    await worker.runs(await process.kick(process.clean.kicker().with_labels(queue_ttl=25), [1]))


@pytest.mark.parametrize("seconds", [-9, 9])
async def test_what_differs_by_less_than_the_leeway_does_not_matter(
    process: Process, new_process: NewProcess, clock: Clock, seconds: float
) -> None:
    worker = skewed(new_process, clock, seconds)
    message = await process.kick(process.clean.kicker().with_labels(queue_ttl=1), [1])
    await worker.runs(message)
    assert (await worker.broker.deliver(message)).stored == {}  # and is remembered for as long as it could run


@pytest.mark.parametrize("seconds", [-30, 30])
async def test_the_leeway_is_a_setting(process: Process, new_process: NewProcess, clock: Clock, seconds: float) -> None:
    worker = skewed(new_process, clock, seconds, clock_leeway=31)
    await worker.runs(await process.kick(process.clean.kicker().with_labels(queue_ttl=1), [1]))


async def test_the_waiter_of_what_is_refused_for_its_clock_is_told_at_once(
    process: Process, new_process: NewProcess, clock: Clock
) -> None:
    worker = skewed(new_process, clock, -30)
    outcome = await worker.broker.deliver(await process.genuine())
    assert (outcome.acks, outcome.reason) == (1, "not_yet_valid")
    worker.clock.now += 30  # once its clock is put right, it serves
    await worker.runs(await process.genuine())
