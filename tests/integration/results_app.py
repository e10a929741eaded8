"""A worker whose results lie in a store of any kind, protected or not: environment variables say which."""

from __future__ import annotations

import os
from typing import Annotated, Any

from taskiq import AsyncBroker, TaskiqDepends
from taskiq.abc.serializer import TaskiqSerializer
from taskiq.brokers.shared_broker import shared_task
from taskiq.depends.progress_tracker import ProgressTracker
from taskiq.serializers import JSONSerializer, PickleSerializer

from taskiq_flow_security import FlowSecurity, SecurityMiddleware, TaskiqFlowConfig
from tests.integration import ledger
from tests.integration.transports import ResultFormat, from_environment
from tests.integration.worker_app import announce_start, write_audit_lines
from tests.result_stores import STORES

STORE = "INTEGRATION_RESULT_STORE"
PROTECTED = "INTEGRATION_RESULTS_PROTECTED"

SERIALIZERS: dict[ResultFormat, type[TaskiqSerializer]] = {"pickle": PickleSerializer, "json": JSONSerializer}


@shared_task(pipeline="data")
async def advance(marker: str, tracker: Annotated[ProgressTracker[Any], TaskiqDepends()]) -> str:
    """A task that reports how far it is, twice, and stays there until it is let go."""
    await tracker.set_progress("begun", {"rows": 5})
    await tracker.set_progress("halfway")  # of which TaskIQ reads the rows from the store
    await ledger.held(marker)
    return "done"


@shared_task(pipeline="data")
async def fail(message: str) -> None:
    """A task that fails."""
    raise LookupError(message)


@shared_task(pipeline="data")
async def multiply(text: str, times: int) -> str:
    """A task with a large result."""
    return text * times


def broker() -> AsyncBroker:
    """The worker's broker."""
    transport = from_environment()
    backend = STORES[os.environ[STORE]](transport.name).backend(SERIALIZERS[transport.results]())
    security = FlowSecurity(TaskiqFlowConfig())
    if os.environ[PROTECTED] == "yes":
        backend = security.protect_results(backend)
    secured = transport.broker().with_result_backend(backend).with_middlewares(SecurityMiddleware(security))
    announce_start(secured, transport)
    write_audit_lines()
    return secured
