"""What a task is registered as decides, for the very function that runs, and nothing at run time changes it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from taskiq import TaskiqMessage, TaskiqMiddleware
from taskiq.brokers.shared_broker import shared_task

from taskiq_flow_security import Principal
from tests.integration.inmemory.fixtures import NewProcess
from tests.integration.inmemory.harness import PROCESSOR, Process

ALICE = Principal("alice", roles=["processor"], permissions=["execute"])


@pytest.mark.xfail(strict=True, reason="TaskIQ writes them into the registration of shared tasks: see the README")
async def test_a_kick_with_the_label_of_another_pipeline_does_not_move_a_shared_task_there(process: Process) -> None:
    @shared_task("tests.attacks.test_registration:monthly", pipeline="reports")
    async def monthly() -> None:
        process.ran.append(("monthly", None))

    try:
        with process.security.acting_as(PROCESSOR):
            await monthly.kicker().with_broker(process.broker).with_labels(pipeline="data").kiq()
    except Exception:
        assert process.broker.sent == []
    for data in process.broker.sent:
        await process.broker.deliver(data)
    assert process.ran == []


class Meanwhile(TaskiqMiddleware):
    """Something is done while a message is about to run."""

    def __init__(self) -> None:
        super().__init__()
        self.do: Callable[[], object] = lambda: None

    def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
        self.do()
        return message


async def test_the_task_that_is_decided_about_is_the_one_that_runs(new_process: NewProcess) -> None:
    meanwhile = Meanwhile()
    worker = new_process(before=(meanwhile,))

    @worker.broker.task("dynamic", pipeline="reports")
    async def old() -> None:
        worker.ran.append(("old", None))

    def replace() -> None:
        @worker.broker.task("dynamic", pipeline="data")
        async def new() -> None:
            worker.ran.append(("new", None))

    api = new_process()

    @api.broker.task("dynamic")
    async def dynamic() -> None: ...

    meanwhile.do = replace
    await worker.broker.deliver(await api.kick(dynamic, principal=ALICE))
    assert ("old", None) not in worker.ran
