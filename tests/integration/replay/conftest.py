"""Redis servers, and processes that share what they have run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.inmemory.fixtures import audit, clock, new_process
from tests.integration.replay.server import RedisServer
from tests.integration.runs.conftest import proxy, redis
from tests.services import require

__all__ = ["audit", "clock", "new_process", "proxy", "redis", "server"]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis server that is running."""
    require("redis-server")
    directory = tmp_path / "redis"
    directory.mkdir()
    server = RedisServer(directory)
    server.start()
    yield server
    server.end()
