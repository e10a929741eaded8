"""Whoever can write to the queue makes a real worker run nothing, and replaces no result."""

from __future__ import annotations

from uuid import uuid4

import pytest
from taskiq.message import BrokerMessage

from taskiq_flow_security import AuthenticationError
from tests.integration import ledger
from tests.integration.client import Client, result_of
from tests.integration.messages import FORGERIES, Forgery
from tests.integration.settings import PROCESSOR
from tests.integration.worker_app import clean

NO_MESSAGES = {
    "no text": b"\xff\xfe",
    "no JSON": b"{",
    "no message": b"[1, 2]",
    "too deep": b"[" * 100_000,
    "no such task": b'{"task_id": "1", "task_name": "none", "labels": {}, "args": [], "kwargs": {}}',
}

each_forgery = pytest.mark.parametrize("forgery", FORGERIES, ids=lambda forgery: forgery.__name__)


@each_forgery
async def test_a_forged_message_does_not_run_and_gives_an_error_as_its_result(client: Client, forgery: Forgery) -> None:
    marker = client.new_marker()
    result = await result_of(await client.inject(forgery(uuid4().hex, marker)))
    with pytest.raises(AuthenticationError) as refusal:
        result.raise_for_error()
    assert refusal.value.reason == FORGERIES[forgery]
    assert ledger.runs(marker) == 0


@each_forgery
async def test_a_forged_message_leaves_a_result_under_its_task_id_as_it_is(client: Client, forgery: Forgery) -> None:
    task = await client.kick(clean, PROCESSOR, client.new_marker(), [1, 2])
    await result_of(task)
    before = client.transport.stored_result(task.task_id)
    marker = client.new_marker()
    await client.inject(forgery(task.task_id, marker))
    await client.settle()
    assert client.transport.stored_result(task.task_id) == before
    assert ledger.runs(marker) == 0


@pytest.mark.parametrize("content", NO_MESSAGES.values(), ids=NO_MESSAGES)
async def test_a_worker_goes_on_after_what_is_no_message_to_it(client: Client, content: bytes) -> None:
    await client.inject(BrokerMessage(task_id="1", task_name="none", message=content, labels={}))
    await client.settle()
