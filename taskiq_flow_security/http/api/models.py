"""What the API is asked and what it answers. The OpenAPI document is made of these."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator

from taskiq_flow_security.core.principal import Permission
from taskiq_flow_security.pipelines import Edge, Node
from taskiq_flow_security.runs.records import RunState


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Health(_Model):
    """The API answers."""

    status: str = "healthy"


class Caller(_Model):
    """Who asks, as the API knows it."""

    subject: str
    roles: list[str]
    permissions: list[Permission] | None = Field(description="Null where the caller carries none: ACLs decide.")
    pipelines: list[str] = Field(description='The whitelist of pipelines; empty or containing "*" means all.')
    expires_at: datetime | None = Field(description="When the login ends.")


class PipelineSummary(_Model):
    """A pipeline that the caller may read."""

    id: str
    node_count: int
    edge_count: int
    may_execute: bool = Field(description="Whether the caller may start it.")


class PipelineList(_Model):
    """The pipelines that the caller may read."""

    pipelines: list[PipelineSummary]


class Dag(_Model):
    """The steps of a pipeline, a directed acyclic graph."""

    pipeline_id: str
    nodes: list[Node]
    edges: list[Edge]


class CriticalPath(_Model):
    """A longest chain of steps, each of which needs the one before."""

    pipeline_id: str
    critical_path: list[str] = Field(description="Ids of nodes.")
    length: int


class ParallelGroups(_Model):
    """The steps in the order in which they can run; those of one group can run at the same time."""

    pipeline_id: str
    parallel_groups: list[list[str]] = Field(description="Ids of nodes.")
    group_count: int


class Execution(_Model):
    """The arguments of a run."""

    args: list[Any] = Field(default=[], description="Positional arguments of the first step.")
    kwargs: dict[str, Any] = Field(default={}, description="Arguments by name; a dataflow pipeline's inputs.")

    @field_validator("kwargs")
    @classmethod
    def _check_kwargs(cls, kwargs: dict[str, Any]) -> dict[str, Any]:
        if "self" in kwargs:  # which is what TaskIQ's own `kiq` calls its first parameter (0.13)
            raise ValueError("TaskIQ cannot pass an argument of the name self")
        return kwargs


class RunStarted(_Model):
    """A run that was started. Where it can be followed, says the header Location."""

    pipeline_id: str
    run_id: str
    state: RunState = RunState.RUNNING


class RunSummary(_Model):
    """One run."""

    run_id: str
    state: RunState
    subject: str = Field(description="Who started it.")
    started_at: datetime


class PipelineStatus(_Model):
    """The latest runs of a pipeline, the newest first."""

    pipeline_id: str
    runs: list[RunSummary]


class RunError(_Model):
    """Why there is no result. What a task's own exception says stays on the server."""

    type: str = Field(description="The type of the exception.")
    reason: str | None = Field(default=None, description="A stable code, for refusals and runs that were given up.")
    detail: str | None = Field(default=None, description="For the same.")


class RunDetails(RunSummary):
    """One run, and what came of it."""

    pipeline_id: str
    result: JsonValue = Field(default=None, description="What the pipeline has returned.")
    result_problem: str | None = Field(default=None, description="Why the result cannot be shown, if so.")
    error: RunError | None = None


class ProblemDetails(BaseModel):
    """Why there is no other answer (RFC 9457)."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    reason: str = Field(description="A stable code.")
