"""What one process remembers of messages."""

from __future__ import annotations

import logging
from collections.abc import Callable

from taskiq_flow_security.replay.records import Progress
from taskiq_flow_security.stores.losses import Losses
from taskiq_flow_security.tokens.message_signature import MessageSignature

_losses = Losses(logging.getLogger(__name__), "minutes of messages are forgotten by this process before they expire")

_SPAN = 60
"""Seconds: what expires within the same span is forgotten at once."""


class MemoryReplays:
    """Remembers messages, about 100 bytes for each, until they have expired for `margin` seconds.

    With `at_most`, those that expire soonest are forgotten where there are more, once in a while; the log says so.
    """

    def __init__(self, clock: Callable[[], float], margin: float, *, at_most: int | None = None) -> None:
        self._clock = clock
        self._margin = margin
        self._at_most = at_most
        self._spans: dict[tuple[int, str], dict[str, Progress]] = {}

    @property
    def remembered(self) -> int:
        """How many messages are remembered."""
        return sum(map(len, list(self._spans.values())))

    def find(self, message: MessageSignature) -> Progress | None:
        """How far the message has come; ``None`` if nothing is known of it."""
        span = self._spans.get((message.expires_at // _SPAN, message.kid))
        return None if span is None else span.get(message.jti)

    def note(self, message: MessageSignature, progress: Progress) -> None:
        """Remember that the message has come so far."""
        when = (message.expires_at // _SPAN, message.kid)
        span = self._spans.get(when)
        if span is None:
            self._forget()
            span = self._spans.setdefault(when, {})
        span[message.jti] = progress

    def _forget(self) -> None:
        """Forget what has expired, and what is too much."""
        expired = int(self._clock() - self._margin) // _SPAN
        for when in sorted(self._spans):  # a copy, made in one step: other threads may add some
            if when[0] >= expired:
                if self._at_most is None or self.remembered <= self._at_most:
                    break
                _losses.add("it would remember too many; shorten queue_ttl, and share what has run: shared_store")
            self._spans.pop(when, None)
