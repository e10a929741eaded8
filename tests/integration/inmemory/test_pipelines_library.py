"""Pipelines of taskiq-pipelines run for one principal; a step that is refused fails the whole, and nobody waits on."""

from __future__ import annotations

import json
from typing import Any

import pytest
from taskiq import TaskiqResult
from taskiq.message import TaskiqMessage
from taskiq_pipelines import Pipeline, PipelineMiddleware

from taskiq_flow_security import (
    AccessDeniedError,
    AuthenticationError,
    ConfigurationError,
    Principal,
    RateLimitExceededError,
    current_principal,
    guard,
)
from tests.attacks.forging import read, relabelled, write
from tests.integration.inmemory.fixtures import NewProcess
from tests.integration.inmemory.harness import PROCESSOR

OPERATOR = Principal("carol", roles=["processor"], permissions=["execute"])

each_position = pytest.mark.parametrize("position", ["before", "after"])


class Steps:
    """A process with the tasks of a pipeline."""

    def __init__(self, new_process: NewProcess, position: str, **settings: Any) -> None:
        middleware = (PipelineMiddleware(),)
        if position == "before":
            self.process = new_process(before=middleware, **settings)
        else:
            self.process = new_process(after=middleware, **settings)
        self.broker = self.process.broker
        ran = self.process.ran

        @self.broker.task("first", pipeline="data")
        async def first(value: int) -> int:
            ran.append((f"first for {current_principal().subject}", value))
            return value + 1

        @self.broker.task("second", pipeline="data")
        async def second(value: int) -> int:
            ran.append((f"second for {current_principal().subject}", value))
            return value * 2

        @self.broker.task("restricted", pipeline="reports")
        async def restricted(value: int) -> int:
            ran.append((f"restricted for {current_principal().subject}", value))
            return value * 3

        self.first, self.second, self.restricted = first, second, restricted

    async def run(self) -> None:
        """Deliver everything that is sent until nothing is."""
        while self.broker.sent:
            data = self.broker.sent.pop(0)
            assert (await self.broker.deliver(data)).acks == 1

    def result(self, task_id: str) -> TaskiqResult[Any]:
        """What the waiter of a task is told."""
        assert task_id in self.broker.result_backend.results, "The waiter would wait for ever."
        result: TaskiqResult[Any] = self.broker.result_backend.results[task_id]
        return result


@each_position
async def test_every_step_runs_for_the_principal_of_the_first(new_process: NewProcess, position: str) -> None:
    steps = Steps(new_process, position)
    pipeline = Pipeline(steps.broker, steps.first).call_next(steps.second).call_next(steps.first)
    with steps.process.security.acting_as(PROCESSOR):
        task = await pipeline.kiq(1)
    await steps.run()
    assert steps.result(task.task_id).return_value == 5
    assert [name for name, _ in steps.process.ran] == ["first for alice", "second for alice", "first for alice"]
    assert len({entry.txn for entry in steps.process.audit.take()}) == 1


@each_position
async def test_a_pipeline_with_a_map_runs_for_whom_it_may(new_process: NewProcess, position: str) -> None:
    steps = Steps(new_process, position)

    @steps.broker.task("spread", pipeline="data")
    async def spread(value: int) -> list[int]:
        return [value, value + 1]

    pipeline = Pipeline(steps.broker, spread).map(steps.second, check_interval=0.001)
    for who in (OPERATOR, PROCESSOR, Principal("dora", ["processor"], ["execute"], ["data"])):
        with steps.process.security.acting_as(who):
            task = await pipeline.kiq(1)
        await steps.run()
        assert steps.result(task.task_id).return_value == [2, 4]


@each_position
async def test_a_pipeline_with_a_filter_runs_for_whom_it_may(new_process: NewProcess, position: str) -> None:
    steps = Steps(new_process, position)

    @steps.broker.task("spread", pipeline="data")
    async def spread(value: int) -> list[int]:
        return [value, value + 1]

    @steps.broker.task("even", pipeline="data")
    async def even(value: int) -> bool:
        return value % 2 == 0

    with steps.process.security.acting_as(PROCESSOR):
        task = await Pipeline(steps.broker, spread).filter(even, check_interval=0.001).kiq(1)
    await steps.run()
    assert steps.result(task.task_id).return_value == [2]


