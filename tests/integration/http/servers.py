"""Real uvicorn servers in this process."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from typing import Any

import uvicorn

from taskiq_flow_security.http.asgi import App
from tests.integration.waiting import until


@asynccontextmanager
async def serve(app: App, **options: Any) -> AsyncIterator[int]:
    """Serve an application on a free port of the loopback address; the port."""
    # The protocol is named, as asyncio turns Nagle's algorithm off only then.
    with closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)) as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off", **options))
        running = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            await until(lambda: server.started or running.done())
            yield int(listener.getsockname()[1])
        finally:
            server.should_exit = True
            await running
