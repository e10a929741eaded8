"""A task knows in whose name it runs, wherever it runs, and nobody else is told."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import pytest
from taskiq import TaskiqDepends
from taskiq.receiver import Receiver

from taskiq_flow_security import AuthenticationError, Principal, current_principal
from tests.integration.inmemory import tasks
from tests.integration.inmemory.harness import PROCESSOR, Process

CAROL = Principal("carol", roles=["processor"], permissions=["execute"], pipelines=["data"])


async def test_a_task_in_the_loop_is_told_in_both_ways(process: Process) -> None:
    task = process.broker.register_task(tasks.asks_in_the_loop, "who", pipeline="data")
    outcome = await process.broker.deliver(await process.kick(task, principal=CAROL))
    assert outcome.result.return_value == ("carol", "carol")


async def test_a_task_in_a_thread_is_told_in_both_ways(process: Process) -> None:
    for function in (tasks.asks, tasks.told_who_asks):
        task = process.broker.register_task(function, f"who-{function.__name__}", pipeline="data")
        outcome = await process.broker.deliver(await process.kick(task, principal=CAROL))
        assert outcome.result.return_value in ("carol", ("carol", os.getpid()))


@pytest.mark.parametrize("function", [tasks.told_who_asks, tasks.guarded_and_asks], ids=["dependency", "guarded"])
async def test_every_task_in_another_process_is_told_its_own(
    process: Process, function: Callable[..., tuple[str, int]]
) -> None:
    task = process.broker.register_task(function, "who", pipeline="data")
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
        receiver = Receiver(process.broker, executor=pool, max_async_tasks=10)
        for principal in (CAROL, PROCESSOR):
            outcome = await process.broker.deliver(await process.kick(task, principal=principal), receiver)
            subject, pid = outcome.result.return_value
            assert subject == principal.subject
            assert pid != os.getpid()


async def test_an_unguarded_task_in_another_process_is_not_told_of_whom_the_process_was_forked_for(
    process: Process,
) -> None:
    task = process.broker.register_task(tasks.asks, "who", pipeline="data")
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
        receiver = Receiver(process.broker, executor=pool, max_async_tasks=10)
        await process.broker.deliver(await process.kick(task, principal=CAROL), receiver)
        outcome = await process.broker.deliver(await process.kick(task, principal=PROCESSOR), receiver)
    assert outcome.result.return_value in (None, "alice")


async def test_a_task_is_told_all_that_the_principal_was_issued_with(process: Process) -> None:
    seen: list[Principal] = []

    @process.broker.task("who", pipeline="data")
    async def who(caller: Principal = TaskiqDepends(current_principal)) -> None:
        seen.append(caller)

    await process.broker.deliver(await process.kick(who, principal=CAROL))
    assert seen == [CAROL]


async def test_tasks_that_run_at_the_same_time_are_told_their_own(process: Process) -> None:
    everybody_is_here = asyncio.Event()
    waiting = 0

    @process.broker.task("who", pipeline="data")
    async def who(caller: Principal = TaskiqDepends(current_principal)) -> list[str]:
        nonlocal waiting
        waiting += 1
        if waiting == 10:
            everybody_is_here.set()
        await everybody_is_here.wait()
        return [caller.subject, current_principal().subject]

    messages = [
        await process.kick(who, principal=Principal(f"user-{number}", roles=["processor"])) for number in range(10)
    ]
    outcomes = await asyncio.gather(*map(process.broker.deliver, messages))
    everything = process.broker.result_backend.results.values()
    assert len(outcomes) == len(everything) == 10
    told = sorted(result.return_value for result in everything)
    assert told == sorted([f"user-{number}"] * 2 for number in range(10))


async def test_nobody_acts_outside(process: Process) -> None:
    await process.broker.deliver(await process.genuine())
    with pytest.raises(AuthenticationError) as refusal:
        current_principal()
    assert refusal.value.reason == "no_principal"


async def test_who_acts_is_told_outside_of_tasks_too(process: Process) -> None:
    with process.security.acting_as(CAROL):
        assert current_principal() == CAROL
        assert await asyncio.to_thread(current_principal) == CAROL


async def test_a_child_runs_for_the_principal_of_its_parent(process: Process) -> None:
    child = process.broker.register_task(tasks.asks_in_the_loop, "child", pipeline="data")

    @process.broker.task("parent", pipeline="data")
    async def parent() -> None:
        await child.kiq()

    await process.broker.deliver(await process.kick(parent, principal=CAROL))
    outcome = await process.broker.deliver(process.broker.take())
    assert outcome.result.return_value == ("carol", "carol")


async def test_a_child_that_its_parents_principal_may_not_kick_is_refused_in_the_parent(process: Process) -> None:
    @process.broker.task("parent", pipeline="data")
    async def parent() -> None:
        await process.report.kiq()

    outcome = await process.broker.deliver(await process.kick(parent, principal=CAROL))
    assert outcome.reason == "whitelist"
    assert process.broker.sent == []
