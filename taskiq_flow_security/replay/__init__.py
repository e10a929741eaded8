"""Which messages have run, so that a copy of one is refused."""

from __future__ import annotations

from typing import NamedTuple

from taskiq_flow_security.replay.memory import MemoryReplays
from taskiq_flow_security.replay.records import Progress, SharedReplays

__all__ = ["MemoryReplays", "Progress", "ReplayStores", "SharedReplays"]


class ReplayStores(NamedTuple):
    """Where it is remembered which messages have run."""

    own: MemoryReplays
    """What this process remembers itself, which is asked first."""
    shared: SharedReplays | None = None
    """What it shares with others, and still knows after a restart."""
