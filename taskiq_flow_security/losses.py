"""Says in the log what is lost, without filling the log with it."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable

INTERVAL = 60.0
"""Seconds between two lines about the same loss."""


class Losses:
    """Counts losses, and logs the first one at once, then their number once in a while."""

    def __init__(self, logger: logging.Logger, what: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._logger = logger
        self._what = what
        self._clock = clock
        self._counts: Counter[str] = Counter()
        self._logged: dict[str, float] = {}
        self._counting = threading.RLock()  # what the garbage collector ends meanwhile may be a loss, too

    def add(self, why: str, number: int = 1) -> None:
        """Count some. `why` is one of a few fixed texts, never something that came from outside."""
        now = self._clock()
        with self._counting:
            self._counts[why] += number
            if now - self._logged.get(why, -INTERVAL) < INTERVAL:
                return
            self._logged[why] = now
            lost = self._counts.pop(why, 0)  # none, where that has told of it already
        if lost:
            self._logger.warning("%d %s: %s.", lost, self._what, why)
