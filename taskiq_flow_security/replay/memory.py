"""What one process remembers of messages."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from itertools import islice
from math import inf

from taskiq_flow_security.losses import Losses
from taskiq_flow_security.replay.records import Progress
from taskiq_flow_security.tokens.message_signature import MessageSignature

_losses = Losses(logging.getLogger(__name__), "messages are forgotten by this process before they expire")

_SPAN = 60
"""Seconds: what expires within the same span is forgotten at once."""


class MemoryReplays:
    """Remembers messages, about 100 bytes for each, until they have expired for `margin` seconds.

    With `at_most`, those that expire soonest are forgotten where there would be more; the log says so.
    """

    def __init__(self, clock: Callable[[], float], margin: float, *, at_most: int | None = None) -> None:
        self._clock = clock
        self._margin = margin
        self._at_most = inf if at_most is None else at_most
        self._spans: dict[tuple[int, str], dict[str, Progress]] = {}
        self._noting = threading.Lock()
        self.remembered = 0
        """How many messages are remembered."""

    def find(self, message: MessageSignature) -> Progress | None:
        """How far the message has come; ``None`` if nothing is known of it."""
        span = self._spans.get((message.expires_at // _SPAN, message.kid))
        return None if span is None else span.get(message.jti)

    def note(self, message: MessageSignature, progress: Progress) -> None:
        """Remember that the message has come so far."""
        jti, when = message.jti, (message.expires_at // _SPAN, message.kid)
        with self._noting:
            span = self._spans.get(when)
            if span is None:
                self._forget_expired()
                span = self._spans[when] = {}
            if jti not in span:
                if self.remembered >= self._at_most:
                    self._make_room(max(int(self._at_most) // 100, 1))
                    span = self._spans.setdefault(when, {})
                self.remembered += 1
            span[jti] = progress

    def _forget_expired(self) -> None:
        expired = int(self._clock() - self._margin) // _SPAN
        for when in [when for when in self._spans if when[0] < expired]:
            self.remembered -= len(self._spans.pop(when))

    def _make_room(self, number: int) -> None:
        """Forget so many, of those that expire soonest: some at a time, as the spans have to be sorted for that."""
        _losses.add("it would remember too many; shorten queue_ttl, and share what has run: shared_store", number)
        self.remembered -= number
        for when in sorted(self._spans):
            span = self._spans[when]
            for jti in list(islice(span, number)):
                del span[jti]
                number -= 1
            if not span:
                del self._spans[when]
            if not number:
                return
