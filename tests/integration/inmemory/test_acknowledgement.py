"""A refused message is acked exactly once and its waiter answered, whatever it or the worker says about acking."""

from __future__ import annotations

from typing import Any

import pytest
from taskiq import Context, TaskiqDepends, TaskiqMiddleware
from taskiq.acks import AcknowledgeType
from taskiq.message import TaskiqMessage
from taskiq.receiver import Receiver

from taskiq_flow_security import AccessDeniedError, AuthenticationError
from tests.attacks.forging import read, relabelled, write
from tests.integration.inmemory.fixtures import NewProcess
from tests.integration.inmemory.harness import VIEWER, Process

TYPES = [ack_type.value for ack_type in AcknowledgeType]

by_label = pytest.mark.parametrize("label", [None, *TYPES, "WHEN_RECEIVED"])
by_worker = pytest.mark.parametrize("worker", [None, *AcknowledgeType])


def _receiver(process: Process, ack_type: AcknowledgeType | None) -> Receiver:
    return Receiver(process.broker, executor=process.broker.executor, ack_type=ack_type, max_async_tasks=10)


def _labels(label: str | None) -> dict[str, Any]:
    return {} if label is None else {"ack_type": label}


@by_label
@by_worker
async def test_a_denied_message_is_acked_once(
    process: Process, new_process: NewProcess, label: str | None, worker: AcknowledgeType | None
) -> None:
    api = new_process(pipeline_acls={"data": {"execute": ["viewer"]}})
    data = await api.kick(api.clean.kicker().with_labels(**_labels(label)), [1], principal=VIEWER)
    outcome = await process.broker.deliver(data, _receiver(process, worker))
    assert process.ran == []
    assert outcome.acks == 1
    assert isinstance(outcome.error, AccessDeniedError)


@by_label
@by_worker
async def test_a_forged_message_is_acked_once(
    process: Process, label: str | None, worker: AcknowledgeType | None
) -> None:
    message = read(await process.genuine())
    if label is not None:
        message = relabelled(message, "ack_type", label)
    message = message.model_copy(update={"args": [[9]]})
    outcome = await process.broker.deliver(write(message), _receiver(process, worker))
    assert process.ran == []
    assert outcome.acks == 1
    assert isinstance(outcome.error, AuthenticationError)


@by_worker
@pytest.mark.parametrize("label", ["never", "", "when_saved!", "0"])
async def test_a_message_with_an_ack_type_that_taskiq_does_not_know_is_acked_once(
    process: Process, label: str, worker: AcknowledgeType | None
) -> None:
    data = await process.kick(process.clean.kicker().with_labels(ack_type=label), [1])
    outcome = await process.broker.deliver(data, _receiver(process, worker))
    assert process.ran == []
    assert outcome.acks == 1
    assert outcome.reason == "invalid_label"


class Relabels(TaskiqMiddleware):
    """Says of every message how it is to be acked, or says nothing of it."""

    def __init__(self, label: str | None) -> None:
        super().__init__()
        self.labels = _labels(label)

    def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
        return message.model_copy(update={"labels": self.labels})


@by_label
@by_worker
@pytest.mark.parametrize("forged", [False, True])
async def test_a_refused_message_is_acked_once_whatever_another_middleware_says_about_acking(
    new_process: NewProcess, label: str | None, worker: AcknowledgeType | None, forged: bool
) -> None:
    process = new_process(after=(Relabels(label),))
    api = new_process(pipeline_acls={"data": {"execute": ["viewer"]}})
    message = read(await api.kick(api.clean, [1], principal=VIEWER))
    data = write(message.model_copy(update={"args": [[9]]}) if forged else message)
    outcome = await process.broker.deliver(data, _receiver(process, worker))
    assert process.ran == []
    assert outcome.acks == 1
    assert isinstance(outcome.error, AuthenticationError if forged else AccessDeniedError)


@by_label
@by_worker
async def test_an_allowed_message_is_acked_as_it_says_itself(
    process: Process, label: str | None, worker: AcknowledgeType | None
) -> None:
    data = await process.kick(process.clean.kicker().with_labels(**_labels(label)), [1])
    outcome = await process.broker.deliver(data, _receiver(process, worker))
    assert len(process.ran) == 1
    said = label.lower() if label is not None else worker
    assert outcome.acks == (0 if said == AcknowledgeType.MANUAL else 1)


async def test_an_allowed_task_can_ack_its_message_itself(process: Process) -> None:
    @process.broker.task("manual", pipeline="data", ack_type="manual")
    async def manual(context: Context = TaskiqDepends()) -> bool:
        await context.ack()
        return context.is_acked

    outcome = await process.broker.deliver(await process.kick(manual))
    assert outcome.acks == 1
    assert outcome.result.return_value is True


async def test_a_message_for_a_task_that_the_worker_does_not_have_is_acked_once(
    process: Process, new_process: NewProcess
) -> None:
    api = new_process()

    @api.broker.task("newer", pipeline="data")
    async def newer() -> None: ...

    outcome = await process.broker.deliver(await api.kick(newer))
    assert outcome.acks == 1
