"""Whatever is done with a principal on its way, it never has a right that it lacked at first."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from taskiq import Context, SimpleRetryMiddleware, TaskiqDepends, TaskiqScheduler

from taskiq_flow_security import FlowSecurityError, Principal, ProtectedSchedules
from taskiq_flow_security.core.policy import AccessRequest, decide
from taskiq_flow_security.core.principal import Permission
from tests.attacks.test_schedules import Store
from tests.integration.inmemory.fixtures import NewProcess
from tests.integration.inmemory.harness import Process

PIPELINES = ["data", "reports", "other"]
TASKS = {"hop-data": "data", "hop-reports": "reports", "hop-loose": None}
ACLS = {"data": {"execute": ["processor"], "read": ["viewer"]}, "reports": {"execute": ["reporter"]}}

RESOURCES = [*PIPELINES, *map("task:{}".format, TASKS)]

subsets_of_pipelines = st.none() | st.lists(st.sampled_from([*RESOURCES, "*"]), max_size=3)
subsets_of_permissions = st.none() | st.lists(st.sampled_from(list(Permission)), max_size=3)

principals = st.builds(
    Principal,
    st.just("ada"),
    roles=st.lists(st.sampled_from(["processor", "reporter", "viewer"]), max_size=3),
    permissions=subsets_of_permissions,
    pipelines=st.lists(st.sampled_from(RESOURCES), max_size=2),
)


@dataclass(frozen=True)
class Step:
    """One thing that is done on the way."""

    how: str
    task: str
    permissions: list[Permission] | None = None
    pipelines: list[str] | None = None


steps = st.builds(
    Step,
    st.sampled_from(["kick", "schedule", "retry", "requeue"]),
    st.sampled_from(list(TASKS)),
    subsets_of_permissions,
    subsets_of_pipelines,
)


def rights(process: Process, principal: Principal) -> set[tuple[str, Permission]]:
    """All that a principal may do."""
    requests = {
        **{name: AccessRequest(Permission.EXECUTE, name) for name in PIPELINES},
        **{name: AccessRequest(Permission.EXECUTE, None, name) for name in TASKS},
    }
    return {
        (name, permission)
        for name, request in requests.items()
        for permission in Permission
        if decide(process.security.policy, principal, request._replace(permission=permission)).allowed
    }


@dataclass
class Journey:
    """A chain of tasks, each of which does the next step."""

    process: Process
    steps: list[Step]
    seen: list[set[tuple[str, Permission]]] = field(default_factory=list)
    store: Store = field(default_factory=Store)

    def __post_init__(self) -> None:
        broker = self.process.broker
        broker.add_middlewares(SimpleRetryMiddleware())
        self.source = ProtectedSchedules(self.store, broker)
        self.hops: dict[str, Any] = {}
        for name, pipeline in TASKS.items():
            labels = {} if pipeline is None else {"pipeline": pipeline}
            self.hops[name] = broker.task(name, **labels)(self._hop())

    def _hop(self) -> Callable[..., Any]:
        async def hop(number: int, context: Context = TaskiqDepends()) -> None:
            actor = self.process.security.actor()
            assert actor is not None
            self.seen.append(rights(self.process, actor.principal))
            if number == len(self.steps):
                return
            step = self.steps[number]
            if step.how in ("retry", "requeue") and len(self.seen) < 3 * len(self.steps):
                again = context.message.labels.get("again", 0)
                if int(again) < 1:
                    context.message.labels["again"] = 1
                    if step.how == "requeue":
                        await context.requeue()
                    context.message.labels["retry_on_error"] = True
                    raise ValueError
            await self.do(number)

        return hop

    async def do(self, number: int) -> None:
        """Take one step in the name of whoever acts."""
        step = self.steps[number]
        actor = self.process.security.actor()
        assert actor is not None
        restricted = actor.principal.restrict(permissions=step.permissions, pipelines=step.pipelines)
        with self.process.security.acting_as(restricted):
            if step.how == "schedule":
                await self.hops[step.task].schedule_by_cron(self.source, "* * * * *", number + 1)
            else:
                await self.hops[step.task].kiq(number + 1)

    async def run(self, principal: Principal) -> None:
        """Go as far as that is allowed."""
        with self.process.security.acting_as(principal):
            try:
                await self.do(0)
            except FlowSecurityError:
                return
        for _ in range(10 * len(self.steps)):
            for schedule in self.store.schedules:
                await self.source.delete_schedule(schedule.schedule_id)
                await self._fire(schedule)
            if not self.process.broker.sent:
                return
            await self.process.broker.deliver(self.process.broker.sent.pop(0))

    async def _fire(self, schedule: Any) -> None:
        scheduler = TaskiqScheduler(self.process.broker, [self.source])

        async def fire() -> None:
            try:
                await scheduler.on_ready(self.source, schedule)
            except FlowSecurityError:
                return

        await asyncio.create_task(fire())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(principals, st.lists(steps, min_size=1, max_size=5))
def test_no_sequence_of_restricting_delegating_scheduling_and_retrying_yields_a_right(
    new_process: NewProcess, principal: Principal, journey: list[Step]
) -> None:
    process = new_process(pipeline_acls=ACLS)
    trip = Journey(process, journey)
    asyncio.run(trip.run(principal))
    for before, after in pairwise([rights(process, principal), *trip.seen]):
        assert after <= before


@pytest.mark.parametrize("how", ["kick", "schedule", "retry", "requeue"])
async def test_journeys_are_made_at_all(new_process: NewProcess, how: str) -> None:
    process = new_process(pipeline_acls=ACLS)
    trip = Journey(process, [Step(how, "hop-data")] * 3)
    await trip.run(Principal("ada", ["processor"]))
    assert len(trip.seen) >= 3
