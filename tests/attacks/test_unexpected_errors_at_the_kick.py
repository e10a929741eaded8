"""An unexpected error at the kick is a denial that is recorded; where security is only monitored, it denies nothing."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from taskiq_flow_security import FlowSecurityError, guard
from tests.integration.inmemory.fixtures import NewProcess
from tests.integration.inmemory.harness import Process, Task


class Colour:
    """A type whose validation has a bug."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def look_up(value: object) -> object:
            return {"red": 1}[str(value)]

        return core_schema.no_info_plain_validator_function(look_up)


def _paint(process: Process) -> Task:
    @process.broker.task("paint", pipeline="data")
    @guard(predicate=lambda _caller, _arguments: True)
    async def paint(colour: Colour) -> None: ...

    return paint


async def test_an_unexpected_error_at_the_kick_is_a_recorded_denial(process: Process) -> None:
    process.audit.take()
    with pytest.raises(FlowSecurityError):
        await process.kick(_paint(process), "green")
    assert [(entry.outcome, entry.reason) for entry in process.audit.take()] == [("deny", "internal_error")]


async def test_an_unexpected_error_keeps_no_kick_from_being_sent_that_is_only_monitored(
    new_process: NewProcess,
) -> None:
    process = new_process(enforcement="monitor")
    await process.kick(_paint(process), "green")


class FullDisk(logging.Handler):
    """A handler that fails."""

    def emit(self, record: logging.LogRecord) -> None:
        raise OSError("no space left")


@pytest.fixture
def full_disk() -> Iterator[None]:
    """Nothing can be recorded."""
    handler = FullDisk()
    logger = logging.getLogger("taskiq_flow.audit")
    logger.addHandler(handler)
    yield
    logger.removeHandler(handler)


@pytest.mark.usefixtures("full_disk")
async def test_a_record_that_cannot_be_written_keeps_no_kick_from_being_sent_that_is_only_monitored(
    new_process: NewProcess,
) -> None:
    process = new_process(enforcement="monitor")
    await process.kick(process.clean, [1])
