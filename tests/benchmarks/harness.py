"""Times variants of one thing side by side.

In every round each variant has one turn, so that whatever else the machine does meets all of them alike. Variants are
compared within a round, and the median over all rounds is what counts.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from statistics import median
from time import perf_counter

Batch = Callable[[int], Awaitable[None]]
"""Does what is to be timed as many times as it is told."""


@dataclass(frozen=True)
class Effort:
    """How long to measure."""

    rounds: int
    batch_seconds: float
    """How long one turn of a variant lasts, about."""
    redis_rounds: int
    redis_tasks: int
    """How many tasks one turn of a variant sends over Redis."""


FULL = Effort(rounds=50, batch_seconds=0.02, redis_rounds=25, redis_tasks=600)
QUICK = Effort(rounds=5, batch_seconds=0.002, redis_rounds=2, redis_tasks=200)


@dataclass(frozen=True)
class Samples:
    """Seconds for one operation: of each variant, one for each round."""

    seconds: Mapping[str, list[float]]

    def median(self, variant: str) -> float:
        """Seconds for one operation."""
        return median(self.seconds[variant])

    def added(self, variant: str, baseline: str) -> float:
        """Seconds that a variant takes longer than another."""
        pairs = zip(self.seconds[variant], self.seconds[baseline], strict=True)
        return median(one - other for one, other in pairs)

    def ratio(self, variant: str, baseline: str) -> float:
        """How many times as long as another a variant takes."""
        return median(self.ratios(variant, baseline))

    def ratios(self, variant: str, baseline: str) -> list[float]:
        """The same in each round."""
        pairs = zip(self.seconds[variant], self.seconds[baseline], strict=True)
        return [one / other for one, other in pairs]


async def measure(variants: Mapping[str, Batch], effort: Effort) -> Samples:
    """Time all variants, each as often in a turn as fills `Effort.batch_seconds`."""
    counts = {name: await _count(batch, effort.batch_seconds) for name, batch in variants.items()}
    return await interleave(variants, counts, effort.rounds)


async def interleave(variants: Mapping[str, Batch], counts: Mapping[str, int], rounds: int) -> Samples:
    """Time all variants, each this often in a turn."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    order, chance = list(variants), random.Random(0)
    gc.collect()
    gc.freeze()  # what is there already, however much, is not what a turn should pay for
    try:
        for _ in range(rounds):
            chance.shuffle(order)  # so that none always follows the same one
            for name in order:
                seconds[name].append(await _time(variants[name], counts[name]) / counts[name])
    finally:
        gc.unfreeze()
    return Samples(seconds)


def repeat(function: Callable[[], object]) -> Batch:
    """The batch that calls a function."""

    async def batch(count: int) -> None:
        for _ in range(count):
            function()

    return batch


def repeat_async(function: Callable[[], Awaitable[object]]) -> Batch:
    """The batch that calls a coroutine function."""

    async def batch(count: int) -> None:
        for _ in range(count):
            await function()

    return batch


async def _count(batch: Batch, seconds: float) -> int:
    """How many operations take about this long."""
    await batch(10)  # the first ones do what is done only once
    count = 1
    while (taken := await _time(batch, count)) < seconds / 2:
        count *= 2
    return max(1, round(count * seconds / taken))


async def _time(batch: Batch, count: int) -> float:
    start = perf_counter()
    await batch(count)
    return perf_counter() - start
