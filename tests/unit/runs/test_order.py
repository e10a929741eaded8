"""What a process tells of a task comes after what another one has told of it before."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count

from hypothesis import given
from hypothesis import strategies as st

from taskiq_flow_security.runs.events import RunEvent, RunEventKind
from taskiq_flow_security.runs.order import PATIENCE, RunOrder
from tests.unit.runs.events import event

ENQUEUED, STARTED, COMPLETED = RunEventKind.ENQUEUED, RunEventKind.STARTED, RunEventKind.COMPLETED
FAILED, REFUSED = RunEventKind.FAILED, RunEventKind.REFUSED


class Watcher:
    """Sees what is passed on, and when."""

    def __init__(self) -> None:
        self.now = 0.0
        self.seen: list[tuple[RunEventKind, str]] = []
        self._numbers = count()
        self.calls: list[tuple[float, int, Callable[[], None]]] = []
        self._order = RunOrder(self._see, self.call_later, lambda: self.now)

    def tell(self, source: str, kind: RunEventKind, task: int = 1) -> None:
        self._order.put(source, event(task)._replace(kind=kind))

    def wait(self, seconds: float) -> None:
        end = self.now + seconds
        while self.calls and self.calls[0][0] <= end:
            self.now, _, function = heapq.heappop(self.calls)
            function()
        self.now = end

    @property
    def kinds(self) -> list[RunEventKind]:
        return [kind for kind, _ in self.seen]

    def _see(self, event: RunEvent) -> None:
        self.seen.append((event.kind, event.task_id))

    def call_later(self, seconds: float, function: Callable[[], None]) -> None:
        heapq.heappush(self.calls, (self.now + seconds, next(self._numbers), function))


def test_that_a_task_starts_waits_until_it_is_enqueued() -> None:
    watcher = Watcher()
    for kind in (STARTED, COMPLETED):
        watcher.tell("worker", kind)
    assert watcher.seen == []
    watcher.tell("api", ENQUEUED)
    assert watcher.kinds == [ENQUEUED, STARTED, COMPLETED]


def test_what_comes_in_order_is_passed_on_at_once() -> None:
    watcher = Watcher()
    for source, kind in (("api", ENQUEUED), ("worker", STARTED), ("worker", FAILED)):
        watcher.tell(source, kind)
    assert watcher.kinds == [ENQUEUED, STARTED, FAILED]


def test_nobody_waits_for_long_for_what_was_told_before_anybody_listened() -> None:
    watcher = Watcher()
    for task in range(100):
        watcher.tell("worker", STARTED, task)
    watcher.tell("worker", COMPLETED, 5)
    watcher.wait(PATIENCE)
    assert watcher.seen == [*((STARTED, str(task)) for task in range(100)), (COMPLETED, "5")]


def test_what_one_process_tells_stays_in_its_order_while_it_waits() -> None:
    watcher = Watcher()
    watcher.tell("api", ENQUEUED, 2)
    watcher.tell("worker", STARTED, 1)
    watcher.tell("worker", STARTED, 2)
    watcher.tell("other worker", COMPLETED, 3)
    watcher.wait(PATIENCE / 2)
    assert watcher.seen == [(ENQUEUED, "2"), (COMPLETED, "3")]
    watcher.tell("api", ENQUEUED, 1)
    assert watcher.seen[2:] == [(ENQUEUED, "1"), (STARTED, "1"), (STARTED, "2")]


def test_a_task_that_is_tried_again_starts_again_after_it_is_enqueued_again() -> None:
    watcher = Watcher()
    watcher.tell("api", ENQUEUED)
    watcher.tell("one worker", STARTED)
    watcher.tell("another worker", STARTED)
    assert watcher.kinds == [ENQUEUED, STARTED]
    watcher.tell("one worker", ENQUEUED)
    assert watcher.kinds == [ENQUEUED, STARTED, ENQUEUED, STARTED]


def test_a_refusal_comes_after_what_is_refused_was_enqueued() -> None:
    watcher = Watcher()
    watcher.tell("worker", REFUSED)
    watcher.tell("api", ENQUEUED)
    assert watcher.kinds == [ENQUEUED, REFUSED]


TOLD = st.tuples(
    st.sampled_from(["api", "worker", "other"]),
    st.sampled_from(list(RunEventKind)),
    st.integers(0, 3),
    st.sampled_from([0.0, PATIENCE / 3]),
)


@given(st.lists(TOLD, max_size=30))
def test_everything_is_passed_on_soon_and_once_and_in_the_order_of_its_process(
    told: list[tuple[str, RunEventKind, int, float]],
) -> None:
    watcher, seen = Watcher(), list[tuple[RunEvent, float]]()
    order = RunOrder(lambda event: seen.append((event, watcher.now)), watcher.call_later, lambda: watcher.now)
    for number, (source, kind, task, pause) in enumerate(told):
        watcher.wait(pause)
        order.put(source, event(task, time=watcher.now)._replace(kind=kind, subject=source, run_id=str(number)))
        assert len(watcher.calls) <= 1  # however many wait
    watcher.wait(PATIENCE)
    assert sorted(int(passed.run_id) for passed, _ in seen) == list(range(len(told)))
    for source in ("api", "worker", "other"):
        numbers = [int(passed.run_id) for passed, _ in seen if passed.subject == source]
        assert numbers == sorted(numbers)
    assert all(when - passed.time <= PATIENCE + 1e-9 for passed, when in seen)
