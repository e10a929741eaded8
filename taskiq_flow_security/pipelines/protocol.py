"""What anything must have to be a pipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from taskiq_flow_security.pipelines.graph import Graph


class InputError(ValueError):
    """A pipeline cannot be started with such arguments; the message says why, and quotes none of them."""


class AbandonedRunError(Exception):
    """A run was given up by what carries it, and not by one of its tasks; what it says may be shown to its callers.

    The result of such a run. As a result backend stores it, it is rebuilt from its ``args``.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)

    @property
    def reason(self) -> str:
        """A stable code: ``no_result`` or ``process_ended`` here."""
        return str(self.args[0])

    def __str__(self) -> str:
        return str(self.args[1])


@runtime_checkable
class Pipeline(Protocol):
    """A pipeline that can be shown and started. What runs it is somebody else's."""

    @property
    def id(self) -> str:
        """Its name: the resource that the policy decides about."""

    @property
    def graph(self) -> Graph:
        """Its steps."""

    async def start(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
        """Start a run, and return the id of the task whose result is the run's.

        Called inside ``security.acting_as(principal, pipeline=self.id)``, so that all that is kicked here is kicked by
        the caller for this pipeline. Raises `InputError` where the arguments do not fit, and what a kick raises.
        """


@runtime_checkable
class RunsHere(Protocol):
    """A pipeline whose runs need the process that started them."""

    async def close(self) -> None:
        """End what still runs; each run ends with an error."""
