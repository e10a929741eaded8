"""Messages as they lie on the wire: genuine ones, and forgeries of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from uuid import uuid4

from taskiq import AsyncTaskiqDecoratedTask, InMemoryBroker
from taskiq.message import BrokerMessage, TaskiqMessage

from taskiq_flow_security import (
    FlowSecurity,
    Principal,
    SecurityMiddleware,
    TaskiqFlowConfig,
)
from tests.integration.settings import (
    OTHER_SECRET,
    PROCESSOR,
    caller_config,
    signing_key,
)
from tests.integration.worker_app import clean

Task = AsyncTaskiqDecoratedTask[Any, Any]
Forgery = Callable[[str, str], BrokerMessage]
"""Makes a message for `clean` from a task id and a marker."""


class Signer:
    """Signs messages with the keys of a configuration, whether or not its policy would let anybody send them."""

    def __init__(self, config: TaskiqFlowConfig) -> None:
        self._security = FlowSecurity(config)
        self._broker = InMemoryBroker().with_middlewares(SecurityMiddleware(self._security))

    def sign(
        self,
        task: Task,
        *args: object,
        principal: Principal = PROCESSOR,
        task_id: str | None = None,
    ) -> BrokerMessage:
        """The message for this task as it is sent."""
        with self._security.acting_as(principal):
            return self._broker.formatter.dumps(_message(task, args, task_id))


def unsigned(task_id: str, marker: str) -> BrokerMessage:
    """A message as TaskIQ alone sends it."""
    return InMemoryBroker().formatter.dumps(_message(clean, (marker, [1]), task_id))


def altered(task_id: str, marker: str) -> BrokerMessage:
    """A genuine message with another argument."""
    message = _GENUINE.sign(clean, marker, [1], task_id=task_id)
    content = json.loads(message.message)
    content["args"] = [marker, [1_000_000]]
    return message.model_copy(update={"message": json.dumps(content).encode()})


def signed_by_a_stranger(task_id: str, marker: str) -> BrokerMessage:
    """A message signed with a key that the worker does not know."""
    return _STRANGER.sign(clean, marker, [1], task_id=task_id)


def signed_by_an_impostor(task_id: str, marker: str) -> BrokerMessage:
    """A message signed with another key under the name of one that the worker knows."""
    return _IMPOSTOR.sign(clean, marker, [1], task_id=task_id)


_GENUINE = Signer(caller_config())
_STRANGER = Signer(caller_config(signing_keys=[signing_key("other", OTHER_SECRET)]))
_IMPOSTOR = Signer(caller_config(signing_keys=[signing_key("current", OTHER_SECRET)]))

FORGERIES: dict[Forgery, str] = {
    unsigned: "unsigned",
    altered: "bad_signature",
    signed_by_a_stranger: "unknown_key",
    signed_by_an_impostor: "bad_signature",
}
"""Each forgery with the reason for which it is refused."""


def _message(task: Task, args: tuple[object, ...], task_id: str | None) -> TaskiqMessage:
    return TaskiqMessage(
        task_id=task_id or uuid4().hex,
        task_name=task.task_name,
        labels=dict(task.labels),
        args=list(args),
        kwargs={},
    )
