"""How tasks end."""

from __future__ import annotations

import asyncio
from typing import Any

_AGAIN = 0.5
"""Seconds until a task is cancelled again that has not ended."""


async def end(*tasks: asyncio.Future[Any]) -> None:
    """Cancel tasks and wait for their ends, whatever those are.

    More than once, if need be: before Python 3.12, `asyncio.wait_for` loses a cancellation that comes just as what it
    waits for is done.
    """
    pending = set(tasks)
    while pending:
        _cancel(pending)
        try:
            # Not `gather`: cancelled itself meanwhile, as by Starlette's TestClient, it would raise that once more.
            _, pending = await asyncio.wait(pending, timeout=_AGAIN)
        except asyncio.CancelledError:
            _cancel(pending)  # who ends this one too does not wait for it to come round
            raise
    for task in tasks:
        if not task.cancelled():
            task.exception()  # or it is logged as lost


def _cancel(tasks: set[asyncio.Future[Any]]) -> None:
    for task in tasks:
        task.cancel()
