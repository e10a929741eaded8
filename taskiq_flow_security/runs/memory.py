"""Runs and their events in the memory of one process."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from itertools import islice

from taskiq_flow_security.losses import Losses
from taskiq_flow_security.runs.events import RunEvent
from taskiq_flow_security.runs.records import Run

_logger = logging.getLogger(__name__)


class MemoryRunStore:
    """Keeps `runs` runs of each of `pipelines` pipelines; the oldest go first."""

    def __init__(self, *, runs: int = 100, pipelines: int = 1000) -> None:
        self._max_runs = runs
        self._max_pipelines = pipelines
        self._pipelines: OrderedDict[str, OrderedDict[str, Run]] = OrderedDict()

    async def add(self, run: Run) -> None:
        """Keep a run."""
        runs = self._pipelines.setdefault(run.pipeline_id, OrderedDict())
        self._pipelines.move_to_end(run.pipeline_id)
        runs[run.run_id] = run
        runs.move_to_end(run.run_id)
        if len(runs) > self._max_runs:
            runs.popitem(last=False)
        if len(self._pipelines) > self._max_pipelines:
            self._pipelines.popitem(last=False)

    async def update(self, run: Run) -> None:
        """Keep what has become of a run, if the run itself is still kept."""
        runs = self._pipelines.get(run.pipeline_id)
        if runs is not None and run.run_id in runs:
            runs[run.run_id] = run

    async def get(self, pipeline_id: str, run_id: str) -> Run | None:
        """The run, if it is one of this pipeline."""
        runs = self._pipelines.get(pipeline_id)
        return None if runs is None else runs.get(run_id)

    async def recent(self, pipeline_id: str, limit: int = 20) -> list[Run]:
        """The pipeline's latest runs, the newest first."""
        runs = self._pipelines.get(pipeline_id)
        return [] if runs is None else list(islice(reversed(runs.values()), limit))


class MemoryRunEvents:
    """Hands events to the subscribers in this process, which may be in any thread and event loop.

    For each of them, `buffer` events wait at most.
    """

    def __init__(self, *, buffer: int = 1000) -> None:
        self._buffer = buffer
        self.watched = False
        """Whether anybody has subscribed."""
        self._subscriptions: dict[str, tuple[_Subscription, ...]] = {}  # replaced, never changed: read without a lock
        self._changing = threading.Lock()
        self._losses = Losses(_logger, "run events were dropped")

    def publish(self, event: RunEvent) -> None:
        """Tell everybody who has subscribed."""
        for subscription in self._subscriptions.get(event.pipeline_id, ()):
            if not subscription.put(event):
                self._losses.add("a subscriber is too slow")

    @asynccontextmanager
    async def subscribe(self, pipeline_id: str) -> AsyncIterator[AsyncIterator[RunEvent]]:
        """The pipeline's events from here on."""
        subscription = _Subscription(self._buffer)
        with self._changing:
            self._subscriptions[pipeline_id] = (*self._subscriptions.get(pipeline_id, ()), subscription)
            self.watched = True
        try:
            yield subscription
        finally:
            with self._changing:
                others = tuple(other for other in self._subscriptions.get(pipeline_id, ()) if other is not subscription)
                if others:
                    self._subscriptions[pipeline_id] = others
                else:
                    self._subscriptions.pop(pipeline_id, None)
                self.watched = bool(self._subscriptions)

    async def flush(self) -> None:
        """Nothing waits to be sent."""

    async def close(self) -> None:
        """End all subscriptions."""
        with self._changing:
            ended, self._subscriptions, self.watched = self._subscriptions, {}, False
        for subscriptions in ended.values():
            for subscription in subscriptions:
                subscription.put(None)


class _Subscription(AsyncIterator[RunEvent]):
    """What waits for one subscriber. Made and read in one event loop, filled from any thread."""

    def __init__(self, size: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[RunEvent | None] = deque(maxlen=size)
        self._filled = asyncio.Event()
        self._waking = False

    def put(self, event: RunEvent | None) -> bool:
        """Add an event, or ``None`` as the end. ``False`` if the oldest had to go for it."""
        fits = len(self._waiting) < self._size()
        self._waiting.append(event)
        if not self._waking:  # one call is enough for all that is put until it is made
            self._waking = True
            with suppress(RuntimeError):  # the loop is closed, and whoever subscribed is gone with it
                self._loop.call_soon_threadsafe(self._wake)
        return fits

    def _size(self) -> int:
        return self._waiting.maxlen or 0

    def _wake(self) -> None:
        self._waking = False
        self._filled.set()

    async def __anext__(self) -> RunEvent:
        while not self._waiting:
            self._filled.clear()
            if not self._waiting:
                await self._filled.wait()
        event = self._waiting.popleft()
        if event is None:
            self._waiting.append(None)  # and so for whoever asks again
            raise StopAsyncIteration
        return event
