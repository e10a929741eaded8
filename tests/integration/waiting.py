"""How to wait for what nobody tells of."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait until something has been seen that nobody tells of."""

    async def wait() -> None:
        while not condition():  # noqa: ASYNC110 (nobody tells)
            await asyncio.sleep(0.01)

    await asyncio.wait_for(wait(), seconds)
