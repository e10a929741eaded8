"""With `security_enabled=False` everything runs as if the package were not there."""

from __future__ import annotations

import logging

import pytest
from taskiq import Context, TaskiqDepends
from taskiq.message import TaskiqMessage

from taskiq_flow_security import FlowSecurity, Principal, TaskiqFlowConfig, current_principal
from taskiq_flow_security.core.principal import ANONYMOUS
from tests.attacks.forging import PRINCIPAL, SIGNATURE, principal_of, read, signature_of, write
from tests.integration.inmemory.fixtures import NewProcess
from tests.integration.inmemory.harness import Process

KEY = "an-api-key-of-good-length"


@pytest.fixture
def off(new_process: NewProcess) -> Process:
    """A process without security."""
    return new_process(security_enabled=False)


async def test_everybody_may_kick_everything(off: Process) -> None:
    for task, args in ((off.clean, [[1]]), (off.report, []), (off.loose, []), (off.guarded, [[1]])):
        await task.kiq(*args)
        outcome = await off.broker.deliver(off.broker.take())
        assert not outcome.result.is_err, outcome.result.error
    assert [name for name, _ in off.ran] == ["clean", "report", "loose", "guarded"]


async def test_what_is_sent_is_a_plain_taskiq_message(off: Process) -> None:
    await off.clean.kiq([1])
    assert read(off.broker.take()).labels == {"pipeline": "data"}


async def test_labels_for_a_principal_are_none(off: Process) -> None:
    assert off.security.labels_for(Principal("alice")) == {}


async def test_every_message_runs(off: Process, process: Process) -> None:
    genuine = read(await process.genuine())
    await off.broker.deliver(write(genuine))
    await off.broker.deliver(write(genuine.model_copy(update={"args": [[9]]})))
    await off.broker.deliver(
        write(TaskiqMessage(task_id="plain", task_name="guarded", labels={}, args=[[1]], kwargs={}))
    )
    assert [name for name, _ in off.ran] == ["clean", "clean", "guarded"]


async def test_labels_of_processes_with_security_reach_neither_results_nor_logs(
    off: Process, process: Process, caplog: pytest.LogCaptureFixture
) -> None:
    message = read(await process.genuine())
    with caplog.at_level(logging.DEBUG):
        outcome = await off.broker.deliver(write(message))
    assert len(off.ran) == 1
    assert not {PRINCIPAL, SIGNATURE} & outcome.result.labels.keys()
    for text in (principal_of(message), signature_of(message)):
        assert text not in caplog.text
        assert text not in repr(outcome.result)


async def test_whoever_acts_is_anonymous_in_a_task(off: Process) -> None:
    seen: list[Principal] = []

    @off.broker.task("who")
    async def who(caller: Principal = TaskiqDepends(current_principal)) -> None:
        seen.extend([caller, current_principal()])

    await who.kiq()
    await off.broker.deliver(off.broker.take())
    assert seen == [ANONYMOUS, ANONYMOUS]


@pytest.mark.parametrize("given", [{}, {"api_key": "unknown"}, {"api_key": KEY}, {"bearer": "x"}])
async def test_whoever_authenticates_is_anonymous_and_not_recorded(
    new_process: NewProcess, given: dict[str, str]
) -> None:
    off = new_process(security_enabled=False, api_keys={KEY: {"role": "processor"}})
    principal = await off.security.authenticate(**given)
    assert principal is ANONYMOUS
    with off.security.acting_as(principal):
        await off.clean.kiq([1])
    assert off.audit.take() == []


async def test_no_decision_is_recorded(off: Process) -> None:
    await off.clean.kiq([1])
    await off.broker.deliver(off.broker.take())
    assert off.audit.take() == []


async def test_it_is_said_loudly_once(caplog: pytest.LogCaptureFixture) -> None:
    FlowSecurity(TaskiqFlowConfig(security_enabled=False))
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert "security_enabled" in warnings[0].getMessage()


async def test_it_needs_no_key() -> None:
    assert not FlowSecurity(TaskiqFlowConfig(security_enabled=False)).enabled


async def test_a_task_that_is_requeued_runs_again(off: Process) -> None:
    async def again(context: Context = TaskiqDepends()) -> None:
        off.ran.append(("again", None))
        if len(off.ran) < 2:
            await context.requeue()

    task = off.broker.task("again")(again)
    await task.kiq()
    await off.broker.deliver(off.broker.take())
    await off.broker.deliver(off.broker.take())
    assert len(off.ran) == 2
