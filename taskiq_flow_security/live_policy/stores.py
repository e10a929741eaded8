"""Where the signed policy is kept."""

from __future__ import annotations

from typing import Protocol


class PolicyStore(Protocol):
    """Keeps one piece of bytes, of which nothing is believed unverified. Raises `BackendUnavailableError` when away."""

    shared: bool
    """Whether other processes can write to it, too."""

    async def head(self) -> bytes | None:
        """The first line, which is another one for each version."""

    async def read(self) -> bytes | None:
        """All of it."""

    async def replace(self, old: bytes | None, new: bytes) -> bool:
        """Put something else there, if what is there is still the old; whether it was."""


class MemoryPolicyStore:
    """In the memory of one process."""

    shared = False

    def __init__(self) -> None:
        self._kept: bytes | None = None

    async def head(self) -> bytes | None:
        """As `PolicyStore`."""
        return None if self._kept is None else self._kept.partition(b"\n")[0]

    async def read(self) -> bytes | None:
        """As `PolicyStore`."""
        return self._kept

    async def replace(self, old: bytes | None, new: bytes) -> bool:
        """As `PolicyStore`."""
        if self._kept != old:
            return False
        self._kept = new
        return True
