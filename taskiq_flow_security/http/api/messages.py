"""What is said over the WebSocket, as JSON."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from taskiq_flow_security.runs.events import RunEventKind


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True)


class Connect(_Message):
    """The first message, where the client wants to know whether it is connected. The middleware has read `auth`."""

    type: Literal["connect"]


class Subscribe(_Message):
    """Send the events of a pipeline."""

    type: Literal["subscribe"]
    pipeline_id: str


class Unsubscribe(_Message):
    """Send them no longer."""

    type: Literal["unsubscribe"]
    pipeline_id: str


client_message: TypeAdapter[Connect | Subscribe | Unsubscribe] = TypeAdapter(
    Annotated[Connect | Subscribe | Unsubscribe, Field(discriminator="type")]
)
"""Reads what a client sends."""


class Connected(_Message):
    """The client is known."""

    type: Literal["connected"] = "connected"
    subject: str


class Subscribed(_Message):
    """Events follow."""

    type: Literal["subscribed"] = "subscribed"
    pipeline_id: str


class Unsubscribed(_Message):
    """No more events follow."""

    type: Literal["unsubscribed"] = "unsubscribed"
    pipeline_id: str


class Event(_Message):
    """What has happened to a task."""

    type: Literal["event"] = "event"
    pipeline_id: str
    run_id: str
    kind: RunEventKind
    time: float
    """Seconds since the epoch."""
    task: str
    task_id: str
    reason: str | None
    subject: str | None


class Error(_Message):
    """What the client has sent is of no use."""

    type: Literal["error"] = "error"
    reason: str
    """A stable code: one of `Reason`, ``not_found``, ``invalid_message`` or ``too_many_subscriptions``."""
    detail: str
    pipeline_id: str | None = None
