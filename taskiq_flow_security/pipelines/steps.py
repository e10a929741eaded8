"""Pipelines that are a list of steps: taskiq-pipelines' `Pipeline` (0.1) and taskiq-flow's (1.2), which is its kin.

Their own middleware kicks each step when the one before has ended.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from copy import copy
from importlib import import_module
from typing import Any, Protocol

from taskiq import AsyncBroker

from taskiq_flow_security.errors import ConfigurationError
from taskiq_flow_security.pipelines.graph import Graph, Node, StepKind

_KINDS = {"sequential": StepKind.TASK, "mapper": StepKind.MAP, "filter": StepKind.FILTER}
"""By the libraries' name of a step. Those that are missing, taskiq-flow's group among them, never end in a result."""


class Step(Protocol):
    """What both libraries keep of a step."""

    step_type: str
    step_data: dict[str, Any]

    def model_copy(self) -> Any:
        """Another one like it."""


class Kicked(Protocol):
    """A task that was kicked."""

    task_id: str


class Steps(Protocol):
    """What the pipelines of both libraries have."""

    broker: AsyncBroker
    steps: list[Any]

    def kiq(self, *args: Any, **kwargs: Any) -> Awaitable[Kicked]:
        """Kick the first step; what is returned has the id of the last one."""


class StepsPipeline:
    """Kicks the first of a list of steps."""

    def __init__(self, pipeline_id: str, pipeline: Steps, library: str) -> None:
        """Raises `ConfigurationError` for a pipeline whose runs would never end.

        `library`: the package that the pipeline comes from, and the middleware that kicks its steps.
        """
        self.id = pipeline_id
        self.graph = Graph.chain(_node(pipeline_id, number, step) for number, step in enumerate(pipeline.steps))
        if not self.graph.nodes or self.graph.nodes[0].kind is not StepKind.TASK:
            raise ConfigurationError(f"The pipeline {pipeline_id!r} must begin with a step that runs one task.")
        self._pipeline = pipeline
        self._library = library

    async def start(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
        """Kick the first step. Raises `ConfigurationError` where nothing would kick the others."""
        if len(self.graph.nodes) > 1:
            self._require_middleware()
        # Each run needs steps of its own: `kiq` writes the run's task ids into them, and reads the last one after it
        # has awaited the kick, by when another run may have written its own.
        run = copy(self._pipeline)
        run.steps = [step.model_copy() for step in self._pipeline.steps]
        return (await run.kiq(*args, **kwargs)).task_id

    def _require_middleware(self) -> None:
        middleware: type = import_module(self._library).PipelineMiddleware
        if not any(isinstance(added, middleware) for added in self._pipeline.broker.middlewares):
            raise ConfigurationError(
                f"A run of the pipeline {self.id!r} would never end: add PipelineMiddleware() of {self._library} to "
                "the broker, here and on its workers."
            )


def _node(pipeline_id: str, number: int, step: Step) -> Node:
    kind = _KINDS.get(step.step_type)
    if kind is None:
        raise ConfigurationError(
            f"The pipeline {pipeline_id!r} has a step {step.step_type!r}, after which a run never ends; use "
            f"{', '.join(_KINDS)} steps, or a DataflowPipeline for what runs in parallel."
        )
    task = str(step.step_data["task_name"])
    return Node(id=f"{number + 1}:{task}", task=task, kind=kind)
