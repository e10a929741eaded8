"""The API in one process, ``taskiq worker`` in another, Redis between them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from taskiq_flow_security import TaskiqFlowConfig
from taskiq_flow_security.http import create_visualization_api
from tests.integration.api.server import PROCESSOR, VIEWER, config, serving
from tests.integration.api.worker_app import deployed
from tests.integration.conftest import NewTransport
from tests.integration.transports import Transport
from tests.integration.workers import Worker
from tests.services import REDIS_URL

PIPELINES = ["steps", "dataflow", "tables", "ends-restricted", "confidential"]
RIGHTS = {
    PROCESSOR: {"role": "processor", "pipelines": PIPELINES, "permissions": ["read", "execute"]},
    VIEWER: {"role": "viewer", "pipelines": PIPELINES, "permissions": ["read"]},
}
OF_WORKERS = {**RIGHTS, PROCESSOR: {**RIGHTS[PROCESSOR], "pipelines": PIPELINES[:-1]}}
"""The workers' configuration is narrower."""


def settings(transport: Transport) -> TaskiqFlowConfig:
    return config(api_keys=RIGHTS, shared_store=REDIS_URL, principal_audience=transport.name)


@pytest.fixture
def transport(new_transport: NewTransport) -> Transport:
    return new_transport("redis-stream")


@pytest.fixture
def worker(transport: Transport, tmp_path: Path) -> Iterator[Worker]:
    secret = settings(transport).jwt_secret
    assert secret is not None
    variables = {
        "TASKIQ_FLOW_JWT_SECRET": secret.get_secret_value(),
        "TASKIQ_FLOW_API_KEYS": json.dumps(OF_WORKERS),
        "TASKIQ_FLOW_SHARED_STORE": REDIS_URL,
        "TASKIQ_FLOW_PRINCIPAL_AUDIENCE": transport.name,
    }
    worker = Worker(transport, variables, tmp_path / "worker.log", app="tests.integration.api.worker_app:broker")
    yield worker
    worker.kill()


async def test_pipelines_run_in_workers_for_the_caller(transport: Transport, worker: Worker) -> None:
    broker, pipelines = deployed(transport, settings(transport))
    async with serving(create_visualization_api(broker, pipelines=pipelines)) as client:
        steps = await client.run("steps", PROCESSOR, 4)
        dataflow = await client.run("dataflow", PROCESSOR, size=4)
        task = await client.run("tables", PROCESSOR)
    assert (steps["state"], steps["result"]) == ("completed", 12)
    assert (dataflow["state"], dataflow["result"]) == ("completed", {"rows": [0, 1, 2, 3], "sum": 6})
    assert (task["state"], task["result"]) == ("completed", task["subject"])
    assert worker.output.count(steps["run_id"]) >= 7  # load, four times double, collecting, total


async def test_what_a_worker_refuses_is_refused_in_the_run(transport: Transport, worker: Worker) -> None:
    broker, pipelines = deployed(transport, settings(transport))
    async with serving(create_visualization_api(broker, pipelines=pipelines)) as client:
        runs = [
            await client.run("ends-restricted", PROCESSOR, 1),
            await client.run("confidential", PROCESSOR, 1),
        ]
    for run in runs:
        assert (run["state"], run["result"]) == ("refused", None)
        assert (run["error"]["type"], run["error"]["reason"]) == ("AccessDeniedError", "whitelist")
    assert "it must not run" not in worker.output


async def test_another_process_knows_the_run_and_sees_its_events(transport: Transport, worker: Worker) -> None:
    apis = [
        create_visualization_api(broker, pipelines=pipelines)
        for broker, pipelines in (deployed(transport, settings(transport)) for _ in range(2))
    ]
    async with serving(apis[0]) as one, serving(apis[1]) as other, other.live(VIEWER) as live:
        assert (await live.ask(type="subscribe", pipeline_id="tables"))["type"] == "subscribed"
        started = await one.execute("tables", PROCESSOR)
        events = [await live.receive() for _ in range(3)]
        run_id = (await one.finished(started, PROCESSOR))["run_id"]
        seen = (await other.get(f"/pipelines/tables/runs/{run_id}", VIEWER)).json()
        status = (await other.get("/pipelines/tables/status", VIEWER)).json()
    assert [event["kind"] for event in events] == ["enqueued", "started", "completed"]
    assert {event["run_id"] for event in events} == {run_id}
    assert seen["state"] == "completed"
    assert [run["run_id"] for run in status["runs"]] == [run_id]


async def test_a_run_of_which_nobody_can_keep_a_record_is_not_started(transport: Transport) -> None:
    nowhere = config(api_keys=RIGHTS, shared_store="redis://127.0.0.1:1")
    broker, pipelines = deployed(transport, nowhere)
    async with serving(create_visualization_api(broker, pipelines=pipelines)) as client:
        answer = await client.execute("tables", PROCESSOR)
    assert (answer.status_code, answer.json()["reason"]) == (503, "backend_unavailable")
    assert answer.headers["retry-after"]
    assert await transport.unfinished() == 0
