"""Requests a second, each with API key, ACL, rate limit and audit event, beside the same checks made in other ways.

Each application is served by a uvicorn process of its own, and asked over connections that are kept open.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.benchmarks.harness import Batch, Effort, measure
from tests.benchmarks.http_apps import AUDIT_FILE, KEY, PIPELINE
from tests.benchmarks.report import Target, print_table

STARLETTE, FASTAPI = "Starlette", "FastAPI"
GUARDED = "{}, HTTPSecurityMiddleware, audit to a file"

APPS = {
    STARLETTE: "starlette",
    GUARDED.format(STARLETTE): "starlette_guarded",
    FASTAPI: "fastapi",
    GUARDED.format(FASTAPI): "fastapi_guarded",
    "FastAPI, dependencies and slowapi, log to a file": "fastapi_dependencies",
    "taskiq-flow's own security": "taskiq_flow",
}

SERVERS = {
    "uvicorn on h11 and asyncio": ("--http", "h11", "--loop", "asyncio"),
    "uvicorn on httptools and uvloop": ("--http", "httptools", "--loop", "uvloop"),
}
"""As uvicorn comes by itself, and as ``uvicorn[standard]`` brings it."""

_ROOT = Path(__file__).parents[2]
_CONNECTIONS = 8
_START_SECONDS = 60

_LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)


async def run(effort: Effort) -> list[Target]:
    """Print a table for each kind of server, and return the targets."""
    return [target for server in SERVERS for target in await _compare(server, effort)]


async def _compare(server: str, effort: Effort) -> list[Target]:
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory()))
        clients = {
            name: await stack.enter_async_context(_served(app, directory, SERVERS[server]))
            for name, app in APPS.items()
        }
        samples = await measure({name: client.batch for name, client in clients.items()}, effort)
        answers = {name: client.status for name, client in clients.items()}
    bare = {name: STARLETTE if name.startswith(STARLETTE) else FASTAPI for name in APPS}
    kept = {name: 1 / samples.ratio(name, bare[name]) for name in APPS}
    print_table(
        f"Requests to one process of {server}",
        ("", "answer", "us", "requests/s", "ratio"),
        [
            (
                name,
                str(answers[name]),
                f"{samples.median(name) * 1e6:,.0f}",
                f"{1 / samples.median(name):,.0f}",
                f"{kept[name]:.2f}",
            )
            for name in APPS
        ],
        f"{_CONNECTIONS} connections; ratio to the requests a second of the same framework's bare route",
    )
    return [
        Target(
            f"{server}: requests a second, of bare {framework}", kept[GUARDED.format(framework)], bound, at_least=True
        )
        for framework, bound in ((STARLETTE, 0.70), (FASTAPI, 0.80))
    ]


class Client:
    """Asks one server the same again and again."""

    def __init__(self, port: int, path: str) -> None:
        self._port = port
        self._request = (
            f"GET {path} HTTP/1.1\r\nHost: taskiq-flow.example.com\r\nUser-Agent: benchmark\r\nAccept: */*\r\n"
            f"X-Forwarded-Proto: https\r\nX-API-Key: {KEY}\r\n\r\n"
        ).encode()
        self._connections: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self.status = 0

    async def open(self) -> None:
        """Connect, as soon as the server listens."""
        while len(self._connections) < _CONNECTIONS:
            try:
                self._connections.append(await asyncio.open_connection("127.0.0.1", self._port))
            except ConnectionRefusedError:
                await asyncio.sleep(0.05)  # a port has nothing to await

    async def close(self) -> None:
        """Disconnect."""
        for _, writer in self._connections:
            writer.close()

    @property
    def batch(self) -> Batch:
        """Ask this often."""

        async def batch(count: int) -> None:
            numbers = iter(range(count))
            await asyncio.gather(*(self._ask(numbers, place) for place in range(_CONNECTIONS)))

        return batch

    async def _ask(self, numbers: Iterator[int], place: int) -> None:
        for _ in numbers:  # which all connections share
            reader, writer = self._connections[place]
            writer.write(self._request)
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except (ConnectionResetError, asyncio.IncompleteReadError):  # what a server makes of an exception
                self.status = 500
                writer.close()
                self._connections[place] = await asyncio.open_connection("127.0.0.1", self._port)
                continue
            length = _LENGTH.search(head)
            assert length is not None, head
            await reader.readexactly(int(length[1]))
            self.status = int(head[9:12])


@asynccontextmanager
async def _served(app: str, directory: Path, options: tuple[str, ...]) -> AsyncIterator[Client]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    process = subprocess.Popen(  # noqa: ASYNC220 (nothing else is to be done meanwhile)
        [
            *(sys.executable, "-m", "uvicorn", "--factory", f"tests.benchmarks.http_apps:{app}", "--port", str(port)),
            *("--no-access-log", "--no-proxy-headers", "--log-level", "critical", "--timeout-keep-alive", "600"),
            *options,
        ],
        cwd=_ROOT,
        env={**os.environ, AUDIT_FILE: str(directory / f"{app}.jsonl")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    client = Client(port, "/pipelines" if app == "taskiq_flow" else f"/pipelines/{PIPELINE}/dag")
    try:
        await asyncio.wait_for(client.open(), _START_SECONDS)
        yield client
    finally:
        await client.close()
        process.terminate()
        process.wait()
