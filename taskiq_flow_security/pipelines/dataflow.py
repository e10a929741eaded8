"""taskiq-flow's `DataflowPipeline` (1.2). Its engine runs in the process that starts it, and awaits each step there."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from taskiq import AsyncBroker, TaskiqResult
from taskiq_flow import DataflowPipeline as FlowPipeline
from taskiq_flow.dataflow.dag import DAG
from taskiq_flow.execution_engine import ExecutionEngine

from taskiq_flow_security.errors import BackendUnavailableError, ConfigurationError
from taskiq_flow_security.pipelines.graph import Edge, Graph, Node
from taskiq_flow_security.pipelines.protocol import AbandonedRunError, InputError

_logger = logging.getLogger(__name__)

T = TypeVar("T")

MAX_RUNS = 100
"""Runs of one pipeline that a process carries at a time."""

_FIRST_PAUSE, _LAST_PAUSE = 0.05, 5.0
"""Seconds from one question for a step's result to the next: a tenth of the time that it has taken, within these."""


class _Engine(ExecutionEngine):
    """Their engine, which takes a step that has failed for one that has returned ``None``: here it has failed."""

    kicked: asyncio.Event
    patience: float

    async def _execute_task_step(self, task: Any, inputs: dict[str, Any], task_node: Any) -> Any:
        kicked = await task.kicker().kiq(**inputs)
        self.kicked.set()
        began = time.monotonic()
        while not await kicked.is_ready():
            waited = time.monotonic() - began
            if waited >= self.patience:
                raise AbandonedRunError(
                    "no_result", f"There was no result of {task.task_name} within {self.patience:.0f} seconds."
                )
            await asyncio.sleep(min(max(waited / 10, _FIRST_PAUSE), _LAST_PAUSE))
        result = await kicked.get_result()
        result.raise_for_error()
        return result.return_value

    def first_error(self) -> Exception | None:
        """Why the run has failed, which their own error does not say."""
        return next((state.error for state in self.task_states.values() if state.error is not None), None)


class DataflowPipeline:
    """Runs a graph of tasks with taskiq-flow's engine, in this process; what comes of it goes to the result backend."""

    def __init__(self, pipeline_id: str, pipeline: FlowPipeline, broker: AsyncBroker, *, patience: float) -> None:
        """Raises `ConfigurationError` for what would run otherwise than it is shown, or over another broker.

        `patience`: seconds that a run waits for the result of a step before it is given up.
        """
        if pipeline._map_operations or pipeline._reduce_operations:
            raise ConfigurationError(
                f"The pipeline {pipeline_id!r} has map and reduce operations, which taskiq-flow's engine does not run; "
                "make them tasks of its graph."
            )
        self.id = pipeline_id
        self.graph = _graph(pipeline.visualize())
        assert pipeline._dag is not None  # `visualize` has built it
        self._dag: DAG = pipeline._dag
        self._options = pipeline.options
        self._broker = broker
        self._patience = patience
        self._running: set[asyncio.Task[dict[str, Any]]] = set()
        self._finishing: set[asyncio.Task[None]] = set()
        if any(node.task.broker is not broker for node in self._dag.nodes):
            raise ConfigurationError(f"The tasks of the pipeline {pipeline_id!r} belong to another broker.")

    async def start(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
        """Start the engine, and wait until it has kicked something. Raises what keeps it from that.

        Raises `BackendUnavailableError` where `MAX_RUNS` are running already.
        """
        if args:
            raise InputError("A DataflowPipeline takes its inputs by name; give them as kwargs.")
        if len(self._running) >= MAX_RUNS:
            _logger.warning("%r has %d runs in this process, and starts no more now.", self.id, MAX_RUNS)
            raise BackendUnavailableError("As many runs of the pipeline are under way here as may be; try again later.")
        engine = _Engine(
            self._broker,
            self._dag,
            fail_fast=self._options.fail_fast,
            continue_on_error=self._options.continue_on_error,
            skip_failed=self._options.skip_failed,
        )
        engine.kicked, engine.patience = asyncio.Event(), self._patience
        outputs = asyncio.create_task(engine.execute(dict(kwargs), self.id))
        _hold(outputs, self._running)
        first_kick = asyncio.create_task(engine.kicked.wait())
        try:
            await asyncio.wait({outputs, first_kick}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            outputs.cancel()
            raise
        finally:
            first_kick.cancel()
        if not engine.kicked.is_set():
            error = outputs.exception()
            if error is not None:
                raise engine.first_error() or error
        task_id: str = self._broker.id_generator()
        _hold(asyncio.create_task(self._finish(task_id, engine, outputs)), self._finishing)
        return task_id

    async def close(self) -> None:
        """End what still runs, as a failure."""
        await asyncio.sleep(0)  # what is cancelled before it has begun could say nothing
        runs = list(self._finishing)
        for run in runs:
            run.cancel()
        await asyncio.gather(*runs, return_exceptions=True)

    async def _finish(self, task_id: str, engine: _Engine, outputs: asyncio.Task[dict[str, Any]]) -> None:
        value: dict[str, Any] | None = None
        error: BaseException | None = None
        try:
            value = await outputs
        except asyncio.CancelledError:
            outputs.cancel()
            error = AbandonedRunError("process_ended", "The process that ran the pipeline has ended.")
        except Exception as failure:  # noqa: BLE001 (it is the run's result)
            error = engine.first_error() or failure
        result = TaskiqResult[Any](is_err=error is not None, return_value=value, execution_time=0, error=error)
        try:
            await self._broker.result_backend.set_result(task_id, result)
        except Exception:
            _logger.exception("The result of a run of %r cannot be stored.", self.id)


def _hold(task: asyncio.Task[T], held: set[asyncio.Task[T]]) -> None:
    """Keep a task in this set, and so alive, until it is done."""
    held.add(task)
    task.add_done_callback(held.discard)


def _graph(shown: dict[str, Any]) -> Graph:
    """The graph as `DataflowPipeline.visualize` shows it."""
    return Graph.of(
        (Node(id=node["id"], task=node["label"]) for node in shown["nodes"]),
        (Edge(source=edge["source"], target=edge["target"]) for edge in shown["edges"]),
    )
