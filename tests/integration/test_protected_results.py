"""Results and progress of a real worker, through stores that an attacker can write to."""

from __future__ import annotations

import asyncio
import os
import pickle
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from taskiq import AsyncBroker, AsyncTaskiqDecoratedTask, AsyncTaskiqTask
from taskiq.depends.progress_tracker import TaskProgress

from taskiq_flow_security import (
    AccessDeniedError,
    FlowSecurity,
    ResultVerificationError,
    SecurityMiddleware,
)
from tests.integration import ledger
from tests.integration.client import result_of
from tests.integration.conftest import NewTransport
from tests.integration.results_app import PROTECTED, SERIALIZERS, STORE, advance, fail, multiply
from tests.integration.settings import PROCESSOR, caller_config, worker_variables
from tests.integration.transports import ResultFormat, Transport
from tests.integration.worker_app import clean, purge
from tests.integration.workers import Worker
from tests.result_stores import STORES, ResultStore
from tests.services import require

SECONDS = 30
SERVED = [kind for kind, store in STORES.items() if store.service is not None]

each_store = pytest.mark.parametrize("kind", SERVED)


class Deployment:
    """A worker and a store for its results."""

    def __init__(self, transport: Transport, store: ResultStore) -> None:
        self.transport = transport
        self.store = store

    @asynccontextmanager
    async def caller(self, *, protected: bool = True, **settings: Any) -> AsyncIterator[Caller]:
        """A process that kicks and waits."""
        security = FlowSecurity(caller_config(**settings))
        backend = self.store.backend(SERIALIZERS[self.transport.results]())
        if protected:
            backend = security.protect_results(backend)
        broker = self.transport.broker().with_result_backend(backend).with_middlewares(SecurityMiddleware(security))
        await broker.startup()
        try:
            yield Caller(security, broker)
        finally:
            await broker.shutdown()


class Caller:
    """A process that kicks and waits."""

    def __init__(self, security: FlowSecurity, broker: AsyncBroker) -> None:
        self._security = security
        self._broker = broker

    async def kick(self, task: AsyncTaskiqDecoratedTask[Any, Any], *args: object) -> AsyncTaskiqTask[Any]:
        """Kick a task."""
        with self._security.acting_as(PROCESSOR):
            kicked: AsyncTaskiqTask[Any] = await task.kicker().with_broker(self._broker).kiq(*args)
        return kicked


Deploy = Callable[..., Deployment]


@pytest.fixture
def deploy(new_transport: NewTransport, tmp_path: Path) -> Iterator[Deploy]:
    """Starts a worker with a store of some kind."""
    with ExitStack() as stack:

        def deploy(
            kind: str, *, protected: bool = True, results: ResultFormat = "pickle", **settings: str
        ) -> Deployment:
            service = STORES[kind].service
            assert service is not None
            require(service)
            transport = new_transport("redis-list", results=results)
            store = STORES[kind](transport.name)
            stack.callback(lambda: asyncio.run(store.remove()))
            variables = {
                **worker_variables(),
                **{f"TASKIQ_FLOW_{name.upper()}": value for name, value in settings.items()},
                STORE: kind,
                PROTECTED: "yes" if protected else "no",
            }
            worker = Worker(
                transport,
                variables,
                tmp_path / "worker.log",
                *("--max-async-tasks", "1"),
                app="tests.integration.results_app:broker",
            )
            stack.callback(worker.kill)
            return Deployment(transport, store)

        yield deploy


def marker(deployment: Deployment) -> str:
    """A marker for the ledger."""
    return f"{deployment.transport.name}:{uuid4().hex}"


class Bomb:
    """Makes a directory when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self._canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._canary),)


@each_store
@pytest.mark.parametrize("results", ["pickle", "json"])
async def test_results_errors_refusals_and_progress_come_back(kind: str, results: ResultFormat, deploy: Deploy) -> None:
    deployment = deploy(kind, results=results)
    async with deployment.caller() as caller:
        held = marker(deployment)
        advancing = await caller.kick(advance, held)
        assert await asyncio.to_thread(ledger.wait_until_held, held, SECONDS)
        assert await advancing.get_progress() == TaskProgress(state="halfway", meta={"rows": 5})
        assert not await advancing.is_ready()
        ledger.let_go(held)
        assert (await result_of(advancing)).return_value == "done"

        assert (await result_of(await caller.kick(clean, marker(deployment), [1, 2]))).return_value == 3
        with pytest.raises(LookupError, match="no rows"):
            (await result_of(await caller.kick(fail, "no rows"))).raise_for_error()
        with pytest.raises(AccessDeniedError):
            (await result_of(await caller.kick(purge, marker(deployment)))).raise_for_error()
        large = await result_of(await caller.kick(multiply, "x" * 1024, 10 * 1024))
        assert large.return_value == "x" * 10 * 1024 * 1024


@each_store
async def test_while_a_task_runs_nobody_can_answer_for_it(kind: str, deploy: Deploy, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    deployment = deploy(kind)
    async with deployment.caller() as caller:
        held = marker(deployment)
        pending = await caller.kick(advance, held)
        assert await asyncio.to_thread(ledger.wait_until_held, held, SECONDS)
        await deployment.store.write(pending.task_id, pickle.dumps(Bomb(canary)))
        with pytest.raises(ResultVerificationError) as refusal:
            (await result_of(pending)).raise_for_error()
        assert refusal.value.reason == "unsigned"
        assert not canary.exists()

        ledger.let_go(held)
        await result_of(await caller.kick(clean, marker(deployment), []))  # which runs after it
        assert (await result_of(pending)).return_value == "done"


@each_store
async def test_results_of_two_tasks_cannot_be_exchanged(kind: str, deploy: Deploy) -> None:
    deployment = deploy(kind)
    store = deployment.store
    async with deployment.caller() as caller:
        one, two = [await caller.kick(clean, marker(deployment), rows) for rows in ([1], [2])]
        assert [(await result_of(task)).return_value for task in (one, two)] == [1, 2]
        first, second = await store.read(one.task_id), await store.read(two.task_id)
        await store.write(one.task_id, second)
        await store.write(two.task_id, first)
        for task in (one, two):
            with pytest.raises(ResultVerificationError) as refusal:
                (await result_of(task)).raise_for_error()
            assert refusal.value.reason == "wrong_task"


@each_store
@pytest.mark.parametrize("results", ["pickle", "json"])
async def test_results_of_workers_that_are_not_protected_yet_are_believed_while_monitoring_only(
    kind: str, results: ResultFormat, deploy: Deploy
) -> None:
    deployment = deploy(kind, protected=False, results=results)
    async with deployment.caller(enforcement="monitor") as caller:
        task = await caller.kick(clean, marker(deployment), [1, 2])
        assert (await result_of(task)).return_value == 3
    async with deployment.caller() as caller:
        with pytest.raises(ResultVerificationError) as refusal:
            (await result_of(await caller.kick(clean, marker(deployment), [1, 2]))).raise_for_error()
        assert refusal.value.reason == "unsigned"


@each_store
async def test_callers_without_protection_still_read_what_protected_workers_pickle(kind: str, deploy: Deploy) -> None:
    deployment = deploy(kind, enforcement="monitor")
    async with deployment.caller(protected=False, enforcement="monitor") as caller:
        assert (await result_of(await caller.kick(clean, marker(deployment), [1, 2]))).return_value == 3
