"""How a worker refuses a message: the function does not run, no dependency is resolved, the message is acked, nothing
is retried, and the waiter gets a typed error at once.

An exception in `pre_execute` would be caught by nobody (TaskIQ 0.13): the message would never be acked. So the task is
let run into an exception at the first two places inside the receiver's own ``try``: where dependencies are resolved,
and where its keyword arguments are unpacked.
"""

from __future__ import annotations

from typing import Any, NoReturn

from taskiq.abc.broker import AsyncBroker
from taskiq.acks import AcknowledgeType
from taskiq.message import TaskiqMessage
from taskiq.result import TaskiqResult

from taskiq_flow_security.broker import delivery as deliveries
from taskiq_flow_security.broker.delivery import Delivery, RefusalSignal
from taskiq_flow_security.errors import FlowSecurityError


def refuse(message: TaskiqMessage, delivery: Delivery, error: FlowSecurityError) -> None:
    """Prepare a message so that the receiver refuses it."""
    delivery.refusal = RefusalSignal(error=error)
    message.args = []
    message.kwargs = RefusedKwargs(delivery.refusal)
    message.labels["retry_on_error"] = False
    # Acked whatever the task or the worker says, and even if the label is one that TaskIQ cannot read.
    message.labels["ack_type"] = AcknowledgeType.WHEN_SAVED.value


def settle(delivery: Delivery, result: TaskiqResult[Any]) -> None:
    """Give a refused task its result, unless another is there already."""
    if delivery.refusal is not None and not delivery.keep_result:
        # Its frames hold the message and its tokens.
        result.error = delivery.refusal.error.with_traceback(None)


def empty(message: TaskiqMessage) -> None:
    """Take out of a message all that somebody unknown has put in, so that nothing can act on it."""
    message.labels = {}
    message.labels_types = None
    message.args = []
    message.kwargs = {}


async def result_exists(broker: AsyncBroker, task_id: str) -> bool:
    """Whether a result is stored for this task; assumed where it cannot be found out."""
    try:
        return await broker.result_backend.is_result_ready(task_id)
    except Exception:  # noqa: BLE001 (result backends raise what they like)
        return True


class RefusedKwargs(dict[str, Any]):
    """Empty to whoever looks at it, a refusal to whoever unpacks it to call the function."""

    def __init__(self, signal: RefusalSignal) -> None:
        super().__init__()
        self._signal = signal

    def keys(self) -> NoReturn:
        raise self._signal

    def __iter__(self) -> NoReturn:
        raise self._signal


class DependencyContext(dict[Any, Any]):
    """The broker's first-level dependencies. TaskIQ copies them before it resolves any dependency of a task."""

    def __copy__(self) -> dict[Any, Any]:
        delivery = deliveries.current.get()
        if delivery is not None and delivery.refusal is not None:
            raise delivery.refusal
        return dict(self)
