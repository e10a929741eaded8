"""The last step before the wire and the first after it."""

from __future__ import annotations

from typing import Protocol

from taskiq.abc.formatter import TaskiqFormatter
from taskiq.formatters.proxy_formatter import ProxyFormatter
from taskiq.message import BrokerMessage, TaskiqMessage

from taskiq_flow_security.broker.wire import WireMessage


class Sealer(Protocol):
    """Signs messages."""

    def seal(self, message: TaskiqMessage, inner: TaskiqFormatter) -> WireMessage | None:
        """The message to send in place of this one, if not this one."""


class Opener(Protocol):
    """Verifies messages."""

    def open(self, data: bytes, inner: TaskiqFormatter) -> TaskiqMessage:
        """The message that these bytes hold, or one that will be refused. Never raises."""


class SigningFormatter(TaskiqFormatter):
    """Wraps the broker's own formatter.

    Only here can a message be signed after all middlewares and verified before all of them, `Context.requeue` included,
    which runs no `pre_send`.
    """

    def __init__(self, inner: TaskiqFormatter, sealer: Sealer, opener: Opener) -> None:
        self.inner = inner
        self._sealer = sealer
        self._opener = opener
        self._retired = False

    def retire(self) -> None:
        """Leave signing and verifying to another one, which may have been put around this one."""
        self._retired = True

    def dumps(self, message: TaskiqMessage) -> BrokerMessage:
        """Sign, then dump as the broker's formatter does."""
        if self._retired:
            return self.inner.dumps(message)
        data = self._sealer.seal(message, self.inner)
        if data is None:
            return self.inner.dumps(message)
        if type(self.inner) is ProxyFormatter:
            # TaskIQ's default: this is what it does, but for dumping the message to plain values once more.
            return BrokerMessage(
                task_id=data["task_id"],
                task_name=data["task_name"],
                message=self.inner.broker.serializer.dumpb(data),
                labels=data["labels"],
            )
        return self.inner.dumps(TaskiqMessage.model_construct(**data))

    def loads(self, message: bytes) -> TaskiqMessage:
        """Load as the broker's formatter does, then verify."""
        if self._retired:
            return self.inner.loads(message)
        return self._opener.open(message, self.inner)
