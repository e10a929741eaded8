"""A broker with pipelines of every kind."""

from __future__ import annotations

from typing import Any

import taskiq_flow
import taskiq_pipelines
from taskiq import InMemoryBroker, TaskiqMiddleware
from taskiq_flow.middleware import PipelineMiddleware as FlowMiddleware
from taskiq_pipelines import PipelineMiddleware

from taskiq_flow_security import TaskiqFlowConfig, current_principal
from taskiq_flow_security.http import VisualizationAPI, create_visualization_api

Note = tuple[str, str, Any]
"""The name of a task that has run, who asked for it, and what it was given."""


class Deployment:
    """One process that serves the API and runs the tasks."""

    def __init__(self, config: TaskiqFlowConfig, *middlewares: TaskiqMiddleware) -> None:
        self.broker = InMemoryBroker().with_middlewares(*middlewares)
        self.api: VisualizationAPI = create_visualization_api(self.broker, config)
        self.notes: list[Note] = []
        self._register()

    def _register(self) -> None:
        broker, notes = self.broker, self.notes

        def note(name: str, value: Any) -> None:
            notes.append((name, current_principal().subject, value))

        @broker.task("clean", pipeline="tables")
        async def clean(rows: list[int]) -> int:
            note("clean", rows)
            return len(rows)

        @broker.task("spread")
        async def spread(size: int) -> list[int]:
            note("spread", size)
            return list(range(size))

        @broker.task("double")
        async def double(value: int) -> int:
            note("double", value)
            return 2 * value

        @broker.task("odd")
        async def odd(value: int) -> bool:
            note("odd", value)
            return value % 2 == 1

        @broker.task("total")
        async def total(values: list[int]) -> int:
            note("total", values)
            return sum(values)

        @broker.task("forbidden", pipeline="forbidden")
        async def forbidden(value: Any) -> None:
            note("forbidden", value)

        @broker.task("fail")
        async def fail(value: Any) -> None:
            raise ValueError("a secret of the server's")

        @broker.task("load")
        @taskiq_flow.pipeline_task(output="rows")
        async def load(size: int) -> list[int]:
            note("load", size)
            return list(range(size))

        @broker.task("count")
        @taskiq_flow.pipeline_task(output="count", inputs=["rows"])
        async def count(rows: list[int]) -> int:
            note("count", rows)
            return len(rows)

        @broker.task("add")
        @taskiq_flow.pipeline_task(output="sum", inputs=["rows"])
        async def add(rows: list[int]) -> int:
            note("add", rows)
            return sum(rows)

        @broker.task("forbidden_branch", pipeline="forbidden")
        @taskiq_flow.pipeline_task(output="nothing", inputs=["rows"])
        async def forbidden_branch(rows: list[int]) -> None:
            note("forbidden_branch", rows)

        @broker.task("failing_branch")
        @taskiq_flow.pipeline_task(output="nothing", inputs=["rows"])
        async def failing_branch(rows: list[int]) -> None:
            raise ValueError("a secret of the server's")

        self.clean, self.spread, self.double, self.odd, self.total = clean, spread, double, odd, total
        self.forbidden, self.fail = forbidden, fail
        self.load, self.count, self.add = load, count, add
        self.forbidden_branch, self.failing_branch = forbidden_branch, failing_branch


LIBRARIES: dict[str, tuple[Any, type[TaskiqMiddleware]]] = {
    "taskiq-flow": (taskiq_flow.Pipeline, FlowMiddleware),
    "taskiq-pipelines": (taskiq_pipelines.Pipeline, PipelineMiddleware),
}
"""The pipelines of steps, each with the middleware that kicks them."""
