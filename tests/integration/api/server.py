"""Applications served by uvicorn, and who calls them."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urljoin

import httpx
import uvicorn
from websockets.asyncio.client import ClientConnection, connect

from taskiq_flow_security import TaskiqFlowConfig

PROCESSOR = "the-key-of-a-processor-0123456789"
VIEWER = "the-key-of-a-viewer-0123456789"
STRANGER = "the-key-of-somebody-else-0123456789"
ADMIN = "the-key-of-an-administrator-0123456789"
KEYS = (PROCESSOR, VIEWER, STRANGER, ADMIN)

MANY = "100000/minute"
ENDPOINTS = ("list_pipelines", "get_dag", "get_critical_path", "get_parallel_groups", "execute_pipeline", "get_status")

FINISHED_SECONDS = 20


def config(**changes: Any) -> TaskiqFlowConfig:
    """Settings with a key of each kind, and limits that no test runs into."""
    everything = ["read", "execute"]
    settings: dict[str, Any] = {
        "jwt_secret": "the-secret-of-this-deployment-0123456789",
        "require_https": False,
        "api_keys": {
            PROCESSOR: {"role": "processor", "pipelines": ["tables", "flow"], "permissions": everything},
            VIEWER: {"role": "viewer", "pipelines": ["tables", "flow"], "permissions": ["read"]},
            STRANGER: {"role": "processor", "pipelines": ["elsewhere"], "permissions": everything},
            ADMIN: {"role": "admin", "permissions": [*everything, "admin"]},
        },
        "rate_limit_default": MANY,
        "rate_limits": {**dict.fromkeys(ENDPOINTS, MANY), "websocket_connect": MANY},
        "rate_limit_failed_logins": MANY,
    }
    return TaskiqFlowConfig(**(settings | changes))


class Client:
    """Calls one server."""

    def __init__(self, address: str, http: httpx.AsyncClient) -> None:
        self.address = address
        self.http = http

    async def get(self, path: str, key: str | None = None) -> httpx.Response:
        """Ask for something."""
        return await self.http.get(path, headers=_headers(key))

    async def execute(self, pipeline_id: str, key: str | None, *args: Any, **kwargs: Any) -> httpx.Response:
        """Start a pipeline."""
        body = {"args": args, "kwargs": kwargs}
        return await self.http.post(f"/pipelines/{pipeline_id}/execute", json=body, headers=_headers(key))

    async def run(self, pipeline_id: str, key: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Start a pipeline, and what came of it."""
        return await self.finished(await self.execute(pipeline_id, key, *args, **kwargs), key)

    async def finished(self, started: httpx.Response, key: str) -> dict[str, Any]:
        """What came of a run that was started."""
        assert started.status_code == 202, started.text
        location = urljoin(str(started.url), started.headers["location"])
        return await asyncio.wait_for(self._finished(location, key), FINISHED_SECONDS)

    async def _finished(self, location: str, key: str) -> dict[str, Any]:
        while True:
            run: dict[str, Any] = (await self.get(location, key)).raise_for_status().json()
            if run["state"] != "running":
                return run
            await asyncio.sleep(0.02)  # HTTP has nothing to await

    @asynccontextmanager
    async def live(
        self, key: str | None, path: str = "/ws", *, receive_buffer: int | None = None
    ) -> AsyncIterator[Live]:
        """A WebSocket, whose end here can hold so many bytes that nobody has read."""
        host, port = self.address.split(":")
        with socket.socket() as raw:
            if receive_buffer is not None:
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            raw.setblocking(False)
            await asyncio.get_running_loop().sock_connect(raw, (host, int(port)))
            url = f"ws://{self.address}{path}"
            async with connect(url, sock=raw, additional_headers=_headers(key), compression=None) as connection:
                yield Live(connection)


class Live:
    """A WebSocket that speaks JSON."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection

    async def send(self, **message: Any) -> None:
        """Send a message."""
        await self.connection.send(json.dumps(message))

    async def receive(self) -> dict[str, Any]:
        """The next message."""
        message: dict[str, Any] = json.loads(await asyncio.wait_for(self.connection.recv(), FINISHED_SECONDS))
        return message

    async def ask(self, **message: Any) -> dict[str, Any]:
        """Send a message and receive the next one."""
        await self.send(**message)
        return await self.receive()


@asynccontextmanager
async def serving(app: Any, **options: Any) -> AsyncIterator[Client]:
    """Serve an application with uvicorn, on a free port."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        server = uvicorn.Server(uvicorn.Config(app, lifespan="on", log_config=None, **options))
        task = asyncio.create_task(server.serve([listening]))
        try:
            async with httpx.AsyncClient(base_url=f"http://{address}", timeout=FINISHED_SECONDS) as http:
                yield Client(address, http)
        finally:
            server.should_exit = True
            await task


def _headers(key: str | None) -> dict[str, str]:
    return {} if key is None else {"X-API-Key": key}
