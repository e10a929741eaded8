"""A Redis server for one test, which can be stopped and started again."""

from __future__ import annotations

import shutil
import socket
import subprocess
from pathlib import Path
from time import monotonic, sleep

from redis import Redis
from redis.exceptions import RedisError

_START_SECONDS = 20


class RedisServer:
    """Runs on a port of its own. It keeps what it knows when it is stopped, as one with persistence does."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
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
                try:
                    client.ping()
                    return
                except RedisError:
                    sleep(0.02)
        raise AssertionError("Redis does not start.")

    def stop(self) -> None:
        """Kill it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
