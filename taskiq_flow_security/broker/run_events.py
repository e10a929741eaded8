"""Tells of the tasks of pipelines, for who watches their runs. Nothing that fails here is allowed to touch a task."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

from taskiq.exceptions import NoResultError
from taskiq.message import TaskiqMessage

from taskiq_flow_security.broker import wire
from taskiq_flow_security.broker.access_requests import registered_pipeline
from taskiq_flow_security.broker.delivery import Delivery
from taskiq_flow_security.broker.wire import PIPELINE_LABEL
from taskiq_flow_security.core.reasons import Reason
from taskiq_flow_security.runs.events import RunEvent, RunEventKind
from taskiq_flow_security.security import FlowSecurity
from taskiq_flow_security.tokens.principal_token import PrincipalToken

_logger = logging.getLogger(__name__)

P = ParamSpec("P")


def _harmless(tell: Callable[P, None]) -> Callable[P, None]:
    @wraps(tell)
    def tell_if_possible(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            tell(*args, **kwargs)
        except Exception:
            _logger.exception("An event of a run cannot be told.")

    return tell_if_possible


@_harmless
def enqueued(security: FlowSecurity, message: TaskiqMessage, pipeline: object, token: PrincipalToken) -> None:
    """Tell that a message was signed to be sent."""
    _tell(security, RunEventKind.ENQUEUED, pipeline, message.task_name, message.task_id, token)


@_harmless
def decided(security: FlowSecurity, message: TaskiqMessage, delivery: Delivery) -> None:
    """Tell that a task starts, or is refused. Of a message that is not authentic, nothing is told."""
    if delivery.token is None or delivery.signature is None:
        return
    registered = registered_pipeline(delivery.broker.find_task(delivery.task_name))
    delivery.pipeline = registered or wire.read_label(message, PIPELINE_LABEL)
    if delivery.admitted is not None:
        _tell_of(security, RunEventKind.STARTED, delivery)
    else:
        _tell_of(security, RunEventKind.REFUSED, delivery, getattr(delivery.error, "reason", Reason.INTERNAL_ERROR))


@_harmless
def failed(security: FlowSecurity, delivery: Delivery, exception: BaseException) -> None:
    """Tell that a task has raised something. One that was requeued has not failed."""
    if delivery.admitted is not None and not isinstance(exception, NoResultError):
        _tell_of(security, RunEventKind.FAILED, delivery, type(exception).__name__)


@_harmless
def completed(security: FlowSecurity, delivery: Delivery) -> None:
    """Tell that a task has returned something."""
    if delivery.admitted is not None:
        _tell_of(security, RunEventKind.COMPLETED, delivery)


def _tell_of(security: FlowSecurity, kind: RunEventKind, delivery: Delivery, reason: str | None = None) -> None:
    if delivery.token is not None:
        _tell(security, kind, delivery.pipeline, delivery.task_name, delivery.task_id, delivery.token, reason)


def _tell(
    security: FlowSecurity,
    kind: RunEventKind,
    pipeline: object,
    task: str,
    task_id: str,
    token: PrincipalToken,
    reason: str | None = None,
) -> None:
    if not isinstance(pipeline, str) or not security.run_events.wants(pipeline):
        return
    security.run_events.publish(
        RunEvent(pipeline, token.txn, kind, security.clock(), task, task_id, reason, token.principal.subject)
    )
