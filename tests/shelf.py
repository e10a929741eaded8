"""A result backend as somebody else may have written it: constructor, names and store of its own."""

from __future__ import annotations

from typing import Any

from taskiq import AsyncResultBackend, TaskiqResult
from taskiq.abc.serializer import TaskiqSerializer
from taskiq.depends.progress_tracker import TaskProgress
from taskiq.serializers import PickleSerializer

Drawers = dict[str, bytes]
"""The store: the bytes that were stored under each key, open to everybody."""


class ShelfResultBackend(AsyncResultBackend[Any]):
    """Keeps the bytes that its serializer makes."""

    def __init__(
        self, drawers: Drawers, /, *, serializer: TaskiqSerializer | None = None, keep_results: bool = True
    ) -> None:
        self.drawers = drawers
        self.serializer = serializer or PickleSerializer()
        self.keep_results = keep_results

    async def set_result(self, task_id: str, result: TaskiqResult[Any]) -> None:
        self.drawers[task_id] = self.serializer.dumpb(result.model_dump(mode="json"))

    async def is_result_ready(self, task_id: str) -> bool:
        return task_id in self.drawers

    async def get_result(self, task_id: str, with_logs: bool = False) -> TaskiqResult[Any]:
        stored = self.drawers[task_id] if self.keep_results else self.drawers.pop(task_id)
        result = TaskiqResult[Any].model_validate(self.serializer.loadb(stored))
        if not with_logs:
            result.log = None
        return result

    async def set_progress(self, task_id: str, progress: TaskProgress[Any]) -> None:
        self.drawers[progress_key(task_id)] = self.serializer.dumpb(progress.model_dump(mode="json"))

    async def get_progress(self, task_id: str) -> TaskProgress[Any] | None:
        stored = self.drawers.get(progress_key(task_id))
        return None if stored is None else TaskProgress[Any].model_validate(self.serializer.loadb(stored))


def progress_key(task_id: str) -> str:
    """Where a task's progress is."""
    return f"{task_id}/progress"
