"""The pipelines of a broker, by their ids."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator
from typing import Any

from taskiq import AsyncBroker, AsyncTaskiqDecoratedTask, async_shared_broker

from taskiq_flow_security.broker.wire import PIPELINE_LABEL
from taskiq_flow_security.core.policy import ENDPOINT_PREFIX, TASK_PREFIX, is_pipeline_name
from taskiq_flow_security.core.principal import ALL_PIPELINES
from taskiq_flow_security.errors import ConfigurationError
from taskiq_flow_security.pipelines.graph import Graph
from taskiq_flow_security.pipelines.protocol import Pipeline, RunsHere
from taskiq_flow_security.pipelines.steps import StepsPipeline
from taskiq_flow_security.pipelines.task import TaskPipeline

_logger = logging.getLogger(__name__)

_MAX_ID_LENGTH = 200


class Catalogue:
    """What was added, and each task that is registered with a pipeline that has no other task: one of one step."""

    def __init__(self, broker: AsyncBroker, *, patience: float) -> None:
        """`patience`: seconds that a run waits for a step, where this process runs it."""
        self._broker = broker
        self._patience = patience
        self._added: dict[str, Pipeline] = {}
        self._told: set[str] = set()
        """Labels of which it was logged why they are no pipelines."""

    def add(self, pipeline_id: str, given: object) -> None:
        """Add a pipeline: one of taskiq-flow or taskiq-pipelines, a task, or whatever meets `Pipeline`.

        Raises `ConfigurationError` for an id that cannot be one, or is taken, and for what cannot be started here.
        """
        if not isinstance(pipeline_id, str) or not is_pipeline_id(pipeline_id):
            raise ConfigurationError(
                f"{pipeline_id!r} cannot be the id of a pipeline; use up to {_MAX_ID_LENGTH} printable characters "
                f'without "/", "\\" and "%", that are not "{ALL_PIPELINES}" and do not begin with "{TASK_PREFIX}" or '
                f'"{ENDPOINT_PREFIX}".'
            )
        if pipeline_id in self._added:
            raise ConfigurationError(f"There is a pipeline {pipeline_id!r} already; give this one another id.")
        self._added[pipeline_id] = self._pipeline(pipeline_id, given)

    def get(self, pipeline_id: str) -> Pipeline | None:
        """The pipeline of this id."""
        return self._added.get(pipeline_id) or self._of_one_task().get(pipeline_id)

    def __iter__(self) -> Iterator[Pipeline]:
        pipelines = {**self._of_one_task(), **self._added}
        return (pipelines[pipeline_id] for pipeline_id in sorted(pipelines))

    async def close(self) -> None:
        """End the runs that need this process."""
        for pipeline in self._added.values():
            if isinstance(pipeline, RunsHere):
                await pipeline.close()

    def _of_one_task(self) -> dict[str, TaskPipeline]:
        tasks: dict[str, list[AsyncTaskiqDecoratedTask[Any, Any]]] = {}
        for task in self._broker.get_all_tasks().values():
            label = task.labels.get(PIPELINE_LABEL)
            if isinstance(label, str) and is_pipeline_id(label):
                tasks.setdefault(label, []).append(task)
            elif isinstance(label, str):
                self._tell(label, "it cannot be the id of a pipeline")
        for label, named in tasks.items():
            if len(named) > 1 and label not in self._added:
                self._tell(label, f"{len(named)} tasks have that label, so that nobody can tell which one is meant")
        return {label: TaskPipeline(label, task, self._broker) for label, (task, *more) in tasks.items() if not more}

    def _tell(self, label: str, why: str) -> None:
        """Log once why a label of tasks is no pipeline of one step."""
        if label not in self._told:
            self._told.add(label)
            _logger.info("The label %a makes no pipeline of one step: %s. Name it in `pipelines`.", label, why)

    def _pipeline(self, pipeline_id: str, given: object) -> Pipeline:
        if isinstance(given, AsyncTaskiqDecoratedTask):
            if given.labels.get(PIPELINE_LABEL, pipeline_id) != pipeline_id:
                raise ConfigurationError(f"The task of {pipeline_id!r} is registered with another pipeline.")
            if given.broker not in (self._broker, async_shared_broker):
                raise ConfigurationError(f"The task of {pipeline_id!r} belongs to another broker.")
            return TaskPipeline(pipeline_id, given, self._broker)
        library = _library(given)
        if library is not None:
            if getattr(given, "broker", None) is not self._broker:
                raise ConfigurationError(f"The pipeline {pipeline_id!r} belongs to another broker.")
            return self._library_pipeline(pipeline_id, given, library)
        if not isinstance(given, Pipeline):
            raise ConfigurationError(
                f"{pipeline_id!r}: {type(given).__name__} is no pipeline; it needs id, graph and start."
            )
        if given.id != pipeline_id:
            raise ConfigurationError(f"The pipeline that is added as {pipeline_id!r} calls itself {given.id!r}.")
        if not isinstance(given.graph, Graph):
            raise ConfigurationError(
                f"{pipeline_id!r}: its graph is of the type {type(given.graph).__name__}; make it with Graph.of([...])."
            )
        if not inspect.iscoroutinefunction(given.start):
            raise ConfigurationError(f"{pipeline_id!r}: its start must be an async function.")
        return given

    def _library_pipeline(self, pipeline_id: str, given: Any, library: str) -> Pipeline:
        if getattr(given, "_dataflow_tasks", None):  # what makes a pipeline of theirs one of data flow
            from taskiq_flow_security.pipelines.dataflow import DataflowPipeline  # the extra `flow`

            return DataflowPipeline(pipeline_id, given, self._broker, patience=self._patience)
        return StepsPipeline(pipeline_id, given, library)


def _library(given: object) -> str | None:
    """The package of which something is a pipeline, or something like one; ``None`` for what is of neither."""
    packages = [cls.__module__.partition(".")[0] for cls in type(given).__mro__]
    return next((package for package in packages if package in ("taskiq_flow", "taskiq_pipelines")), None)


def is_pipeline_id(text: str) -> bool:
    """Whether this can name a pipeline: for the policy, and as one segment of a path."""
    return (
        0 < len(text) <= _MAX_ID_LENGTH
        and text.isprintable()
        and text == text.strip()
        and not set(text) & set("/\\%")
        and text not in (".", "..")
        and is_pipeline_name(text)
    )
