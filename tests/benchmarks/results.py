"""What protected results cost: storing and reading one, beside the same backend as it is."""

from __future__ import annotations

import tracemalloc
from collections.abc import Awaitable, Callable
from statistics import median
from time import perf_counter
from typing import Any

from taskiq import AsyncResultBackend, TaskiqResult
from taskiq.abc.serializer import TaskiqSerializer
from taskiq.serializers import JSONSerializer, PickleSerializer

from tests.benchmarks.guarded import ALGORITHMS, new_security
from tests.benchmarks.harness import Batch, Effort, measure, repeat_async
from tests.benchmarks.report import Target, print_comparison
from tests.shelf import ShelfResultBackend

_SERIALIZERS: tuple[type[TaskiqSerializer], ...] = (PickleSerializer, JSONSerializer)
_LARGE = 10 * 1024 * 1024
_TASK_ID = "0123456789abcdef0123456789abcdef"

Backend = AsyncResultBackend[Any]


async def run(effort: Effort) -> list[Target]:
    """Print a table for storing and one for reading a small result, and what a large one takes."""
    result = _result([1, 2, 3])
    backends = _backends()
    for backend in backends.values():
        await backend.set_result(_TASK_ID, result)
    storing = {name: _storing(backend, result) for name, backend in backends.items()}
    reading = {name: _reading(backend) for name, backend in backends.items()}
    for title, variants in {"Store a result": storing, "Read a result": reading}.items():
        print_comparison(title, await measure(variants, effort), next(iter(variants)))
    await _large(effort)
    return []


def _backends() -> dict[str, Backend]:
    backends: dict[str, Backend] = {}
    for serializer in _SERIALIZERS:
        name = serializer.__name__.removesuffix("Serializer")
        backends[f"{name}, as it is"] = ShelfResultBackend({}, serializer=serializer())
        for algorithm in ALGORITHMS:
            shelf = ShelfResultBackend({}, serializer=serializer())
            backends[f"{name}, {algorithm}"] = new_security(algorithm).protect_results(shelf)
    return backends


async def _large(effort: Effort) -> None:
    print("A result of 10 MB            store ms   peak MB    read ms   peak MB")
    result = _result("x" * _LARGE)
    for name, backend in _backends().items():

        async def store(backend: Backend = backend) -> None:
            await backend.set_result(_TASK_ID, result)

        async def read(backend: Backend = backend) -> None:
            await backend.get_result(_TASK_ID)

        figures = [figure for step in (store, read) for figure in await _time_and_peak(step, effort.rounds // 5)]
        print(f"{name:24}" + "".join(f"{figure:11.1f}" for figure in figures))
    print()


async def _time_and_peak(step: Callable[[], Awaitable[None]], rounds: int) -> tuple[float, float]:
    """Milliseconds, and the most megabytes that were allocated at once."""
    times = []
    for _ in range(max(1, rounds)):
        start = perf_counter()
        await step()
        times.append(perf_counter() - start)
    tracemalloc.start()
    try:
        await step()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return median(times) * 1e3, peak / 2**20


def _result(value: object) -> TaskiqResult[Any]:
    return TaskiqResult(is_err=False, return_value=value, execution_time=0.01, labels={"pipeline": "data"})


def _storing(backend: Backend, result: TaskiqResult[Any]) -> Batch:
    return repeat_async(lambda: backend.set_result(_TASK_ID, result))


def _reading(backend: Backend) -> Batch:
    return repeat_async(lambda: backend.get_result(_TASK_ID))
