"""What the API and its workers share: a broker with tasks, and pipelines of them.

The tests serve the API; ``taskiq worker tests.integration.api.worker_app:broker`` runs the tasks.
"""

from __future__ import annotations

from typing import Any

import taskiq_flow
import taskiq_pipelines
from taskiq import AsyncBroker
from taskiq_pipelines import PipelineMiddleware

from taskiq_flow_security import FlowSecurity, SecurityMiddleware, TaskiqFlowConfig, current_principal
from tests.integration.transports import Transport, from_environment
from tests.integration.worker_app import announce_start, write_audit_lines


def deployed(transport: Transport, config: TaskiqFlowConfig) -> tuple[AsyncBroker, dict[str, object]]:
    """The broker and the pipelines."""
    security = FlowSecurity(config)
    broker = transport.broker().with_middlewares(PipelineMiddleware(), SecurityMiddleware(security))
    broker.with_result_backend(security.protect_results(broker.result_backend))

    @broker.task("load")
    @taskiq_flow.pipeline_task(output="rows")
    async def load(size: int) -> list[int]:
        return list(range(size))

    @broker.task("total")
    @taskiq_flow.pipeline_task(output="sum", inputs=["rows"])
    async def total(rows: list[int]) -> int:
        return sum(rows)

    @broker.task("double")
    async def double(value: int) -> int:
        return 2 * value

    @broker.task("whoami", pipeline="tables")
    async def whoami() -> str:
        return current_principal().subject

    @broker.task("restricted", pipeline="confidential")
    async def restricted(value: Any) -> None:
        raise AssertionError("it must not run")

    steps = taskiq_pipelines.Pipeline(broker, load).map(double, check_interval=0.05).call_next(total)
    return broker, {
        "steps": steps,
        "dataflow": taskiq_flow.DataflowPipeline.from_tasks(broker, [load, total]),
        "ends-restricted": taskiq_pipelines.Pipeline(broker, double).call_next(restricted),
    }


def broker() -> AsyncBroker:
    """The worker's broker, made from environment variables."""
    transport = from_environment()
    secured, _ = deployed(transport, TaskiqFlowConfig())
    announce_start(secured, transport)
    write_audit_lines()
    return secured
