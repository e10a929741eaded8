"""Where the signed policy is kept."""

from __future__ import annotations

from hashlib import sha1
from typing import NamedTuple, Protocol

NOTHING = b""
"""The mark of nothing."""


def mark_of(signed: bytes) -> bytes:
    """The mark of a policy: SHA-1, which Redis computes too. It only tells what is there from what should be."""
    return sha1(signed, usedforsecurity=False).hexdigest().encode()


class Found(NamedTuple):
    """What a store holds, with its mark."""

    mark: bytes
    signed: bytes
    """Empty where there is nothing, or what could be no policy."""


class PolicyStore(Protocol):
    """Keeps one piece of bytes, of which nothing is believed unverified. Raises `BackendUnavailableError` when away."""

    shared: bool
    """Whether other processes can write to it, too."""

    async def mark(self) -> bytes:
        """The mark of what is there: `mark_of` its bytes, `NOTHING`, or another word for what could be no policy."""

    async def read(self) -> Found:
        """What is there."""

    async def replace(self, mark: bytes, new: bytes) -> bool:
        """Put something else there, if what is there still has this mark. Whether the new is there then."""


class MemoryPolicyStore:
    """In the memory of one process."""

    shared = False

    def __init__(self) -> None:
        self._kept: bytes | None = None

    async def mark(self) -> bytes:
        """As `PolicyStore`."""
        return NOTHING if self._kept is None else mark_of(self._kept)

    async def read(self) -> Found:
        """As `PolicyStore`."""
        return Found(await self.mark(), self._kept or b"")

    async def replace(self, mark: bytes, new: bytes) -> bool:
        """As `PolicyStore`."""
        if await self.mark() == mark:
            self._kept = new
        return self._kept == new