@each_position
async def test_a_pipeline_that_is_acted_for_is_not_forgotten_at_a_task_of_another_one(
    new_process: NewProcess, position: str
) -> None:
    steps = Steps(new_process, position, pipeline_acls={})
    seen: list[str | None] = []

    @steps.broker.task("loose")
    async def loose(value: int) -> int:
        actor = steps.process.security.actor()
        seen.append(None if actor is None else actor.pipeline)
        return value

    who = Principal("dora", permissions=["execute"], pipelines=["songs", "data"])
    pipeline = Pipeline(steps.broker, loose).call_next(steps.first).call_next(loose)
    with steps.process.security.acting_as(who, pipeline="songs"):
        task = await pipeline.kiq(1)
    await steps.run()
    assert steps.result(task.task_id).return_value == 2
    assert seen == ["songs", "songs"]


@each_position
async def test_a_function_does_not_lend_its_pipeline_to_a_task_that_belongs_to_none(
    new_process: NewProcess, position: str
) -> None:
    steps = Steps(new_process, position)
    reasons = []

    @steps.broker.task("loose")
    async def loose() -> None:
        """Belongs to no pipeline."""

    @steps.broker.task("parent", pipeline="data")
    async def parent() -> None:
        with pytest.raises(AccessDeniedError) as refusal:
            await loose.kiq()
        reasons.append(refusal.value.reason)

    with steps.process.security.acting_as(Principal("dora", ["processor"], ["execute"], ["data"])):
        await parent.kiq()
    await steps.run()
    assert reasons == ["whitelist"]


@each_position
async def test_a_step_that_is_given_a_principal_of_its_own_by_labels_is_not_sent(
    new_process: NewProcess, position: str
) -> None:
    steps = Steps(new_process, position)
    labels = steps.process.security.labels_for(PROCESSOR)
    pipeline = Pipeline(steps.broker, steps.first).call_next(steps.second.kicker().with_labels(**labels))
    with steps.process.security.acting_as(PROCESSOR), pytest.raises(ConfigurationError, match="acting_as"):
        await pipeline.kiq(1)
    assert steps.broker.sent == []


@each_position
async def test_a_first_step_that_the_worker_denies_fails_the_pipeline(new_process: NewProcess, position: str) -> None:
    api, worker = Steps(new_process, position), Steps(new_process, position, pipeline_acls={})
    with api.process.security.acting_as(PROCESSOR):
        task = await Pipeline(api.broker, api.first).call_next(api.second).kiq(1)
    worker.broker.sent = api.broker.sent
    await worker.run()
    assert worker.process.ran == []
    result = worker.result(task.task_id)
    assert result.is_err
    assert type(result.error) is AccessDeniedError
    assert result.error.reason == "permission"


@each_position
async def test_a_later_step_that_the_worker_denies_fails_the_pipeline(new_process: NewProcess, position: str) -> None:
    api = Steps(new_process, position)
    late = Steps(new_process, position, task_acls={"second": {"execute": ["administrator"]}})
    with api.process.security.acting_as(PROCESSOR):
        task = await Pipeline(api.broker, api.first).call_next(api.second).call_next(api.first).kiq(1)
    await api.broker.deliver(api.broker.take())
    late.broker.sent = [api.broker.take()]
    await late.run()
    assert late.process.ran == []
    assert type(late.result(task.task_id).error) is AccessDeniedError


@each_position
async def test_a_step_that_may_not_be_kicked_fails_the_pipeline(new_process: NewProcess, position: str) -> None:
    steps = Steps(new_process, position)
    pipeline = Pipeline(steps.broker, steps.first).call_next(steps.restricted).call_next(steps.second)
    with steps.process.security.acting_as(PROCESSOR):
        task = await pipeline.kiq(1)
    await steps.run()
    assert steps.process.ran == [("first for alice", 1)]
    result = steps.result(task.task_id)
    assert result.is_err


@each_position
async def test_a_last_step_that_may_not_be_kicked_fails_the_pipeline(new_process: NewProcess, position: str) -> None:
    steps = Steps(new_process, position)
    pipeline = Pipeline(steps.broker, steps.first).call_next(steps.restricted)
    with steps.process.security.acting_as(PROCESSOR):
        task = await pipeline.kiq(1)
    await steps.run()
    assert steps.process.ran == [("first for alice", 1)]
    assert steps.result(task.task_id).is_err


