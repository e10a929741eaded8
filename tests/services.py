"""Where the services are that some tests need, and what happens where they are not."""

from __future__ import annotations

import os
import re
import shutil
import socket
from functools import cache
from typing import NoReturn
from urllib.parse import urlsplit

import pytest

REDIS_URL = os.environ.get("REDIS_URL", "redis://127.0.0.1:6379")
AMQP_URL = os.environ.get("AMQP_URL", "amqp://guest:guest@127.0.0.1:5672")
NATS_URL = os.environ.get("NATS_URL", "nats://127.0.0.1:4222")

_URLS = {"redis": (REDIS_URL, 6379), "rabbitmq": (AMQP_URL, 5672), "nats": (NATS_URL, 4222)}

_GREETINGS = {
    # A server that asks for a password answers in its own words, and is there all the same.
    "redis": (b"PING\r\n", rb"\+PONG|-NOAUTH"),
    "rabbitmq": (b"AMQP\x00\x00\x09\x01", rb"\x01\x00\x00"),
    "nats": (b"", rb'INFO .*"jetstream": ?true'),
}
"""What to say first, and what the answer begins with, as a pattern."""


def require(service: str) -> None:
    """Skip the test where the service, or a program of this name, is missing; fail it in CI, where none may be."""
    problem = missing(service)
    if problem is not None:
        _give_up(f"{service} is needed: {problem}")


@cache
def missing(service: str) -> str | None:
    """Why the service, or program, cannot be used, if so."""
    if service not in _URLS:
        return None if shutil.which(service) else "there is no such program"
    url, default_port = _URLS[service]
    address = urlsplit(url)
    host, port = address.hostname or "127.0.0.1", address.port or default_port
    hello, answer = _GREETINGS[service]
    try:
        with socket.create_connection((host, port), timeout=1) as connection:
            connection.sendall(hello)
            received = connection.recv(4096)
    except OSError as error:
        return f"{host}:{port} does not answer ({error})"
    if not re.match(answer, received):
        return f"{host}:{port} is something else, or lacks what is needed (of NATS: JetStream)"
    return None


def _give_up(reason: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(f"{reason}; in CI no test may skip")
    pytest.skip(reason)
