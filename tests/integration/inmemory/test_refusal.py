"""Who may run a task runs it and nobody else does, however it is executed, registered and kicked."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from taskiq import InMemoryBroker, TaskiqResult, async_shared_broker
from taskiq.message import BrokerMessage, TaskiqMessage
from taskiq.receiver import Receiver

from taskiq_flow_security import (
    AccessDeniedError,
    AuthenticationError,
    FlowSecurity,
    FlowSecurityError,
    SecurityMiddleware,
)
from tests.integration.inmemory import tasks
from tests.integration.inmemory.harness import PROCESSOR, VIEWER, Task, config

FUNCTIONS = {
    ("async", False): tasks.in_the_loop,
    ("async", True): tasks.guarded_in_the_loop,
    ("thread", False): tasks.in_an_executor,
    ("thread", True): tasks.guarded_in_an_executor,
    ("process", False): tasks.in_an_executor,
    ("process", True): tasks.guarded_in_an_executor,
}


@dataclass
class Deployment:
    """One broker with one task."""

    security: FlowSecurity
    broker: InMemoryBroker
    task: Task
    mark: Path

    @property
    def ran(self) -> bool:
        """Whether the task has run."""
        return self.mark.exists()

    async def kick(self) -> TaskiqResult[Any]:
        """The result of a kick by somebody who may."""
        with self.security.acting_as(PROCESSOR):
            sent = await self.task.kicker().with_broker(self.broker).kiq(str(self.mark))
        return await self._result(sent.task_id)

    async def inject(self, data: bytes, task_id: str) -> TaskiqResult[Any]:
        """The result of a message that is put into the queue as it is."""
        message = BrokerMessage(task_id=task_id, task_name=self.task.task_name, message=data, labels={})
        await self.broker.kick(message)
        return await self._result(task_id)

    def message(self, task_id: str) -> TaskiqMessage:
        """A message for the task that nobody has signed."""
        return TaskiqMessage(
            task_id=task_id, task_name=self.task.task_name, labels={}, args=[str(self.mark)], kwargs={}
        )

    async def _result(self, task_id: str) -> TaskiqResult[Any]:
        await self.broker.wait_all()
        result: TaskiqResult[Any] = self.broker.result_backend.results[task_id]
        return result


@pytest.fixture(params=["registered before", "registered after", "shared"])
def registration(request: pytest.FixtureRequest) -> str:
    """When the task was registered, or that it is a shared one."""
    return str(request.param)


@pytest.fixture(params=["async", "thread", "process"])
def execution(request: pytest.FixtureRequest) -> str:
    """Where the function runs."""
    return str(request.param)


@pytest.fixture
def deployment(
    tmp_path: Path,
    execution: str,
    registration: str,
    guarded: bool,
    await_inplace: bool,
) -> Iterator[Deployment]:
    """Each way to run a task."""
    broker = InMemoryBroker(await_inplace=await_inplace)
    security = FlowSecurity(config())
    middleware = SecurityMiddleware(security)
    registry = async_shared_broker if registration == "shared" else broker
    name = f"task-{uuid4().hex}"
    if registration == "registered after":
        broker.add_middlewares(middleware)
    task: Task = registry.register_task(FUNCTIONS[execution, guarded], name, pipeline="data")
    if registration != "registered after":
        broker.add_middlewares(middleware)
    with ExitStack() as stack:
        if execution == "process":
            # Forked after the task was registered, because registering it renames its function.
            pool = stack.enter_context(ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")))
            broker.receiver = Receiver(broker, executor=pool, max_async_tasks=10)
        yield Deployment(security, broker, task, tmp_path / "mark")
    broker.executor.shutdown()
    async_shared_broker.global_task_registry.pop(name, None)


each_guard = pytest.mark.parametrize("guarded", [False, True], ids=["unguarded", "guarded"])
each_kick = pytest.mark.parametrize("await_inplace", [False, True], ids=["in the background", "in place"])


def _signed(deployment: Deployment, task_id: str) -> bytes:
    """A message from a process that lets viewers kick the task too."""
    acls = {"data": {"execute": ["processor", "viewer"]}}
    sender = FlowSecurity(config(pipeline_acls=acls))
    broker = InMemoryBroker().with_middlewares(SecurityMiddleware(sender))
    with sender.acting_as(VIEWER):
        return broker.formatter.dumps(deployment.message(task_id)).message


def _is_refusal(result: TaskiqResult[Any], error: type[FlowSecurityError], reason: str) -> bool:
    return (
        result.is_err
        and result.return_value is None
        and type(result.error) is error
        and getattr(result.error, "reason", None) == reason
    )


@each_guard
@each_kick
async def test_who_may_run_it_runs_it(deployment: Deployment) -> None:
    result = await deployment.kick()
    assert not result.is_err, result.error
    assert result.return_value == str(deployment.mark)
    assert deployment.ran


@each_guard
@each_kick
async def test_who_may_not_is_refused_with_a_typed_error(deployment: Deployment) -> None:
    result = await deployment.inject(_signed(deployment, "denied"), "denied")
    assert _is_refusal(result, AccessDeniedError, "acl"), result
    assert not deployment.ran


@each_guard
@each_kick
async def test_a_forged_message_is_refused_with_a_typed_error(deployment: Deployment) -> None:
    data = deployment.message("forged").model_dump_json().encode()
    result = await deployment.inject(data, "forged")
    assert _is_refusal(result, AuthenticationError, "unsigned"), result
    assert not deployment.ran


@each_guard
@each_kick
async def test_after_many_refusals_who_may_run_it_still_does(deployment: Deployment) -> None:
    for number in range(20):
        task_id = f"refused-{number}"
        data = _signed(deployment, task_id) if number % 2 else deployment.message(task_id).model_dump_json().encode()
        assert (await deployment.inject(data, task_id)).is_err
    assert not deployment.ran
    assert not (await deployment.kick()).is_err
    assert deployment.ran
