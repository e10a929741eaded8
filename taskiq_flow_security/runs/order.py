"""The order of events, where one process enqueues a task and another one runs it."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from typing import NamedTuple

from taskiq_flow_security.runs.events import RunEvent, RunEventKind

_ENQUEUED = RunEventKind.ENQUEUED
_FOLLOWS = frozenset({RunEventKind.STARTED, RunEventKind.REFUSED})
"""What another process tells than the one that has enqueued the task."""

PATIENCE = 0.25
"""Seconds that an event waits for the one before it, which may have been told before anybody here listened."""

_REMEMBERED = 10_000
"""Tasks that are enqueued and have not started, the oldest forgotten first."""


class _Waiting(NamedTuple):
    until: float
    event: RunEvent


class RunOrder:
    """Passes on that a task is enqueued before that it starts, and all that one process tells in its order.

    `call_later` calls a function after so many seconds, by this `clock`.
    """

    def __init__(
        self,
        deliver: Callable[[RunEvent], None],
        call_later: Callable[[float, Callable[[], None]], object],
        clock: Callable[[], float],
    ) -> None:
        self._deliver = deliver
        self._call_later = call_later
        self._clock = clock
        self._sources: dict[str, deque[_Waiting]] = {}
        """What waits of each process, of which something does."""
        self._timed = False
        """Whether what waits is looked at again, at the latest when the first of it has waited for long enough."""
        self._enqueued: OrderedDict[str, int] = OrderedDict()
        """By task, how often it was enqueued without having started since: more than once, where it is tried again."""

    def put(self, source: str, event: RunEvent) -> None:
        """Pass on what a process tells, at once or when what comes before it has come."""
        waiting = self._sources.get(source)
        if waiting is None and self._is_next(event):
            self._pass_on(event)
            if event.kind is _ENQUEUED and self._sources:
                self._go_on()
            return
        if waiting is None:
            waiting = self._sources[source] = deque()
        waiting.append(_Waiting(self._clock() + PATIENCE, event))
        self._wait(PATIENCE)

    def _wait(self, seconds: float) -> None:
        if not self._timed:
            self._timed = True
            self._call_later(seconds, self._look_again)

    def _look_again(self) -> None:
        self._timed = False
        self._go_on()

    def _go_on(self) -> None:
        """Pass on what has waited for long enough, or need not wait any more."""
        now, passed = self._clock(), True
        while passed:
            passed = False
            for source, waiting in list(self._sources.items()):
                while waiting and (waiting[0].until <= now or self._is_next(waiting[0].event)):
                    self._pass_on(waiting.popleft().event)
                    passed = True
                if not waiting:
                    del self._sources[source]
        if self._sources:
            self._wait(max(min(waiting[0].until for waiting in self._sources.values()) - now, 0.0))

    def _is_next(self, event: RunEvent) -> bool:
        return event.kind not in _FOLLOWS or event.task_id in self._enqueued

    def _pass_on(self, event: RunEvent) -> None:
        if event.kind is _ENQUEUED:
            self._enqueued[event.task_id] = self._enqueued.get(event.task_id, 0) + 1
            if len(self._enqueued) > _REMEMBERED:
                self._enqueued.popitem(last=False)
        elif event.kind in _FOLLOWS and event.task_id in self._enqueued:
            self._enqueued[event.task_id] -= 1
            if not self._enqueued[event.task_id]:
                del self._enqueued[event.task_id]
        self._deliver(event)
