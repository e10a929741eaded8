"""Tells of the tasks of pipelines, where runs are watched. Nothing that fails here is allowed to touch a task."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec

from taskiq.exceptions import NoResultError
from taskiq.message import TaskiqMessage

from taskiq_flow_security.broker import wire
from taskiq_flow_security.broker.access_requests import registered_pipeline
from taskiq_flow_security.broker.delivery import Delivery
from taskiq_flow_security.broker.wire import PIPELINE_LABEL
from taskiq_flow_security.core.reasons import Reason
from taskiq_flow_security.losses import Losses
from taskiq_flow_security.runs.events import RunEvent, RunEventKind
from taskiq_flow_security.security import FlowSecurity
from taskiq_flow_security.tokens.principal_token import PrincipalToken

_losses = Losses(logging.getLogger(__name__), "run events could not be told")

P = ParamSpec("P")


def _harmless(tell: Callable[Concatenate[FlowSecurity, P], None]) -> Callable[Concatenate[FlowSecurity, P], None]:
    @wraps(tell)
    def tell_if_possible(security: FlowSecurity, /, *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            tell(security, *args, **kwargs)
        except Exception as error:  # noqa: BLE001 (the task matters more)
            _losses.add(type(error).__name__)

    return tell_if_possible


def enqueued(security: FlowSecurity, message: TaskiqMessage, pipeline: object, token: PrincipalToken) -> None:
    """Tell that a message was signed to be sent."""
    if security.run_events.watched:
        _tell(security, RunEventKind.ENQUEUED, message, pipeline, token)


def decided(security: FlowSecurity, message: TaskiqMessage, delivery: Delivery) -> None:
    """Tell that a task starts or is refused."""
    if not security.run_events.watched:
        return
    if delivery.admitted is not None:
        _tell_of(security, RunEventKind.STARTED, message, delivery)
    elif not delivery.keep_result:  # of a copy of what was told already, there is nothing to tell
        reason = Reason.INTERNAL_ERROR if delivery.error is None else delivery.error.reason
        _tell_of(security, RunEventKind.REFUSED, message, delivery, reason)


def failed(security: FlowSecurity, message: TaskiqMessage, delivery: Delivery, exception: BaseException) -> None:
    """Tell that a task has raised something. One that was requeued has not failed."""
    if security.run_events.watched and delivery.admitted is not None and not isinstance(exception, NoResultError):
        _tell_of(security, RunEventKind.FAILED, message, delivery, type(exception).__name__)


def completed(security: FlowSecurity, message: TaskiqMessage, delivery: Delivery) -> None:
    """Tell that a task has returned something."""
    if security.run_events.watched and delivery.admitted is not None:
        _tell_of(security, RunEventKind.COMPLETED, message, delivery)


async def flush(security: FlowSecurity) -> None:
    """Let all that was told be sent, before the process ends."""
    try:
        await security.run_events.flush()
    except Exception as error:  # noqa: BLE001 (the broker has more to shut down)
        _losses.add(type(error).__name__)


@_harmless
def _tell_of(
    security: FlowSecurity,
    kind: RunEventKind,
    message: TaskiqMessage,
    delivery: Delivery,
    reason: str | None = None,
) -> None:
    """Tell of a message that was received; nothing if it is not authentic, for what it says is somebody's invention."""
    if delivery.token is None or delivery.signature is None:
        return
    pipeline = registered_pipeline(delivery.task) or wire.read_label(message, PIPELINE_LABEL)
    _tell(security, kind, message, pipeline, delivery.token, reason)


@_harmless
def _tell(
    security: FlowSecurity,
    kind: RunEventKind,
    message: TaskiqMessage,
    pipeline: object,
    token: PrincipalToken,
    reason: str | None = None,
) -> None:
    if not isinstance(pipeline, str):
        return
    security.run_events.publish(
        RunEvent(
            pipeline_id=pipeline,
            run_id=token.txn,
            kind=kind,
            time=security.clock(),
            task=message.task_name,
            task_id=message.task_id,
            reason=reason,
            subject=token.principal.subject,
        )
    )
