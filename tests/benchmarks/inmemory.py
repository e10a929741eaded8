"""The cost of one task on `InMemoryBroker`, kicked, run in place and its result awaited."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from taskiq import InMemoryBroker, TaskiqMiddleware
from taskiq.decor import AsyncTaskiqDecoratedTask
from taskiq.kicker import AsyncKicker

from taskiq_flow_security import FlowSecurity, SecurityMiddleware, guard
from tests.benchmarks.guarded import ALGORITHMS, PIPELINE, PRINCIPAL, Algorithm, audit_directory, new_security, work
from tests.benchmarks.harness import Batch, Effort, Samples, measure
from tests.benchmarks.naive import NaiveGuard
from tests.benchmarks.report import Target, print_comparison

Work = Callable[[int], Awaitable[int]]
Task = AsyncTaskiqDecoratedTask[[int], Any]
Kicker = AsyncKicker[[int], Any]
Acting = Callable[[], AbstractContextManager[object]]

REFERENCE_MICROSECONDS = 29
"""What an unguarded task takes on the machine that the targets were set on."""

UNGUARDED = "unguarded"
NOOP = "no-op middleware"
NAIVE = "naive guard, log to a file"
REUSED = "HS256, principal reused"
AUDITED = "HS256, principal reused, audit to a file"
REPLAYS = "HS256, principal reused, replays allowed"


class NoopMiddleware(TaskiqMiddleware):
    """What calling hooks costs by itself."""

    async def pre_send(self, message: Any) -> Any:
        """Nothing."""
        return message

    async def pre_execute(self, message: Any) -> Any:
        """Nothing."""
        return message

    async def post_execute(self, message: Any, result: Any) -> None:
        """Nothing."""


async def run(effort: Effort) -> list[Target]:
    """Print the table, and return the targets."""
    with audit_directory() as directory:
        audit_file = directory / "audit.log"
        variants = {
            UNGUARDED: _unguarded(),
            NOOP: kicks(new_task(NoopMiddleware())),
            NAIVE: _naive(directory / "naive.log"),
        }
        for algorithm in ALGORITHMS:
            for suffix, file in ((", audit to a file", audit_file), ("", None)):
                variants[f"{algorithm}, principal reused{suffix}"] = _reused(new_security(algorithm, file))
                variants[f"{algorithm}, new principal{suffix}"] = _new_principals(algorithm, file)
        variants[f"{AUDITED}, @guard(roles)"] = _reused(
            new_security(audit_file=audit_file), guard(roles=["processor"])(work)
        )
        variants[REPLAYS] = _reused(new_security(unsafe_allow_replays=True))
        samples = await measure(variants, effort)
    print_comparison(
        "One task on InMemoryBroker",
        samples,
        UNGUARDED,
        "a new principal is issued by one FlowSecurity for each task, and verified by another that has never seen it",
    )
    return [
        _target("sign, verify and decide: added to a task", samples, REUSED, 25),
        _target("the same with audit to a file", samples, AUDITED, 40),
        _target("protection from replays, in memory", samples, REUSED, 1.5, REPLAYS),
    ]


def _target(claim: str, samples: Samples, variant: str, bound: float, without: str = UNGUARDED) -> Target:
    added = samples.added(variant, without) * 1e6
    speed = REFERENCE_MICROSECONDS / (samples.median(UNGUARDED) * 1e6)
    return Target(claim, added, bound, "us", scaled=added * speed)


def _unguarded() -> Batch:
    return kicks(new_task())


def _reused(security: FlowSecurity, function: Work = work) -> Batch:
    return kicks(new_task(SecurityMiddleware(security), function), lambda: security.acting_as(PRINCIPAL))


def _new_principals(algorithm: Algorithm, audit_file: Path | None) -> Batch:
    # What a process has issued itself, it need not verify; so that both are paid for, another one issues.
    issuer = new_security(algorithm)
    task = new_task(SecurityMiddleware(new_security(algorithm, audit_file)))
    return _batch(lambda: task.kicker().with_labels(**issuer.labels_for(PRINCIPAL)))


def _naive(log: Path) -> Batch:
    return kicks(new_task(NaiveGuard(PRINCIPAL.subject, sorted(PRINCIPAL.roles), log)))


def new_task(middleware: TaskiqMiddleware | None = None, function: Work = work) -> Task:
    """The task on a broker of its own."""
    broker = InMemoryBroker(await_inplace=True)
    if middleware is not None:
        broker.add_middlewares(middleware)
    return broker.register_task(function, task_name="work", pipeline=PIPELINE)


def kicks(task: Task, acting: Acting = nullcontext) -> Batch:
    """Kick the task, and await its result; all in the same name."""
    return _batch(task.kicker, acting)


def _batch(kicker: Callable[[], Kicker], acting: Acting = nullcontext) -> Batch:
    async def batch(count: int) -> None:
        with acting():
            for number in range(count):
                kicked = await kicker().kiq(number)
                result = await kicked.wait_result()
                assert result.return_value == number, result.error

    return batch
