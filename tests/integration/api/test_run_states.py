"""How a run has ended is read once and remembered, whatever becomes of its result."""

from __future__ import annotations

import asyncio
import logging
from typing import Any
from uuid import uuid4

import pytest
from taskiq import InMemoryBroker, TaskiqResult
from taskiq.brokers.inmemory_broker import InmemoryResultBackend
from taskiq_redis import RedisAsyncResultBackend

from taskiq_flow_security import BackendUnavailableError, FlowSecurity, SecurityMiddleware
from taskiq_flow_security.http import VisualizationAPI, create_visualization_api
from tests.integration.api.server import ADMIN, Client, config, serving
from tests.services import REDIS_URL, require


class Results(InmemoryResultBackend[Any]):
    """Notes what is read of it, and how many at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.read: list[str] = []
        self.reading = 0
        self.most = 0

    async def get_result(self, task_id: str, with_logs: bool = False) -> TaskiqResult[Any]:
        """Take a moment to read one."""
        self.read.append(task_id)
        self.reading += 1
        self.most = max(self.most, self.reading)
        await asyncio.sleep(0.01)
        self.reading -= 1
        return await super().get_result(task_id, with_logs)


def api_with(backend: Any, *, protected: bool = False) -> VisualizationAPI:
    security = FlowSecurity(config())
    broker = InMemoryBroker().with_middlewares(SecurityMiddleware(security))
    broker.with_result_backend(security.protect_results(backend) if protected else backend)

    @broker.task("give", pipeline="flow")
    async def give(value: int = 0) -> int:
        return 6 // value

    return create_visualization_api(broker)


async def states(client: Client) -> list[str]:
    status = (await client.get("/pipelines/flow/status", ADMIN)).raise_for_status().json()
    return [run["state"] for run in status["runs"]]


async def execute(api: VisualizationAPI, client: Client, value: int) -> str:
    """Start a run that has ended, of which nobody has seen anything yet."""
    started = await client.execute("flow", ADMIN, value)
    assert isinstance(api.broker, InMemoryBroker)
    await api.broker.wait_all()
    run_id: str = started.json()["run_id"]
    return f"/pipelines/flow/runs/{run_id}"


async def test_each_result_is_read_once_for_the_list_and_few_at_a_time() -> None:
    results = Results()
    api = api_with(results)
    async with serving(api) as client:
        for value in range(10):
            await execute(api, client, value)
        assert [await states(client) for _ in range(3)] == [["completed"] * 9 + ["failed"]] * 3
    assert len(results.read) == len(set(results.read)) == 10
    assert results.most <= 2


async def test_a_run_whose_result_is_no_longer_kept_stays_as_it_was_seen() -> None:
    results = Results()
    api = api_with(results)
    async with serving(api) as client:
        completed, failed, unseen = [await execute(api, client, value) for value in (1, 0, 2)]
        seen = [(await client.get(path, ADMIN)).json() for path in (completed, failed)]
        results.results.clear()
        after = [(await client.get(path, ADMIN)).json() for path in (completed, failed, unseen)]
        assert await states(client) == ["running", "failed", "completed"]
    assert (seen[0]["result"], seen[0]["result_problem"]) == (6, None)
    assert (after[0]["state"], after[0]["result"]) == ("completed", None)
    assert "no longer kept" in after[0]["result_problem"]
    assert after[1] == seen[1]
    assert after[1]["error"] == {"type": "ZeroDivisionError", "reason": None, "detail": None}
    assert after[2]["state"] == "running"


async def test_how_a_run_has_ended_is_known_while_the_result_backend_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(_task_id: str) -> bool:
        raise ConnectionError

    results = Results()
    api = api_with(results)
    async with serving(api) as client:
        await execute(api, client, 1)
        assert await states(client) == ["completed"]
        monkeypatch.setattr(results, "is_result_ready", away)
        assert await states(client) == ["completed"]


async def test_a_later_result_of_the_same_task_counts_when_the_run_is_looked_at() -> None:
    results = Results()
    api = api_with(results)
    async with serving(api) as client:
        path = await execute(api, client, 0)
        assert await states(client) == ["failed"]
        (task_id,) = results.results
        again = TaskiqResult[Any](is_err=False, return_value=7, execution_time=0)
        await results.set_result(task_id, again)  # as a retry does that lets the results of failures be stored
        assert (await client.get(path, ADMIN)).json()["result"] == 7
        assert await states(client) == ["completed"]


async def test_a_result_that_cannot_be_believed_is_not_remembered() -> None:
    results = InmemoryResultBackend[Any]()
    api = api_with(results, protected=True)
    async with serving(api) as client:
        path = await execute(api, client, 1)
        ((task_id, genuine),) = results.results.items()
        results.results[task_id] = TaskiqResult[Any](is_err=False, return_value=666, execution_time=0)
        assert await states(client) == ["refused"]
        results.results[task_id] = genuine
        assert (await client.get(path, ADMIN)).json()["result"] == 6
        results.results[task_id] = TaskiqResult[Any](is_err=False, return_value=666, execution_time=0)
        run = (await client.get(path, ADMIN)).json()
        assert await states(client) == ["completed"]
    assert (run["state"], run["result"]) == ("completed", None)
    assert "cannot be believed" in run["result_problem"]


async def test_what_cannot_be_remembered_is_told_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(_run: object) -> None:
        raise BackendUnavailableError("it is away")

    api = api_with(Results())
    async with serving(api) as client:
        path = await execute(api, client, 1)
        monkeypatch.setattr(api.security.runs, "update", away)
        assert await states(client) == ["completed"]
        assert (await client.get(path, ADMIN)).json()["result"] == 6


@pytest.mark.parametrize("protected", [False, True])
async def test_with_a_result_backend_that_deletes_what_is_read_a_run_stays_ended_and_the_log_warns(
    protected: bool, caplog: pytest.LogCaptureFixture
) -> None:
    require("redis")
    backend: Any = RedisAsyncResultBackend(
        REDIS_URL, keep_results=False, result_ex_time=60, prefix_str=f"states-{uuid4().hex}"
    )
    api = api_with(backend, protected=protected)
    async with serving(api) as client:
        listed = await execute(api, client, 1)
        assert await states(client) == ["completed"]
        assert await states(client) == ["completed"]
        looked_at = await execute(api, client, 2)
        assert (await client.get(looked_at, ADMIN)).json()["result"] == 3
        for path in (listed, looked_at):
            run = (await client.get(path, ADMIN)).json()
            assert (run["state"], run["result"]) == ("completed", None)
            assert "no longer kept" in run["result_problem"]
        assert await states(client) == ["completed", "completed"]
    assert "keep_results=False" in caplog.text


async def test_of_a_result_backend_that_keeps_results_the_log_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with serving(api_with(Results())):
        pass
    assert "keep_results" not in caplog.text
