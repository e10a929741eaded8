"""Pipelines read results in the worker: protected ones too, and none that was altered on its way to the next step."""

from __future__ import annotations

from typing import Any

import pytest
from taskiq import InMemoryBroker, TaskiqMiddleware, TaskiqResult
from taskiq_flow import Pipeline as FlowPipeline
from taskiq_flow import PipelineMiddleware as FlowMiddleware
from taskiq_pipelines import Pipeline, PipelineMiddleware

from taskiq_flow_security import FlowSecurity, Principal, SecurityMiddleware
from tests.integration.inmemory.harness import AuditTrail, config
from tests.shelf import ShelfResultBackend

OPERATOR = Principal("carol", roles=["processor"], permissions=["execute"])

LIBRARIES = [(Pipeline, PipelineMiddleware), (FlowPipeline, FlowMiddleware)]

each_library = pytest.mark.parametrize(("pipeline", "middleware"), LIBRARIES, ids=["pipelines", "flow"])


class AlteringDrawers(dict[str, bytes]):
    """A store that alters what it likes."""

    def __setitem__(self, key: str, data: bytes) -> None:
        super().__setitem__(key, data.replace(b"genuine", b"altered"))


async def run(pipeline: Any, middleware: type[TaskiqMiddleware], text: str) -> TaskiqResult[Any]:
    """The result of a pipeline that spreads a value, maps a task over it and filters."""
    security = FlowSecurity(config())
    broker = InMemoryBroker().with_result_backend(security.protect_results(ShelfResultBackend(AlteringDrawers())))
    broker.add_middlewares(SecurityMiddleware(security), middleware())

    @broker.task("spread", pipeline="data")
    async def spread(value: int) -> list[int]:
        return [value, value + 1]

    @broker.task("describe", pipeline="data")
    async def describe(value: int) -> str:
        return f"{text} {value}"

    @broker.task("keep", pipeline="data")
    async def keep(value: str) -> bool:
        return value.endswith("2")

    steps = pipeline(broker, spread).map(describe, check_interval=0.001).filter(keep, check_interval=0.001)
    await broker.startup()
    try:
        with security.acting_as(OPERATOR):
            task = await steps.kiq(1)
        result: TaskiqResult[Any] = await task.wait_result(check_interval=0.001, timeout=30)
    finally:
        await broker.shutdown()
    return result


@each_library
async def test_pipelines_run_with_protected_results(pipeline: Any, middleware: type[TaskiqMiddleware]) -> None:
    assert (await run(pipeline, middleware, "row")).return_value == ["row 2"]


@each_library
async def test_an_altered_result_fails_its_pipeline(
    pipeline: Any, middleware: type[TaskiqMiddleware], audit: AuditTrail
) -> None:
    result = await run(pipeline, middleware, "genuine")
    assert result.is_err
    assert "bad_signature" in str(result.error)
    assert [entry.reason for entry in audit.take() if entry.event == "result_signature_fail"] == ["bad_signature"]
