"""The last step before the wire and the first after it."""

from __future__ import annotations

from typing import Protocol

from taskiq.abc.formatter import TaskiqFormatter
from taskiq.message import BrokerMessage, TaskiqMessage


class Sealer(Protocol):
    """Signs messages."""

    def seal(self, message: TaskiqMessage, inner: TaskiqFormatter) -> BrokerMessage | None:
        """The signed message to send for this one, or ``None`` where it is to be sent as it is."""


class Opener(Protocol):
    """Verifies messages."""

    def open(self, data: bytes, inner: TaskiqFormatter) -> TaskiqMessage:
        """The message that these bytes hold, or one that will be refused.

        Raises what `inner` does where security is off, and nothing else.
        """


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
        sealed = self._sealer.seal(message, self.inner)
        return self.inner.dumps(message) if sealed is None else sealed

    def loads(self, message: bytes) -> TaskiqMessage:
        """Load as the broker's formatter does, then verify."""
        if self._retired:
            return self.inner.loads(message)
        return self._opener.open(message, self.inner)
