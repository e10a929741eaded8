"""A task as a pipeline of one step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from taskiq import AsyncBroker, AsyncTaskiqDecoratedTask

from taskiq_flow_security.pipelines.graph import Graph, Node


class TaskPipeline:
    """Kicks one task."""

    def __init__(self, pipeline_id: str, task: AsyncTaskiqDecoratedTask[Any, Any], broker: AsyncBroker) -> None:
        self.id = pipeline_id
        self.graph = Graph.of([Node(id=task.task_name, task=task.task_name)])
        self._task = task
        self._broker = broker

    async def start(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
        """Kick the task."""
        kicked = await self._task.kicker().with_broker(self._broker).kiq(*args, **kwargs)
        return kicked.task_id
