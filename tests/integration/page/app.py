"""Some pipelines to look at."""

from __future__ import annotations

import asyncio
from typing import Any

from taskiq import InMemoryBroker
from taskiq_flow import DataflowPipeline, pipeline_task
from taskiq_pipelines import Pipeline, PipelineMiddleware

from taskiq_flow_security import TaskiqFlowConfig
from taskiq_flow_security.http import create_visualization_api

PROCESSOR = "the-key-of-a-processor-0123456789"
VIEWER = "the-key-of-a-viewer-0123456789"

HOSTILE = '<img src=x onerror="document.title=1">'
"""The name of a task, by who would like it to be more."""

MANY = "100000/minute"


def make_app() -> Any:
    """An API with a pipeline of one step, others of several, and one that not everybody may read."""
    both = {"read": ["processor", "viewer"], "execute": ["processor"]}
    config = TaskiqFlowConfig(
        jwt_secret="the-secret-of-this-deployment-0123456789",
        require_https=False,
        api_keys={
            PROCESSOR: {"role": "processor", "permissions": ["read", "execute"]},
            VIEWER: {"role": "viewer", "pipelines": ["single", "branches"], "permissions": ["read"]},
        },
        pipeline_acls={"single": both, "branches": both, "secret": both},
        rate_limit_default=MANY,
        rate_limits=dict.fromkeys(
            (
                *("list_pipelines", "get_dag", "get_critical_path", "get_parallel_groups"),
                *("execute_pipeline", "get_status", "websocket_connect"),
            ),
            MANY,
        ),
        rate_limit_failed_logins=MANY,
    )
    broker = InMemoryBroker().with_middlewares(PipelineMiddleware())

    @broker.task(HOSTILE, pipeline="single")
    async def single(value: int = 1, fails: bool = False) -> int:
        if fails:
            raise ValueError
        return value * 2

    @broker.task("only_for_processors", pipeline="secret")
    async def only_for_processors() -> None: ...

    @broker.task("load")
    @pipeline_task(output="rows")
    async def load(source: str) -> list[int]:
        return [len(source)]

    @broker.task("total")
    @pipeline_task(output="total")
    async def total(rows: list[int]) -> int:
        return sum(rows)

    @broker.task("largest")
    @pipeline_task(output="largest")
    async def largest(rows: list[int]) -> int:
        return max(rows)

    @broker.task("report")
    @pipeline_task(output="report")
    async def report(total: int, largest: int) -> str:
        return f"{total} of {largest}"

    @broker.task("count")
    async def count(up_to: int) -> list[int]:
        return list(range(up_to))

    @broker.task("late")
    async def late(value: int) -> int:
        if value == 0:
            raise ValueError
        await asyncio.sleep(0.3)
        return value

    pipelines: dict[str, object] = {
        "branches": DataflowPipeline.from_tasks(broker, [load, total, largest, report]),
        "items": Pipeline(broker, count).map(late, check_interval=0.05),
        "thrice": Pipeline(broker, late).call_next(late).call_next(late),
    }
    return create_visualization_api(broker, config, pipelines=pipelines)
