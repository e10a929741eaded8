"""What the API answers, under / and /api alike."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from taskiq_flow_security import BackendUnavailableError, guard
from taskiq_flow_security.pipelines import Graph, Node
from tests.integration.api.pipelines import LIBRARIES, Deployment
from tests.integration.api.server import ADMIN, PROCESSOR, STRANGER, VIEWER, config, serving

each_prefix = pytest.mark.parametrize("prefix", ["", "/api"])


@pytest.fixture
def served() -> Deployment:
    pipeline_type, middleware = LIBRARIES["taskiq-pipelines"]
    served = Deployment(config(), middleware())
    served.api.add_pipeline("flow", pipeline_type(served.broker, served.spread).map(served.double))
    return served


@each_prefix
async def test_the_list_holds_what_the_caller_may_read(served: Deployment, prefix: str) -> None:
    async with serving(served.api) as client:
        lists = {key: (await client.get(f"{prefix}/pipelines", key)).json() for key in (VIEWER, STRANGER, ADMIN)}
    assert lists[VIEWER]["pipelines"] == [
        {"id": "flow", "node_count": 2, "edge_count": 1, "may_execute": False},
        {"id": "tables", "node_count": 1, "edge_count": 0, "may_execute": False},
    ]
    assert lists[STRANGER]["pipelines"] == []
    assert {"flow", "forbidden", "tables"} >= {shown["id"] for shown in lists[ADMIN]["pipelines"]} >= {"flow", "tables"}
    assert all(shown["may_execute"] for shown in lists[ADMIN]["pipelines"])


@each_prefix
async def test_the_graph_of_a_pipeline(served: Deployment, prefix: str) -> None:
    async with serving(served.api) as client:
        answers = {
            name: (await client.get(f"{prefix}/pipelines/flow/{name}", VIEWER)).raise_for_status().json()
            for name in ("dag", "critical-path", "parallel-groups")
        }
    assert answers["dag"] == {
        "pipeline_id": "flow",
        "nodes": [
            {"id": "1:spread", "task": "spread", "kind": "task"},
            {"id": "2:double", "task": "double", "kind": "map"},
        ],
        "edges": [{"source": "1:spread", "target": "2:double"}],
    }
    assert answers["critical-path"] == {
        "pipeline_id": "flow",
        "critical_path": ["1:spread", "2:double"],
        "length": 2,
    }
    assert answers["parallel-groups"] == {
        "pipeline_id": "flow",
        "parallel_groups": [["1:spread"], ["2:double"]],
        "group_count": 2,
    }


@each_prefix
async def test_who_asks(served: Deployment, prefix: str) -> None:
    async with serving(served.api) as client:
        answer = (await client.get(f"{prefix}/whoami", VIEWER)).raise_for_status().json()
    assert answer.pop("subject").startswith("api-key:")
    assert answer == {
        "roles": ["viewer"],
        "permissions": ["read"],
        "pipelines": ["flow", "tables"],
        "expires_at": None,
    }


@each_prefix
async def test_everybody_may_ask_whether_the_api_answers(served: Deployment, prefix: str) -> None:
    async with serving(served.api) as client:
        answer = await client.get(f"{prefix}/health")
    assert (answer.status_code, answer.json()) == (200, {"status": "healthy"})


@each_prefix
async def test_a_run_can_be_followed_where_its_location_says(served: Deployment, prefix: str) -> None:
    async with serving(served.api) as client:
        started = await client.http.post(
            f"{prefix}/pipelines/tables/execute", json={"args": [[1]]}, headers={"X-API-Key": PROCESSOR}
        )
        run = await client.finished(started, PROCESSOR)
        status = (await client.get(f"{prefix}/pipelines/tables/status", VIEWER)).json()
    assert started.json() == {"pipeline_id": "tables", "run_id": run["run_id"], "state": "running"}
    assert (run["state"], run["result"], run["error"]) == ("completed", 1, None)
    assert status["runs"] == [{name: run[name] for name in ("run_id", "state", "subject", "started_at")}]


async def test_the_run_id_is_the_txn_of_every_audit_event_of_the_request(
    served: Deployment, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(served.api) as client:
        caplog.clear()
        started = await client.execute("tables", PROCESSOR, [1])
        await client.finished(started, PROCESSOR)
    txns = {record.__dict__["txn"] for record in caplog.records if record.getMessage().startswith("task_")}
    assert txns == {started.json()["run_id"]}


async def test_a_body_may_be_left_out(served: Deployment) -> None:
    async with serving(served.api) as client:
        started = await client.http.post("/pipelines/tables/execute", headers={"X-API-Key": PROCESSOR})
        run = await client.finished(started, PROCESSOR)
    assert (run["state"], run["error"]["type"]) == ("failed", "TypeError")


@pytest.mark.parametrize(
    "path",
    [
        "/pipelines/none/dag",
        "/pipelines/none/critical-path",
        "/pipelines/none/parallel-groups",
        "/pipelines/none/status",
        "/pipelines/none/runs/none",
        "/pipelines/tables/runs/none",
    ],
)
async def test_what_does_not_exist_is_not_found_by_who_might_read_it(served: Deployment, path: str) -> None:
    async with serving(served.api) as client:
        answer = await client.get(path, ADMIN)
        hidden = await client.get(path, STRANGER)
    assert (answer.status_code, answer.json()["reason"]) == (404, "not_found")
    assert answer.headers["content-type"] == "application/problem+json"
    assert hidden.status_code == 403


@dataclass
class Point:
    """A value that JSON can hold."""

    x: int


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ({"a": [1, 2.5, None, True, "ü"]}, {"a": [1, 2.5, None, True, "ü"]}),
        (Point(1), {"x": 1}),
        ([math.nan, math.inf], ["NaN", "Infinity"]),
        (10**30, 10**30),
    ],
)
async def test_a_result_is_shown_as_json(value: Any, shown: Any) -> None:
    run = await run_returning(value)
    assert (run["state"], run["result"], run["result_problem"]) == ("completed", shown, None)


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value", [object(), b"\xff", "\ud800", nested(5000), {1: print}], ids=lambda value: str(type(value))
)
async def test_a_result_that_json_cannot_hold_is_said_to_be_one(value: Any) -> None:
    run = await run_returning(value)
    assert (run["state"], run["result"]) == ("completed", None)
    assert run["result_problem"] == f"A value of the type {type(value).__name__} that JSON cannot hold."


async def run_returning(value: Any) -> dict[str, Any]:
    served = Deployment(config())

    @served.broker.task("give", pipeline="flow")
    async def give() -> Any:
        return value

    async with serving(served.api) as client:
        return await client.run("flow", PROCESSOR)


async def test_what_the_exception_of_a_task_says_stays_on_the_server(served: Deployment) -> None:
    served.api.add_pipeline("broken", served.fail)
    async with serving(served.api) as client:
        started = await client.execute("broken", ADMIN, 1)
        run = await client.finished(started, ADMIN)
        text = (await client.get(f"/pipelines/broken/runs/{run['run_id']}", ADMIN)).text
    assert run["error"] == {"type": "ValueError", "reason": None, "detail": None}
    assert "secret" not in text


async def test_a_broker_that_is_away_is_an_answer_to_try_again(
    served: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(_message: object) -> None:
        raise ConnectionError("10.0.0.7 does not answer")

    async with serving(served.api) as client:
        monkeypatch.setattr(served.broker, "kick", away)
        answer = await client.execute("tables", PROCESSOR, [1])
    assert (answer.status_code, answer.json()["reason"]) == (503, "backend_unavailable")
    assert answer.headers["retry-after"]
    assert "10.0.0.7" not in answer.text


async def test_a_result_backend_that_is_away_is_an_answer_to_try_again(
    served: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(_task_id: str) -> bool:
        raise ConnectionError("10.0.0.7 does not answer")

    async with serving(served.api) as client:
        started = await client.execute("tables", PROCESSOR, [1])
        monkeypatch.setattr(served.broker.result_backend, "is_result_ready", away)
        answer = await client.get(f"/pipelines/tables/runs/{started.json()['run_id']}", PROCESSOR)
    assert (answer.status_code, answer.json()["reason"]) == (503, "backend_unavailable")
    assert "10.0.0.7" not in answer.text


async def test_a_run_that_has_started_is_not_denied_where_it_cannot_be_recorded(
    served: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(_run: object) -> None:
        raise BackendUnavailableError("it went away just now")

    async with serving(served.api) as client:
        monkeypatch.setattr(served.api.security.runs, "add", away)
        started = await client.execute("tables", PROCESSOR, [1])
        run = await client.get(f"/pipelines/tables/runs/{started.json()['run_id']}", PROCESSOR)
    assert (started.status_code, run.status_code) == (202, 404)
    assert len(served.notes) == 1


async def test_the_rate_limit_of_a_guard_is_an_answer_that_says_when_to_try_again(served: Deployment) -> None:
    @served.broker.task("rare", pipeline="rare")
    @guard(rate_limit="1/hour")
    async def rare() -> None:
        """A task that may run once an hour."""

    async with serving(served.api) as client:
        answers = [await client.execute("rare", ADMIN) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [202, 429]
    assert 0 < int(answers[1].headers["retry-after"]) <= 3600
    assert answers[1].json()["reason"] == "rate_limit"


class Breaking:
    """A pipeline with a bug that shows later."""

    id = "breaking"
    broken = False

    @property
    def graph(self) -> Graph:
        """Its steps, while it works."""
        if self.broken:
            raise ZeroDivisionError("a secret of the server's")
        return Graph.of([Node(id="one", task="one")])

    async def start(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
        """Run nothing."""
        raise ZeroDivisionError("a secret of the server's")


async def test_an_unexpected_error_says_nothing_of_itself(served: Deployment) -> None:
    breaking = Breaking()
    served.api.add_pipeline("breaking", breaking)
    async with serving(served.api) as client:
        breaking.broken = True
        answers = [await client.get("/pipelines/breaking/dag", ADMIN), await client.execute("breaking", ADMIN)]
        after = await client.get("/pipelines/flow/dag", ADMIN)
    for answer in answers:
        assert (answer.status_code, answer.json()["reason"]) == (500, "internal_error")
        assert "secret" not in answer.text
    assert after.status_code == 200


async def test_the_answer_to_an_unexpected_error_tells_browsers_to_keep_to_https(served: Deployment) -> None:
    breaking = Breaking()
    served.api.add_pipeline("breaking", breaking)
    async with serving(served.api) as client:
        breaking.broken = True
        headers = {"X-API-Key": ADMIN, "X-Forwarded-Proto": "https"}
        answer = await client.http.get("/pipelines/breaking/dag", headers=headers)
    assert answer.status_code == 500
    assert answer.headers["strict-transport-security"].startswith("max-age=")
