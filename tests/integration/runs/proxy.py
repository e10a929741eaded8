"""A TCP proxy before Redis, by which Redis goes away and comes back for one test alone."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

from typing_extensions import Self

from tests.services import REDIS_URL


class Proxy:
    """Forwards connections to Redis, until it is told otherwise."""

    def __init__(self) -> None:
        address = urlsplit(REDIS_URL)
        self._target = address.hostname or "127.0.0.1", address.port or 6379
        self._port = 0
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._flows = asyncio.Event()
        self._flows.set()
        self._answers = True
        self._since: bytes | None = None
        self.said = bytearray()
        """All that was forwarded to Redis."""

    @property
    def url(self) -> str:
        return urlsplit(REDIS_URL)._replace(netloc=f"127.0.0.1:{self._port}").geturl()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_error: object) -> None:
        self._flows.set()
        await self.close()

    async def open(self) -> None:
        """Accept connections."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """End all connections, and refuse new ones."""
        if self._server is not None:
            self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def freeze(self) -> None:
        """Keep all connections, and forward nothing more."""
        self._flows.clear()

    def strand(self) -> None:
        """Forward nothing more on these connections, and leave them open; new ones are forwarded."""
        self._flows.clear()
        self._flows = asyncio.Event()
        self._flows.set()

    def drop_answers(self, *, since: bytes | None = None) -> None:
        """Forward only what is said to Redis, from now on or from this command on."""
        self._answers, self._since = since is not None, since

    def thaw(self) -> None:
        """Go on forwarding."""
        self._flows.set()
        self._answers, self._since = True, None

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.current_task()
        assert connection is not None
        self._connections.add(connection)
        flows = self._flows
        try:
            there_reader, there_writer = await asyncio.open_connection(*self._target)
            try:
                await asyncio.gather(
                    self._forward(reader, there_writer, flows),
                    self._forward(there_reader, writer, flows, answers=True),
                )
            finally:
                there_writer.transport.abort()
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._connections.discard(connection)
            writer.transport.abort()

    async def _forward(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, flows: asyncio.Event, *, answers: bool = False
    ) -> None:
        while data := await source.read(65536):
            await flows.wait()
            if not answers:
                self.said += data
                if self._since is not None and self._since in data:
                    self._answers = False
            if answers and not self._answers:
                continue
            target.write(data)
            await target.drain()
        raise ConnectionResetError
