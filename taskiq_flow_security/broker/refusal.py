"""How a worker refuses a message: the function does not run, no dependency is resolved, the message is acked, nothing
is retried, and the waiter gets a typed error at once.

An exception in `pre_execute` would be caught by nobody (TaskIQ 0.13): the message would never be acked. So a refused
task is given one dependency in place of its own, which raises where the receiver catches what dependencies raise. That
holds whatever other middlewares do with the message afterwards.
"""

from __future__ import annotations

import asyncio
import logging
from collections import UserDict
from collections.abc import MutableMapping
from typing import Any, NoReturn

from taskiq import TaskiqDepends
from taskiq.abc.broker import AsyncBroker
from taskiq.acks import AcknowledgeType
from taskiq.message import TaskiqMessage
from taskiq.result import TaskiqResult
from taskiq.result_backends.dummy import DummyResultBackend

from taskiq_flow_security.broker import delivery as deliveries
from taskiq_flow_security.broker.delivery import Delivery, RefusalSignal
from taskiq_flow_security.errors import FlowSecurityError

_logger = logging.getLogger(__name__)

_ACK_TYPE = AcknowledgeType.WHEN_SAVED.value

_PATIENCE = 5.0
"""Seconds that a result backend has to say whether a result is there."""


def refuse(message: TaskiqMessage, delivery: Delivery, error: FlowSecurityError) -> None:
    """Prepare a message so that the receiver refuses it."""
    delivery.refusal = RefusalSignal(error)
    message.args = []
    message.kwargs = {}
    message.labels["retry_on_error"] = False
    # Acked whatever the task or the worker says, and even if the label is one that TaskIQ cannot read.
    message.labels["ack_type"] = _ACK_TYPE


async def settle(message: TaskiqMessage, delivery: Delivery, result: TaskiqResult[Any]) -> None:
    """Keep the result of a refused task from being stored where another is there already, and see to its ack."""
    assert delivery.refusal is not None  # it was refused
    if delivery.ack is not None and message.labels.get("ack_type") != _ACK_TYPE:
        await delivery.ack()  # another middleware has said that the task will, and it does not run
    # The genuine message may have been answered since this one came.
    keep_result = delivery.keep_result or await result_exists(delivery.broker, delivery.task_id)
    result.error = delivery.refusal if keep_result else delivery.refusal.restore()


def empty(message: TaskiqMessage) -> None:
    """Take out of a message all that somebody unknown has put in, so that nothing can act on it."""
    message.labels = {}
    message.labels_types = None
    message.args = []
    message.kwargs = {}


async def result_exists(broker: AsyncBroker, task_id: str) -> bool:
    """Whether a result is stored for this task; assumed where it cannot be found out, or not in a while."""
    if isinstance(broker.result_backend, DummyResultBackend):
        return False  # it says that all are there, and keeps none
    try:
        return await asyncio.wait_for(broker.result_backend.is_result_ready(task_id), _PATIENCE)
    except Exception:  # noqa: BLE001 (result backends raise what they like)
        return True


async def answer(broker: AsyncBroker, task_id: str, error: FlowSecurityError) -> None:
    """Let whoever waits for a task that is never sent know why, unless there is a result already."""
    if await result_exists(broker, task_id):
        return
    result = TaskiqResult[Any](is_err=True, return_value=None, execution_time=0, error=error.with_traceback(None))
    try:
        await broker.result_backend.set_result(task_id, result)
    except Exception:
        _logger.exception("The result of a kick that was denied cannot be stored.")


def _raise_refusal() -> NoReturn:
    raise _refusal() or AssertionError("nothing is refused here")


def _refused(_: Any = TaskiqDepends(_raise_refusal)) -> None:
    """Stands in for a refused task where its dependencies are looked for."""


class DependencyOverrides(UserDict[Any, Any]):
    """The broker's dependency overrides, by which TaskIQ replaces dependencies before it resolves them.

    Where a message is refused, they replace the task itself. Else they are those that the user has given the broker,
    who may go on changing them.
    """

    def __init__(self, overrides: MutableMapping[Any, Any]) -> None:
        super().__init__()
        self.data = overrides  # type: ignore[assignment]  # it is a dict where the user has given one

    def __bool__(self) -> bool:
        return bool(self.data) or _refusal() is not None

    def __contains__(self, dependency: object) -> bool:
        if _refusal() is None:
            return super().__contains__(dependency)
        return dependency is not _raise_refusal

    def __getitem__(self, dependency: Any) -> Any:
        return super().__getitem__(dependency) if _refusal() is None else _refused


def _refusal() -> RefusalSignal | None:
    delivery = deliveries.current.get()
    return None if delivery is None else delivery.refusal
