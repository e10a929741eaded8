"""A Redis server for one test, which can be stopped and started again."""

from __future__ import annotations

import shutil
import socket
import subprocess
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep

from redis import Redis
from redis.exceptions import RedisError

_START_SECONDS = 20


class RedisServer:
    """Runs on a port of its own. It keeps what it knows when it is stopped, as one with persistence does."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._reserved = socket.socket()  # never listens; nobody else is given its port
        self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._reserved.bind(("127.0.0.1", 0))
        self._port = self._reserved.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        program = shutil.which("redis-server")
        assert program is not None
        settings = ("--appendonly", "yes", "--appendfsync", "always", "--save", "")
        self._process = subprocess.Popen(
            [program, "--bind", "127.0.0.1", "--port", str(self._port), "--dir", str(self._directory), *settings],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        deadline = monotonic() + _START_SECONDS
        with Redis.from_url(self.url) as client:
            while monotonic() < deadline:
                with suppress(RedisError):
                    if client.info("server")["process_id"] == self._process.pid:
                        return
                sleep(0.02)
        raise AssertionError("Redis does not start.")

    def stop(self) -> None:
        """Kill it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def end(self) -> None:
        """Kill it, and let go of its port."""
        self.stop()
        self._reserved.close()
