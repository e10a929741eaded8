"""taskiq-flow's own API, secured as `examples/taskiq_flow_app.py` does it: every route asks the same policy."""

from __future__ import annotations

import runpy
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
from starlette.applications import Starlette
from starlette.routing import Mount
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.integration.api.server import Client, serving

EXAMPLE = Path(__file__).parents[3] / "examples" / "taskiq_flow_app.py"

READ = [
    "/pipelines/{}/status",
    "/pipelines/{}/dag",
    "/pipelines/{}/dag/dot",
    "/pipelines/{}/visualize",
    "/dag/{}",
    "/dag/{}/critical-path",
    "/dag/{}/parallel-groups",
    "/dag/{}/networkx",
    "/ws/clients/{}",
]


class Served(Client):
    """The example, and the key that it makes."""

    key: str


@pytest_asyncio.fixture
async def served() -> AsyncIterator[Served]:
    example = runpy.run_path(str(EXAMPLE))
    async with serving(example["app"]) as client:
        served = Served(client.address, client.http)
        served.key = example["LISTENER_KEY"]
        yield served


@pytest.mark.parametrize("path", READ)
async def test_a_pipeline_answers_who_may_read_it_and_nobody_else(served: Served, path: str) -> None:
    assert (await served.get(path.format("songs"), served.key)).status_code == 200
    assert (await served.get(path.format("payroll"), served.key)).status_code == 403
    assert (await served.get(path.format("songs"))).status_code == 401
    assert (await served.get(path.format("songs"), "another-key")).status_code == 403


async def test_the_lists_hold_what_the_caller_may_read(served: Served) -> None:
    async with served.live(served.key, "/ws/songs"):
        watched = (await served.get("/ws/pipelines", served.key)).json()
        listed = (await served.get("/pipelines", served.key)).json()
    assert [pipeline["id"] for pipeline in listed["pipelines"]] == ["songs"]
    assert set(watched["pipelines"]) <= {"songs"}


@pytest.mark.parametrize("path", ["/pipelines", "/v1/pipelines"])
async def test_the_list_holds_no_more_behind_a_prefix(path: str) -> None:
    example = runpy.run_path(str(EXAMPLE))
    transport = httpx.ASGITransport(example["app"], root_path="/v1")
    async with httpx.AsyncClient(transport=transport, base_url="https://edge.example") as client:
        answer = await client.get(path, headers={"X-API-Key": example["LISTENER_KEY"]})
    assert [pipeline["id"] for pipeline in answer.json()["pipelines"]] == ["songs"]


async def test_the_list_holds_no_more_where_the_application_is_mounted() -> None:
    example = runpy.run_path(str(EXAMPLE))
    mounted = Starlette(routes=[Mount("/flow", example["app"])])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(mounted), base_url="https://edge.example") as client:
        answer = await client.get("/flow/pipelines", headers={"X-API-Key": example["LISTENER_KEY"]})
    assert [pipeline["id"] for pipeline in answer.json()["pipelines"]] == ["songs"]


async def test_only_an_administrator_registers_pipelines(served: Served) -> None:
    answer = await served.http.post("/pipelines/songs", json=[], headers={"X-API-Key": served.key})
    assert (answer.status_code, answer.json()["reason"]) == (403, "permission")


@pytest.mark.parametrize(
    "path", ["/docs", "/openapi.json", "/metrics", "/pipelines/songs/", "/dag//songs", "/DAG/songs"]
)
async def test_what_no_rule_knows_is_denied(served: Served, path: str) -> None:
    assert (await served.get(path, served.key)).status_code == 403


async def test_everybody_may_ask_whether_it_answers(served: Served) -> None:
    assert (await served.get("/health")).status_code == 200


async def test_a_websocket_is_for_who_may_read_its_pipeline(served: Served) -> None:
    async with served.live(served.key, "/ws/songs"):
        pass
    with pytest.raises(InvalidStatus) as denied:
        async with served.live(served.key, "/ws/payroll"):
            pass
    assert denied.value.response.status_code == 403
    async with served.live(None, "/ws/songs") as live:
        assert (await live.ask(type="connect", auth="another-key"))["type"] == "error"
        with pytest.raises(ConnectionClosed):
            await live.receive()
    assert live.connection.close_code in (4401, 4403)
