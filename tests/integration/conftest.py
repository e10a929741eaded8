"""Queues, workers and clients, each stopped and removed after use."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from uuid import uuid4

import pytest
import pytest_asyncio

from tests.integration.client import Client
from tests.integration.settings import worker_variables
from tests.integration.transports import TRANSPORTS, ResultFormat, Transport
from tests.integration.workers import APP, Worker
from tests.services import require

_SHOWN_LINES = 60

NewTransport = Callable[..., Transport]
"""Makes a new queue: of this kind, then as the fields of `Transport` say."""

StartWorker = Callable[..., Worker]
"""Starts a worker: its transport, then options of the command; as keywords, its `app`, and variables beside
`worker_variables`."""

_running: list[Worker] = []


@pytest.fixture(scope="session", params=TRANSPORTS)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Transport]:
    """A queue of each kind, and a worker for it that runs one task after the other, in the order they were sent."""
    with _transports() as new_transport, _workers(tmp_path_factory.mktemp("worker")) as start_worker:
        transport = new_transport(request.param)
        start_worker(transport, "--max-async-tasks", "1")
        yield transport


@pytest_asyncio.fixture
async def client(served: Transport) -> AsyncIterator[Client]:
    """A client of the queue that is served."""
    async with Client(served) as client:
        yield client


@pytest.fixture
def new_transport() -> Iterator[NewTransport]:
    """Makes queues for this test alone."""
    with _transports() as new_transport:
        yield new_transport


@pytest.fixture
def start_worker(tmp_path: Path) -> Iterator[StartWorker]:
    """Starts workers for this test alone."""
    with _workers(tmp_path) as start_worker:
        yield start_worker


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show with a failure what the workers wrote."""
    report = yield
    if report.failed:
        for worker in _running:
            lines = worker.output.splitlines()[-_SHOWN_LINES:]
            report.sections.append((f"Worker {worker.pid}", "\n".join(lines)))
    return report


@contextmanager
def _transports() -> Iterator[NewTransport]:
    with ExitStack() as stack:

        def new_transport(kind: str, redelivery_seconds: float = 30, results: ResultFormat = "pickle") -> Transport:
            transport_type = TRANSPORTS[kind]
            for service in ("redis", transport_type.service):  # results are kept in Redis
                require(service)
            transport = transport_type(f"integration-{uuid4().hex}", redelivery_seconds, results)
            stack.callback(lambda: asyncio.run(transport.remove()))
            return transport

        yield new_transport


@contextmanager
def _workers(logs: Path) -> Iterator[StartWorker]:
    started: list[Worker] = []
    numbers = count()  # of workers that threads may start at the same time

    def start_worker(transport: Transport, *options: str, app: str = APP, **variables: str) -> Worker:
        log = logs / f"worker-{next(numbers)}.log"
        worker = Worker(transport, worker_variables() | variables, log, *options, app=app)
        started.append(worker)
        _running.append(worker)
        return worker

    try:
        yield start_worker
    finally:
        for worker in started:
            worker.kill()
            _running.remove(worker)
