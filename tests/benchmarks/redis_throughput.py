"""Tasks a second over Redis, through a real ``taskiq worker`` with one worker process for each variant.

A turn starts with its first kick and ends when the results of all its tasks are stored.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext, suppress
from pathlib import Path
from statistics import quantiles
from tempfile import TemporaryDirectory
from uuid import uuid4

from redis.asyncio import Redis

from tests.benchmarks.guarded import PRINCIPAL
from tests.benchmarks.harness import Batch, Effort, interleave
from tests.benchmarks.redis_worker import Guard, Queue
from tests.benchmarks.report import Target, print_table
from tests.services import REDIS_URL, missing

KINDS = ("list", "stream")

_ROOT = Path(__file__).parents[2]
_CONCURRENT_KICKS = 32
_START_SECONDS = 60
_TURN_SECONDS = 120


async def run(effort: Effort) -> list[Target]:
    """Print a table for each kind of queue, and return the targets."""
    problem = missing("redis")
    if problem is not None:
        print(f"\nThroughput over Redis is not measured: {problem}.")
        return []
    return [target for kind in KINDS for target in await _compare(kind, effort)]


async def _compare(kind: str, effort: Effort) -> list[Target]:
    turn = effort.redis_tasks
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory()))
        redis = await stack.enter_async_context(Redis.from_url(REDIS_URL, socket_timeout=None))
        queues = [Queue(kind, f"benchmark-{uuid4().hex}", guard, turn, directory) for guard in Guard]
        for queue in queues:
            await stack.enter_async_context(_worker(queue, redis))
        for queue in queues:
            await _wait_until_ready(queue, redis)
        variants = {queue.guard.value: await stack.enter_async_context(_client(queue, redis)) for queue in queues}
        for batch in variants.values():
            await batch(turn)
        samples = await interleave(variants, dict.fromkeys(variants, turn), effort.redis_rounds)
    kept = {name: 1 / samples.ratio(name, Guard.NONE.value) for name in variants}
    print_table(
        f"Throughput over a Redis {kind}",
        ("", "us", "tasks/s", "ratio", "half of the turns"),
        [
            (
                name,
                f"{samples.median(name) * 1e6:,.0f}",
                f"{1 / samples.median(name):,.0f}",
                f"{kept[name]:.2f}",
                _middle_half([1 / ratio for ratio in samples.ratios(name, Guard.NONE.value)]),
            )
            for name in variants
        ],
        f"{effort.redis_rounds} turns of {turn:,} tasks each, one worker process; ratio to unguarded tasks a second",
    )
    return [
        Target(f"throughput over a Redis {kind}, of unguarded: {guard.value}", kept[guard.value], bound, at_least=True)
        for guard, bound in ((Guard.SILENT, 0.90), (Guard.AUDITED, 0.90), (Guard.REPLAYS, 0.82))
    ]


@asynccontextmanager
async def _client(queue: Queue, redis: Redis) -> AsyncIterator[Batch]:
    """What sends a turn and waits for its end."""
    task, security = queue.task("client")

    async def batch(count: int) -> None:
        numbers = iter(range(count))

        async def kick() -> None:
            for number in numbers:
                await task.kiq(number)

        with nullcontext() if security is None else security.acting_as(PRINCIPAL):
            await asyncio.gather(*(kick() for _ in range(_CONCURRENT_KICKS)))
        failed = await _wait_for(redis, queue.done, _TURN_SECONDS)
        if failed != 0:
            problem = "do not end" if failed is None else f"fail ({failed})"
            raise RuntimeError(f"Tasks {problem}.\n{queue.output.read_text(errors='replace')}")

    await task.broker.startup()
    try:
        yield batch
    finally:
        await task.broker.shutdown()


@asynccontextmanager
async def _worker(queue: Queue, redis: Redis) -> AsyncIterator[None]:
    """A worker that starts; in the end nothing is left of it, nor of the queue."""
    with queue.output.open("wb") as output:
        process = subprocess.Popen(  # noqa: ASYNC220 (nothing else goes on meanwhile)
            [
                *(sys.executable, "-m", "taskiq", "worker", "--workers", "1"),
                *("--log-level", "WARNING"),  # the line that it logs of each task would hide some of the difference
                "tests.benchmarks.redis_worker:broker",
            ],
            cwd=_ROOT,
            env={**os.environ, **queue.environment()},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that all its processes can be killed at once
        )
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        async for key in redis.scan_iter(f"*{queue.name}*", count=1000):
            await redis.unlink(key)


async def _wait_until_ready(queue: Queue, redis: Redis) -> None:
    if await _wait_for(redis, queue.ready, _START_SECONDS) is None:
        raise RuntimeError(f"The worker does not start.\n{queue.output.read_text(errors='replace')}")


async def _wait_for(redis: Redis, event: str, seconds: float) -> int | None:
    announced = await redis.blpop([event], timeout=seconds)
    return None if announced is None else int(announced[1])


def _middle_half(values: list[float]) -> str:
    lower, _, upper = quantiles(values, n=4, method="inclusive")
    return f"{lower:.2f} to {upper:.2f}"
