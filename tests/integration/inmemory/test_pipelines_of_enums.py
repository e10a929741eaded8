"""A pipeline may be a member of a string enum, and is its value then, or none; anything else is said to be wrong."""

from __future__ import annotations

from enum import Enum
from typing import Any

import pytest
from taskiq import ScheduledTask, ScheduleSource

from taskiq_flow_security import ConfigurationError, Principal
from taskiq_flow_security.core.string_enum import StringEnum
from taskiq_flow_security.schedules import ProtectedSchedules
from tests.attacks.forging import read
from tests.integration.inmemory.fixtures import NewProcess
from tests.integration.inmemory.harness import PROCESSOR, Process, Task


class Mixed(str, Enum):
    DATA = "data"


class Named(StringEnum):
    DATA = "data"


class Plain(Enum):
    DATA = "data"


each_enum = pytest.mark.parametrize("pipeline", [Mixed.DATA, Named.DATA])


class Source(ScheduleSource):
    """Keeps what is added to it."""

    def __init__(self) -> None:
        self.stored: list[ScheduledTask] = []

    async def get_schedules(self) -> list[ScheduledTask]:
        return self.stored

    async def add_schedule(self, schedule: ScheduledTask) -> None:
        self.stored.append(schedule)


def _register(process: Process, pipeline: Any) -> Task:
    @process.broker.task("enumerated", pipeline=pipeline)
    async def enumerated() -> None:
        process.ran.append(("enumerated", None))

    return enumerated


@each_enum
async def test_a_task_whose_pipeline_is_in_an_enum_runs_by_the_acl_of_its_value(
    process: Process, pipeline: str
) -> None:
    data = await process.kick(_register(process, pipeline))
    assert read(data).labels["pipeline"] == "data"
    [enqueued] = process.audit.take()
    assert enqueued.pipeline == "data"
    await process.runs(data)


@each_enum
async def test_a_schedule_of_a_task_whose_pipeline_is_in_an_enum_names_its_value(
    process: Process, pipeline: str
) -> None:
    source = Source()
    with process.security.acting_as(PROCESSOR):
        protected = ProtectedSchedules(source, process.broker)
        await _register(process, pipeline).kicker().schedule_by_cron(protected, "0 3 * * *")
    assert source.stored[0].labels["pipeline"] == "data"


@pytest.mark.parametrize("acts_for", [None, "data"])
async def test_a_task_whose_pipeline_is_none_belongs_to_none(process: Process, acts_for: str | None) -> None:
    task, alice = _register(process, None), Principal("alice", ["processor"], permissions=["execute"])
    with process.security.acting_as(alice, pipeline=acts_for):
        await task.kiq()
    assert process.audit.take()[-1].pipeline == acts_for
    await process.runs(process.broker.take())


async def test_a_pipeline_may_be_called_none_where_a_task_does_not_say_that_it_has_none(
    new_process: NewProcess,
) -> None:
    process = new_process(pipeline_acls={"None": {"execute": ["processor"]}})
    message = await process.kick(process.loose.kicker().with_labels(pipeline="None"))
    assert read(message).labels["pipeline"] == "None"
    await process.runs(message)


async def test_a_schedule_of_a_task_whose_pipeline_is_none_names_none(process: Process) -> None:
    task, source = _register(process, None), Source()
    with process.security.acting_as(Principal("alice", permissions=["execute"])):
        await task.kicker().schedule_by_cron(ProtectedSchedules(source, process.broker), "0 3 * * *")
    assert process.audit.take()[-1].pipeline is None
    assert "pipeline" not in source.stored[0].labels


WRONG = pytest.mark.parametrize("pipeline", [5, True, b"data", ["data"], Plain.DATA])


@WRONG
async def test_a_pipeline_that_is_no_string_is_a_configuration_error_at_the_start(
    process: Process, pipeline: object
) -> None:
    _register(process, pipeline)
    with pytest.raises(ConfigurationError, match=f"task enumerated is of the type {type(pipeline).__name__}"):
        await process.broker.startup()


@pytest.mark.parametrize("pipeline", ["", "*", "task:data", "endpoint:data"])
async def test_a_pipeline_whose_name_means_something_else_is_a_configuration_error_at_the_start(
    process: Process, pipeline: str
) -> None:
    _register(process, pipeline)
    with pytest.raises(ConfigurationError, match="pipeline of the task enumerated cannot be named"):
        await process.broker.startup()


@WRONG
async def test_a_pipeline_that_is_no_string_is_a_configuration_error_at_the_kick(
    process: Process, pipeline: object
) -> None:
    task = _register(process, pipeline)
    with pytest.raises(ConfigurationError, match="task enumerated is of the type"):
        await process.kick(task)
    assert process.broker.sent == []
