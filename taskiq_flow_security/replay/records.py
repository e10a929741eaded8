"""What is remembered of a message, and by whom.

It is known by the `jti` of its signature and by the key: no holder of another key can make a message that is taken for
it. A retry or requeue is signed anew, and is another message.
"""

from __future__ import annotations

from collections.abc import Awaitable
from enum import Enum
from typing import Protocol

from taskiq_flow_security.tokens.message_signature import MessageSignature


class Progress(Enum):
    """How far a message has come."""

    STARTED = "started"
    COMPLETED = "completed"


class SharedReplays(Protocol):
    """What processes remember together. Each operation raises `BackendUnavailableError` if it is not possible now."""

    def progress(self, message: MessageSignature) -> Awaitable[Progress | None]:
        """How far the message has come; ``None`` if nothing is known of it."""

    def claim(self, message: MessageSignature, claimant: str) -> Awaitable[Progress | None]:
        """Note that the message starts, if nothing is known of it; else how far it has come.

        One claimant gets it, whoever tries at the same moment; and gets it again, in case the answer was lost.
        """

    def complete(self, message: MessageSignature) -> Awaitable[object]:
        """Note that the message has completed."""

    async def close(self) -> None:
        """Let go of connections. What comes later makes new ones."""
