"""How to wait for what nobody tells of."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from taskiq.utils import maybe_awaitable


async def until(condition: Callable[[], bool | Awaitable[bool]], seconds: float = 10.0) -> None:
    """Wait until something has been seen that nobody tells of."""

    async def wait() -> None:
        while not await maybe_awaitable(condition()):  # noqa: ASYNC110 (nobody tells)
            await asyncio.sleep(0.01)

    await asyncio.wait_for(wait(), seconds)
