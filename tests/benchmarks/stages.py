"""Where the time of one guarded task goes: what each stage takes while whole tasks run, then every function as the
profiler sees it.

A stage that is repeated on its own finds everything in the processor's caches, which it never does in a whole task. So
the stages are not called here but watched.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from cProfile import Profile
from pathlib import Path
from time import perf_counter
from types import CodeType
from typing import Any
from unittest.mock import patch

from taskiq_flow_security import FlowSecurity, SecurityMiddleware
from taskiq_flow_security.broker import signed_json
from taskiq_flow_security.broker.answers import Answers
from taskiq_flow_security.broker.envelope import Envelope
from tests.benchmarks.guarded import PRINCIPAL, audit_directory, new_security
from tests.benchmarks.harness import Batch, Effort, Samples, interleave
from tests.benchmarks.inmemory import Task, kicks, new_task
from tests.benchmarks.report import microseconds, print_table

_SHOWN_FUNCTIONS = 40

Seam = tuple[object, str]
"""An object, and the name of a function of it."""


async def run(effort: Effort) -> None:
    """Print where the time goes."""
    with audit_directory() as directory:
        plain = new_task()
        unguarded = kicks(plain)
        silent, recording = Guarded(new_security()), Guarded(new_security(audit_file=directory / "audit.log"))
        guarded, audited = silent.batch, recording.batch
        watches = {
            "plain": Watch(unguarded, _formatter(plain)),
            "hooks": Watch(guarded, silent.hooks),
            "parts": Watch(guarded, silent.parts),
            "audit": Watch(audited, recording.audit),
        }
        variants: dict[str, Batch] = {"unguarded": unguarded, "guarded": guarded, "audited": audited, **watches}
        count = max(10, int(effort.batch_seconds / 100e-6))
        totals = await interleave(variants, dict.fromkeys(variants, count), effort.rounds)
        _print_stages(totals, {name: Samples(watch.seconds) for name, watch in watches.items()})
        await _print_functions(audited, effort.rounds * count)


class Guarded:
    """A guarded task, and the seams of what guards it."""

    def __init__(self, security: FlowSecurity) -> None:
        middleware = SecurityMiddleware(security)
        task = new_task(middleware)
        self.batch = kicks(task, lambda: security.acting_as(PRINCIPAL))
        self.hooks: dict[str, Seam] = {
            **{hook: (middleware, hook) for hook in ("pre_send", "pre_execute", "post_execute")},
            **_formatter(task),
        }
        self.parts: dict[str, Seam] = {
            "find what was answered before, twice": (Answers, "find"),
            "message to bytes to sign": (Envelope, "payload"),
            "sign": (security.messages, "sign"),
            "signature into the bytes": (signed_json, "join"),
            "signature out of the bytes": (signed_json, "split"),
            "verify the signature": (security.messages, "read"),
            "verify the principal, known by its text": (security.principals, "read"),
        }
        self.audit: dict[str, Seam] = {"audit": (security.audit, "record")}


def _formatter(task: Task) -> dict[str, Seam]:
    return {name: (task.broker.formatter, name) for name in ("dumps", "loads")}


class Watch:
    """The batch that does another's work, and notes how long the calls through some seams take, for one operation."""

    def __init__(self, batch: Batch, seams: Mapping[str, Seam]) -> None:
        self.seconds: dict[str, list[float]] = {stage: [] for stage in seams}
        self._batch = batch
        self._seams = seams
        self._turn: dict[str, float] = {}

    async def __call__(self, count: int) -> None:
        """Do it this often."""
        self._turn = dict.fromkeys(self._seams, 0.0)
        with ExitStack() as stack:
            for stage, (owner, name) in self._seams.items():
                stack.enter_context(patch.object(owner, name, self._watched(stage, getattr(owner, name))))
            await self._batch(count)
        for stage, seconds in self._turn.items():
            self.seconds[stage].append(seconds / count)

    def _watched(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        if inspect.iscoroutinefunction(function):

            async def watched_async(*args: Any, **kwargs: Any) -> Any:
                start = perf_counter()
                try:
                    return await function(*args, **kwargs)
                finally:
                    self._turn[stage] += perf_counter() - start

            return watched_async

        def watched(*args: Any, **kwargs: Any) -> Any:
            start = perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self._turn[stage] += perf_counter() - start

        return watched


def _print_stages(totals: Samples, stages: Mapping[str, Samples]) -> None:
    plain, hooks, parts = stages["plain"], stages["hooks"], stages["parts"]
    dumps = hooks.median("dumps") - plain.median("dumps")
    loads = hooks.median("loads") - plain.median("loads")
    others = [hooks.median(name) for name in ("pre_send", "pre_execute", "post_execute")]
    added = totals.added("guarded", "unguarded")
    rows = [
        ("an unguarded task", totals.median("unguarded")),
        ("    formatter.dumps", plain.median("dumps")),
        ("    formatter.loads", plain.median("loads")),
        ("added to it, no audit", added),
        ("    kick: pre_send decides", hooks.median("pre_send")),
        ("    kick: formatter.dumps signs", dumps),
        ("    worker: formatter.loads verifies", loads),
        ("    worker: pre_execute decides", hooks.median("pre_execute")),
        ("    worker: post_execute", hooks.median("post_execute")),
        ("    elsewhere", added - dumps - loads - sum(others)),
        *((f"of that: {part}", parts.median(part)) for part in parts.seconds),
        ("added to that by audit to a file", totals.added("audited", "guarded")),
        ("    AuditLogger.record, twice", stages["audit"].median("audit")),
    ]
    print_table(
        "Where the time of a guarded task goes (HS256, principal reused)",
        ("", "us", "of what is added"),
        [(name, microseconds(seconds), f"{seconds / added:.0%}") for name, seconds in rows],
        "formatter.dumps and formatter.loads: what is added to those of an unguarded task",
    )


async def _print_functions(batch: Batch, count: int) -> None:
    profile = Profile()
    profile.enable()
    try:
        await batch(count)
    finally:
        profile.disable()
    entries = sorted(profile.getstats(), key=lambda entry: -entry.inlinetime)
    total = sum(entry.inlinetime for entry in entries)
    print_table(
        "The functions of an audited task that take most",
        ("", "calls", "own us", "own", "with callees us"),
        [
            (
                _name(entry.code),
                f"{entry.callcount / count:.1f}",
                microseconds(entry.inlinetime / count),
                f"{entry.inlinetime / total:.1%}",
                microseconds(entry.totaltime / count),
            )
            for entry in entries[:_SHOWN_FUNCTIONS]
        ],
        "for one task, as the profiler sees it: it makes calls look dearer than they are",
    )


def _name(code: CodeType | str) -> str:
    if isinstance(code, str):
        return code
    return f"{'/'.join(Path(code.co_filename).parts[-3:])}:{code.co_firstlineno} {code.co_name}"
