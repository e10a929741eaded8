"""What a kick may say in its labels, and what is put there."""

from __future__ import annotations

from typing import Any

from taskiq.labels import LabelType
from taskiq.message import TaskiqMessage

from taskiq_flow_security.broker import wire
from taskiq_flow_security.broker.access_requests import check_pipeline
from taskiq_flow_security.broker.delivery import Task
from taskiq_flow_security.broker.wire import DELAY_LABEL, PIPELINE_LABEL, QUEUE_TTL_LABEL
from taskiq_flow_security.core.reasons import Reason
from taskiq_flow_security.errors import AccessDeniedError, ConfigurationError, UnsignableMessageError
from taskiq_flow_security.tokens.principal_token import PRINCIPAL_LABEL

_SHORT = 200
"""Characters of a label that is too short to hold a principal."""


def check_credentials(message: TaskiqMessage, task: Task | None) -> None:
    """Raise `ConfigurationError` for a principal that stands where nobody would take it off.

    It would reach results and dashboards, or kicks of others.
    """
    if task is not None and task.labels.pop(PRINCIPAL_LABEL, None) is not None:
        # All kickers of a shared task write into the task's own labels (TaskIQ 0.13), for everybody who kicks it later.
        raise ConfigurationError(
            "TaskIQ gives all kickers of a shared task the same labels, so that they cannot carry a principal; kick it "
            "inside `with security.acting_as(principal):`."
        )
    for name, value in message.labels.items():
        if len(str(value)) > _SHORT and name != PRINCIPAL_LABEL and _holds_principal(wire.read_label(message, name)):
            # Pipeline libraries keep the labels of their next steps in one.
            raise ConfigurationError(
                f"The label {name} holds a principal, as it does where a step of a pipeline is given one with "
                "labels_for; kick the whole pipeline inside `with security.acting_as(principal):`."
            )


def name_pipeline(message: TaskiqMessage, pipeline: str | None, task: Task | None) -> None:
    """Let the message name the pipeline that the kick is made for, if its task has none by registration.

    Raises `AccessDeniedError` if it names another one.
    """
    registered = None if task is None else task.labels.get(PIPELINE_LABEL)
    if task is not None and registered is not None:
        if type(registered) is not str:
            check_pipeline(task)
            if message.labels.get(PIPELINE_LABEL) == str(registered):
                _set_pipeline(message, str.__str__(registered))  # of the members of enums, TaskIQ sends their names
        return
    if task is not None and PIPELINE_LABEL in task.labels and message.labels.get(PIPELINE_LABEL) == str(None):
        del message.labels[PIPELINE_LABEL]  # to TaskIQ, ``pipeline=None`` is that text
    if pipeline is None:
        return
    named = wire.read_label(message, PIPELINE_LABEL)
    if named is None:
        _set_pipeline(message, pipeline)
    elif named != pipeline:
        raise AccessDeniedError(
            Reason.PIPELINE_MISMATCH,
            "The message names another pipeline than the one that the caller acts for.",
        )


def time_to_live(labels: dict[str, Any], default: float, at_most: float) -> float:
    """Seconds that a message with these labels may wait: its own time to live or the default, and any delay it has.

    Raises `UnsignableMessageError` for labels that do not say so, or say more than `at_most`.
    """
    if QUEUE_TTL_LABEL not in labels and DELAY_LABEL not in labels:
        return default
    try:
        ttl = float(labels.get(QUEUE_TTL_LABEL, default))
        delay = float(labels.get(DELAY_LABEL, 0))
    except (TypeError, ValueError):
        ttl = delay = -1
    if not (ttl > 0 and delay >= 0):
        raise UnsignableMessageError("The labels queue_ttl and delay must be numbers of seconds, queue_ttl above 0.")
    if not ttl + delay <= at_most:
        raise UnsignableMessageError(
            "The message may wait longer (queue_ttl and delay) than its principal is accepted; shorten that, or raise "
            "principal_ttl."
        )
    return ttl + delay


def _holds_principal(value: object) -> bool:
    if isinstance(value, bytes):
        return PRINCIPAL_LABEL.encode() in value
    return isinstance(value, str) and PRINCIPAL_LABEL in value


def _set_pipeline(message: TaskiqMessage, pipeline: str) -> None:
    message.labels[PIPELINE_LABEL] = pipeline
    if message.labels_types is not None:
        message.labels_types[PIPELINE_LABEL] = LabelType.STR
