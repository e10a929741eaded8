"""Every kind of pipeline runs for the caller, also its tasks that are registered without one; a step that is refused
fails the run."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import pytest
import taskiq_flow
from taskiq import BrokerMessage

from taskiq_flow_security.pipelines import dataflow as dataflow_module
from tests.edge import logs
from tests.integration.api.pipelines import LIBRARIES, Deployment
from tests.integration.api.server import ADMIN, PROCESSOR, config, serving

each_library = pytest.mark.parametrize("library", LIBRARIES)


def deployment(library: str) -> tuple[Deployment, Any]:
    pipeline_type, middleware = LIBRARIES[library]
    return Deployment(config(), middleware()), pipeline_type


def subjects(deployment: Deployment) -> set[str]:
    return {subject for _, subject, _ in deployment.notes}


async def test_a_task_runs() -> None:
    served = Deployment(config())
    async with serving(served.api) as client:
        run = await client.run("tables", PROCESSOR, [1, 2, 3])
    assert (run["state"], run["result"]) == ("completed", 3)
    assert served.notes == [("clean", run["subject"], [1, 2, 3])]


@each_library
async def test_sequential_map_and_filter_steps_run(library: str) -> None:
    served, pipeline_type = deployment(library)
    pipeline = pipeline_type(served.broker, served.spread)
    pipeline.filter(served.odd, check_interval=0.01).map(served.double, check_interval=0.01).call_next(served.total)
    served.api.add_pipeline("flow", pipeline)
    async with serving(served.api) as client:
        run = await client.run("flow", PROCESSOR, 4)
    assert (run["state"], run["result"]) == ("completed", 8)
    assert {name for name, _, _ in served.notes} == {"spread", "odd", "double", "total"}
    assert subjects(served) == {run["subject"]}


@each_library
async def test_steps_that_nothing_would_kick_are_not_begun_and_the_log_says_what_to_add(library: str) -> None:
    pipeline_type, middleware = LIBRARIES[library]
    others = [other() for name, (_, other) in LIBRARIES.items() if name != library]
    served = Deployment(config(), *others)
    served.api.add_pipeline("flow", pipeline_type(served.broker, served.double).call_next(served.double))
    async with serving(served.api) as client:
        with logs(logging.ERROR) as lines:
            refused = await client.execute("flow", PROCESSOR, 1)
        status = (await client.get("/pipelines/flow/status", PROCESSOR)).json()
        assert (served.notes, status["runs"]) == ([], [])
        served.broker.add_middlewares(middleware())
        run = await client.run("flow", PROCESSOR, 1)
    assert (refused.status_code, refused.json()["reason"]) == (500, "internal_error")
    assert "its log says why" in refused.json()["detail"]
    assert any(f"add PipelineMiddleware() of {library.replace('-', '_')}" in line for line in lines)
    assert (run["state"], run["result"]) == ("completed", 4)


async def test_a_dataflow_pipeline_runs() -> None:
    served = Deployment(config())
    served.api.add_pipeline("flow", dataflow(served, served.load, served.count, served.add))
    async with serving(served.api) as client:
        run = await client.run("flow", PROCESSOR, size=4)
    assert (run["state"], run["result"]) == ("completed", {"rows": [0, 1, 2, 3], "count": 4, "sum": 6})
    assert subjects(served) == {run["subject"]}


@each_library
async def test_a_first_step_that_the_caller_may_not_run_is_refused_at_once(library: str) -> None:
    served, pipeline_type = deployment(library)
    served.api.add_pipeline("flow", pipeline_type(served.broker, served.forbidden).call_next(served.double))
    async with serving(served.api) as client:
        answer = await client.execute("flow", PROCESSOR, 1)
    assert (answer.status_code, answer.json()["reason"]) == (403, "whitelist")
    assert served.notes == []


async def test_a_first_task_of_a_dataflow_that_the_caller_may_not_run_is_refused_at_once() -> None:
    served = Deployment(config())
    served.api.add_pipeline("flow", dataflow(served, served.forbidden_branch))
    async with serving(served.api) as client:
        answer = await client.execute("flow", PROCESSOR, rows=[1])
        status = (await client.get("/pipelines/flow/status", PROCESSOR)).json()
    assert (answer.status_code, answer.json()["reason"]) == (403, "whitelist")
    assert (served.notes, status["runs"]) == ([], [])


@each_library
async def test_a_later_step_that_the_caller_may_not_run_fails_the_run(library: str) -> None:
    served, pipeline_type = deployment(library)
    served.api.add_pipeline("flow", pipeline_type(served.broker, served.double).call_next(served.forbidden))
    async with serving(served.api) as client:
        run = await client.run("flow", PROCESSOR, 1)
    assert (run["state"], run["result"]) == ("refused", None)
    assert (run["error"]["type"], run["error"]["reason"]) == ("AccessDeniedError", "whitelist")
    assert [name for name, _, _ in served.notes] == ["double"]


@each_library
@pytest.mark.parametrize("step", ["map", "filter"])
async def test_items_of_a_step_that_the_caller_may_not_run_fail_the_run(library: str, step: str) -> None:
    served, pipeline_type = deployment(library)
    pipeline = getattr(pipeline_type(served.broker, served.spread), step)(served.forbidden, check_interval=0.01)
    served.api.add_pipeline("flow", pipeline)
    async with serving(served.api) as client:
        run = await client.run("flow", PROCESSOR, 2)
    assert (run["state"], run["result"]) == ("refused", None)
    assert (run["error"]["type"], run["error"]["reason"]) == ("AccessDeniedError", "whitelist")
    assert [name for name, _, _ in served.notes] == ["spread"]


async def test_a_branch_of_a_dataflow_that_the_caller_may_not_run_fails_the_run() -> None:
    served = Deployment(config())
    served.api.add_pipeline("flow", dataflow(served, served.load, served.count, served.forbidden_branch))
    async with serving(served.api) as client:
        run = await client.run("flow", PROCESSOR, size=1)
    assert run["state"] == "refused"
    assert (run["error"]["type"], run["error"]["reason"]) == ("AccessDeniedError", "whitelist")
    assert "forbidden_branch" not in {name for name, _, _ in served.notes}


async def test_a_branch_of_a_dataflow_that_raises_fails_the_run() -> None:
    served = Deployment(config())
    served.api.add_pipeline("flow", dataflow(served, served.load, served.failing_branch))
    async with serving(served.api) as client:
        run = await client.run("flow", PROCESSOR, size=1)
    assert (run["state"], run["error"]) == ("failed", {"type": "ValueError", "reason": None, "detail": None})


@each_library
async def test_runs_that_are_started_at_the_same_time_each_have_their_own_result(library: str) -> None:
    served, pipeline_type = deployment(library)
    served.api.add_pipeline("flow", pipeline_type(served.broker, served.double).call_next(served.double))
    async with serving(served.api) as client:
        runs = await asyncio.gather(*(client.run("flow", PROCESSOR, value) for value in range(30)))
    assert [run["result"] for run in runs] == [4 * value for value in range(30)]
    assert len({run["run_id"] for run in runs}) == 30


async def test_a_dataflow_that_runs_while_the_server_stops_has_failed() -> None:
    served = Deployment(config())
    reached, never = asyncio.Event(), asyncio.Event()

    @served.broker.task("wait")
    @taskiq_flow.pipeline_task(output="nothing")
    async def wait() -> None:
        reached.set()
        await never.wait()

    served.api.add_pipeline("flow", dataflow(served, wait))
    async with serving(served.api) as client:
        started = await client.execute("flow", PROCESSOR)
        assert started.status_code == 202
        await reached.wait()
    (run,) = await served.api.security.runs.recent("flow")
    result = await served.broker.result_backend.get_result(run.task_id)
    assert str(result.error) == "The process that ran the pipeline has ended."
    never.set()
    await served.broker.wait_all()


async def test_a_dataflow_that_is_ended_as_soon_as_it_has_started_has_failed() -> None:
    served = Deployment(config())
    never = asyncio.Event()

    @served.broker.task("wait")
    @taskiq_flow.pipeline_task(output="nothing")
    async def wait() -> None:
        await never.wait()

    served.api.add_pipeline("flow", dataflow(served, wait))
    pipeline = served.api._catalogue.get("flow")
    assert isinstance(pipeline, dataflow_module.DataflowPipeline)
    principal = await served.api.security.authenticate(api_key=PROCESSOR)
    with served.api.security.acting_as(principal, pipeline="flow"):
        task_id = await pipeline.start([], {})
    await pipeline.close()
    result = await served.broker.result_backend.get_result(task_id)
    assert str(result.error) == "The process that ran the pipeline has ended."
    never.set()
    await served.broker.wait_all()


async def test_a_dataflow_whose_step_has_no_result_in_time_has_failed_and_says_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    served = Deployment(config(principal_ttl=1, queue_ttl=0.5, clock_leeway=0))
    served.api.add_pipeline("flow", dataflow(served, served.load))
    async with serving(served.api) as client:
        monkeypatch.setattr(served.broker, "kick", no_worker)
        run = await client.run("flow", PROCESSOR, size=1)
        status = (await client.get("/pipelines/flow/status", PROCESSOR)).json()
    assert (run["state"], run["error"]["type"]) == ("failed", "AbandonedRunError")
    assert (run["error"]["reason"], run["error"]["detail"]) == (
        "no_result",
        "There was no result of load within 1 seconds.",
    )
    assert status["runs"][0]["state"] == "failed"


async def test_a_dataflow_that_waits_long_asks_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    served = Deployment(config())
    served.api.add_pipeline("flow", dataflow(served, served.load))
    monkeypatch.setattr(dataflow_module, "_FIRST_PAUSE", 0.001)  # so that a second is a long time
    questions: list[float] = []

    async def is_result_ready(_task_id: str) -> bool:
        questions.append(time.monotonic())
        return False

    async with serving(served.api) as client:
        monkeypatch.setattr(served.broker, "kick", no_worker)
        monkeypatch.setattr(served.broker.result_backend, "is_result_ready", is_result_ready)
        await client.execute("flow", PROCESSOR, size=1)
        await asyncio.sleep(2)
    last_second = [asked for asked in questions if asked > questions[-1] - 1]
    assert len(last_second) < 12


async def test_a_process_carries_so_many_runs_of_a_dataflow_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    served = Deployment(config())
    served.api.add_pipeline("flow", dataflow(served, served.load))
    served.api.add_pipeline("other", dataflow(served, served.load))
    kick = served.broker.kick
    kicked: list[BrokerMessage] = []

    async def hold(message: BrokerMessage) -> None:
        kicked.append(message)

    async with serving(served.api) as client:
        monkeypatch.setattr(dataflow_module, "MAX_RUNS", 2)
        monkeypatch.setattr(served.broker, "kick", hold)
        runs = await asyncio.gather(*(client.execute("flow", PROCESSOR, size=1) for _ in range(5)))
        elsewhere = await client.execute("other", ADMIN, size=1)
        refused = [answer for answer in runs if answer.status_code != 202]
        assert [(answer.status_code, answer.json()["reason"]) for answer in refused] == [
            (503, "backend_unavailable")
        ] * 3
        assert all(answer.headers["retry-after"] for answer in refused)
        assert elsewhere.status_code == 202
        assert len(kicked) == 3
        for message in kicked:
            await kick(message)
        for answer in runs:
            if answer.status_code == 202:
                await client.finished(answer, PROCESSOR)
        assert (await client.execute("flow", PROCESSOR, size=1)).status_code == 202


async def no_worker(_message: BrokerMessage) -> None:
    """Takes a message, and nobody runs it."""


def dataflow(served: Deployment, *tasks: Any) -> taskiq_flow.DataflowPipeline:
    return taskiq_flow.DataflowPipeline.from_tasks(served.broker, list(tasks))
