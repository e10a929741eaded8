"""Nothing that proves who somebody is reaches a stored result or what a worker writes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from taskiq.message import BrokerMessage

from tests.integration.client import Client, result_of
from tests.integration.conftest import NewTransport, StartWorker
from tests.integration.messages import FORGERIES, Signer
from tests.integration.settings import API_KEY, SECRETS, caller_config
from tests.integration.transports import ResultFormat
from tests.integration.worker_app import clean, crunch_guarded, purge

LABELS = ("taskiq_flow_principal", "taskiq_flow_signature")


@pytest.mark.parametrize("results", ["pickle", "json"])
async def test_no_label_token_or_key_is_in_any_result_or_in_a_workers_most_detailed_output(
    results: ResultFormat, new_transport: NewTransport, start_worker: StartWorker
) -> None:
    # Of the brokers' own code, that of the Redis list does not log raw messages at this level.
    transport = new_transport("redis-list", results=results)
    worker = start_worker(transport, "--log-level", "DEBUG")
    async with Client(transport) as client:
        marker = client.new_marker()
        signer = Signer(caller_config())
        holder = await client.security.authenticate(api_key=API_KEY)
        answered = [
            signer.sign(clean, marker, [1]),
            signer.sign(clean, marker, "not numbers"),
            signer.sign(crunch_guarded, marker, principal=holder),
            signer.sign(purge, marker),
            *(forge(uuid4().hex, marker) for forge in FORGERIES),
            _with(signer.sign(clean, marker, [1]), labels_types={"pipeline": 99}),
        ]
        unreadable = [
            _with(signer.sign(clean, marker, [1]), args="not a list"),
            _cut_short(signer.sign(clean, marker, [1])),
        ]
        for message in unreadable:
            await client.inject(message)
        stored = []
        for message in answered:
            await result_of(await client.inject(message))
            stored.append(transport.stored_result(message.task_id))
    worker.stop()

    output = worker.output
    assert all(message.task_id in output for message in answered)
    for secret in (*LABELS, *SECRETS, *_token_parts([*answered, *unreadable])):
        assert secret not in output
        assert all(result and secret.encode() not in result for result in stored)


def _with(message: BrokerMessage, **changes: Any) -> BrokerMessage:
    content = json.dumps(json.loads(message.message) | changes)
    return message.model_copy(update={"message": content.encode()})


def _cut_short(message: BrokerMessage) -> BrokerMessage:
    return message.model_copy(update={"message": message.message[:-1]})


def _token_parts(messages: list[BrokerMessage]) -> Iterator[str]:
    """Every part of every token that these messages were signed with."""
    for message in messages:
        for label in LABELS:
            yield from filter(None, str(message.labels.get(label, "")).split("."))