@each_position
async def test_a_step_that_expires_in_the_queue_fails_the_pipeline(new_process: NewProcess, position: str) -> None:
    steps = Steps(new_process, position)
    with steps.process.security.acting_as(PROCESSOR):
        task = await Pipeline(steps.broker, steps.first).call_next(steps.second).kiq(1)
    steps.process.clock.now += 100_000
    await steps.run()
    assert steps.process.ran == []
    result = steps.result(task.task_id)
    assert type(result.error) is AuthenticationError
    assert result.error.reason == "expired"


def _pipe_data(victim: str) -> str:
    step = {"step_type": "sequential", "step_data": {}, "task_id": "x"}
    return json.dumps([step, {**step, "task_id": victim}])


@each_position
@pytest.mark.parametrize("finished", [False, True], ids=["waiting", "finished"])
async def test_a_forged_message_with_the_data_of_a_pipeline_writes_nothing_for_it(
    new_process: NewProcess, position: str, finished: bool
) -> None:
    steps = Steps(new_process, position)
    if finished:
        await steps.process.runs(await steps.process.genuine())
    before = dict(steps.broker.result_backend.results)
    victim = next(iter(before), "victim")
    labels = {"_pipe_data": _pipe_data(victim), "_current_step": 0}
    forged = TaskiqMessage(task_id="forged", task_name="first", labels=labels, args=[1], kwargs={})
    outcome = await steps.broker.deliver(write(forged))
    assert outcome.stored.keys() == {"forged"}
    assert outcome.acks == 1
    assert steps.broker.sent == []


@each_position
async def test_an_altered_message_of_a_pipeline_neither_goes_on_nor_writes_for_it(
    new_process: NewProcess, position: str
) -> None:
    steps = Steps(new_process, position)
    with steps.process.security.acting_as(PROCESSOR):
        task = await Pipeline(steps.broker, steps.first).call_next(steps.second).kiq(1)
    message = read(steps.broker.take())
    for forged in (message.model_copy(update={"args": [9]}), relabelled(message, "_current_step", "1")):
        outcome = await steps.broker.deliver(write(forged))
        assert outcome.stored.keys() <= {message.task_id}
        steps.broker.result_backend.results.clear()
    assert task.task_id not in steps.broker.result_backend.results
    assert steps.broker.sent == []


@each_position
async def test_where_security_is_only_monitored_a_pipeline_runs_for_somebody_unknown(
    new_process: NewProcess, position: str
) -> None:
    steps = Steps(new_process, position, enforcement="monitor")
    task = await Pipeline(steps.broker, steps.first).call_next(steps.restricted).kiq(1)
    await steps.run()
    assert steps.result(task.task_id).return_value == 6


@each_position
async def test_a_step_counts_against_the_rate_limit_of_its_task(new_process: NewProcess, position: str) -> None:
    steps = Steps(new_process, position)

    @steps.broker.task("rare", pipeline="data")
    @guard(rate_limit="1/hour")
    async def rare(value: int) -> None:
        steps.process.ran.append(("rare", value))

    waiting = []
    for value in range(3):
        with steps.process.security.acting_as(PROCESSOR):
            waiting.append(await Pipeline(steps.broker, steps.first).call_next(rare).kiq(value))
    await steps.run()
    assert [name for name, _ in steps.process.ran].count("rare") == 1
    assert not steps.result(waiting[0].task_id).is_err


@each_position
async def test_a_step_beyond_the_rate_limit_of_its_task_fails_the_pipeline(
    new_process: NewProcess, position: str
) -> None:
    steps = Steps(new_process, position)

    @steps.broker.task("rare", pipeline="data")
    @guard(rate_limit="1/hour")
    async def rare(value: int) -> None: ...

    waiting = []
    for value in range(2):
        with steps.process.security.acting_as(PROCESSOR):
            waiting.append(await Pipeline(steps.broker, steps.first).call_next(rare).kiq(value))
    await steps.run()
    assert steps.result(waiting[1].task_id).is_err


@each_position
async def test_a_pipeline_counts_once_against_its_limit_however_many_steps_it_has(
    new_process: NewProcess, position: str
) -> None:
    steps = Steps(new_process, position, pipeline_rate_limits={"data": "2/hour"}, principal_rate_limit="2/hour")
    waiting = []
    with steps.process.security.acting_as(PROCESSOR):
        for value in range(2):
            pipeline = Pipeline(steps.broker, steps.first).call_next(steps.first).call_next(steps.first)
            waiting.append(await pipeline.kiq(value))
        with pytest.raises(RateLimitExceededError):
            await Pipeline(steps.broker, steps.first).kiq(0)
    await steps.run()
    assert not any(steps.result(task.task_id).is_err for task in waiting)
