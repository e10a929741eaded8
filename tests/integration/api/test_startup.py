"""What is wrong with the set-up is said when the API is made; what is right is secured."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import suppress
from types import MappingProxyType
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from taskiq import AsyncBroker, InMemoryBroker, TaskiqEvents
from taskiq.message import BrokerMessage

from taskiq_flow_security import AuthenticationError, ConfigurationError, FlowSecurity, SecurityMiddleware
from taskiq_flow_security.http import HTTPSecurityMiddleware, Rule, create_visualization_api
from taskiq_flow_security.pipelines import Graph, Node
from tests.integration.api.server import PROCESSOR, STRANGER, config, serving


def test_a_broker_without_security_gets_it() -> None:
    broker = InMemoryBroker()
    api = create_visualization_api(broker, config())
    (middleware,) = broker.middlewares
    assert isinstance(middleware, SecurityMiddleware)
    assert middleware.security is api.security


@pytest.mark.parametrize("given", [None, config()])
def test_a_broker_with_security_keeps_it(given: Any) -> None:
    security = FlowSecurity(config())
    broker = InMemoryBroker().with_middlewares(SecurityMiddleware(security))
    assert create_visualization_api(broker, given).security is security
    assert len(broker.middlewares) == 1


def test_another_configuration_than_that_of_the_broker_is_refused() -> None:
    broker = InMemoryBroker().with_middlewares(SecurityMiddleware(FlowSecurity(config())))
    with pytest.raises(ConfigurationError, match="another configuration"):
        create_visualization_api(broker, config(require_https=True))


def test_the_configuration_comes_from_the_environment_where_none_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKIQ_FLOW_JWT_SECRET", "x" * 32)
    monkeypatch.setenv("TASKIQ_FLOW_RATE_LIMIT_DEFAULT", "7/hour")
    assert create_visualization_api(InMemoryBroker()).security.config.rate_limit_default == "7/hour"


def test_without_any_configuration_nothing_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TASKIQ_FLOW_JWT_SECRET", raising=False)
    with pytest.raises(ConfigurationError, match="jwt_secret"):
        create_visualization_api(InMemoryBroker())


def test_a_limit_for_an_endpoint_that_there_is_not_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    create_visualization_api(InMemoryBroker(), config(rate_limits={"list_pipeline": "1/minute"}))
    assert "rate_limits: no rule of this application has the endpoint list_pipeline;" in caplog.text


def test_a_limit_for_each_endpoint_that_the_document_names_is_taken(caplog: pytest.LogCaptureFixture) -> None:
    names = ("health", "whoami", "get_run", "openapi", "docs")
    create_visualization_api(InMemoryBroker(), config(rate_limits=dict.fromkeys(names, "1/minute")))
    assert "no rule" not in caplog.text


def test_what_is_no_pipeline_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="is no pipeline"):
        create_visualization_api(InMemoryBroker(), config(), pipelines={"some": object()})


class _Own:
    id = "own"
    graph: object = Graph.of([Node(id="one", task="nothing")])

    async def start(self, _args: object, _kwargs: object) -> str:
        return "task"


class _WithPlainGraph(_Own):
    graph = MappingProxyType({"nodes": ()})


class _WithPlainStart(_Own):
    def start(self, _args: object, _kwargs: object) -> str:  # type: ignore[override]  # what is wrong with it
        return "task"


@pytest.mark.parametrize(("pipeline", "what"), [(_WithPlainGraph(), "graph"), (_WithPlainStart(), "start")])
def test_what_only_looks_like_a_pipeline_is_refused(pipeline: object, what: str) -> None:
    with pytest.raises(ConfigurationError, match=f"'own': its {what} "):
        create_visualization_api(InMemoryBroker(), config(), pipelines={"own": pipeline})
    create_visualization_api(InMemoryBroker(), config(), pipelines={"own": _Own()})


async def test_the_broker_starts_and_stops_with_the_server() -> None:
    broker = InMemoryBroker()
    seen: list[str] = []
    broker.add_event_handler(TaskiqEvents.CLIENT_STARTUP, lambda _state: seen.append("started"))
    broker.add_event_handler(TaskiqEvents.CLIENT_SHUTDOWN, lambda _state: seen.append("stopped"))
    async with serving(create_visualization_api(broker, config())) as client:
        assert (await client.get("/health")).status_code == 200
        assert seen == ["started"]
    assert seen == ["started", "stopped"]


async def test_rules_that_cannot_be_keep_a_server_from_starting_that_insists_on_start_up(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = Starlette()
    app.add_middleware(HTTPSecurityMiddleware, security=FlowSecurity(config()), rules=[Rule("GET", "/a", "a")] * 2)
    server = uvicorn.Server(uvicorn.Config(app, lifespan="on", log_config=None, port=0))
    with suppress(SystemExit):  # as some versions of uvicorn end the process from here
        await server.serve()
    assert not server.started
    assert "rule GET /a: /a comes before it" in caplog.text


async def test_a_preflight_is_answered_by_who_stands_outermost() -> None:
    headers = {"Origin": "https://page.example", "Access-Control-Request-Method": "GET"}
    for order, status in ((1, 200), (-1, 401)):
        app = Starlette()
        added: list[tuple[Any, dict[str, Any]]] = [
            (HTTPSecurityMiddleware, {"security": FlowSecurity(config())}),
            (CORSMiddleware, {"allow_origins": ["https://page.example"]}),
        ]
        for middleware, options in added[::order]:
            app.add_middleware(middleware, **options)
        async with serving(app) as client:
            assert (await client.http.options("/pipelines", headers=headers)).status_code == status


class Elsewhere(AsyncBroker):
    """A broker whose tasks run in other processes."""

    async def kick(self, message: BrokerMessage) -> None:
        """Nobody is there to run it."""

    async def listen(self) -> AsyncGenerator[bytes, None]:
        """Nothing comes."""
        no_messages: list[bytes] = []
        for message in no_messages:
            yield message


@pytest.mark.parametrize(
    ("broker", "settings", "said"),
    [
        (Elsewhere, {}, True),
        (Elsewhere, {"shared_store": "redis://localhost:1"}, False),
        (Elsewhere, {"security_enabled": False}, False),
        (InMemoryBroker, {}, False),
    ],
)
async def test_an_api_that_hears_nothing_of_its_workers_says_so(
    broker: type[AsyncBroker], settings: dict[str, Any], said: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(create_visualization_api(broker(), config(**settings))):
        pass
    assert ("subscribers get no events of what workers run" in caplog.text) is said


async def test_an_application_that_the_api_is_mounted_in_starts_its_broker() -> None:
    broker = InMemoryBroker()
    seen: list[str] = []
    broker.add_event_handler(TaskiqEvents.CLIENT_STARTUP, lambda _state: seen.append("started"))
    broker.add_event_handler(TaskiqEvents.CLIENT_SHUTDOWN, lambda _state: seen.append("stopped"))
    broker.register_task(_nothing, "nothing", pipeline="tables")
    api = create_visualization_api(broker, config())
    outer = FastAPI(lifespan=api.lifespan)
    outer.mount("/flow", api)
    async with serving(outer) as client:
        headers = {"X-API-Key": PROCESSOR}
        listed = await client.http.get("/flow/pipelines", headers=headers)
        assert seen == ["started"]
        started = await client.http.post("/flow/pipelines/tables/execute", json={}, headers=headers)
        servers = [(await client.get(f"{prefix}/openapi.json")).json()["servers"] for prefix in ("/flow", "/flow/api")]
    assert [pipeline["id"] for pipeline in listed.json()["pipelines"]] == ["tables"]
    assert started.status_code == 202
    assert servers == [[{"url": "/flow"}], [{"url": "/flow/api"}]]
    assert seen == ["started", "stopped"]


async def test_a_broker_that_takes_no_messages_is_said_to_the_log_why(caplog: pytest.LogCaptureFixture) -> None:
    class Locked(Elsewhere):
        async def kick(self, message: BrokerMessage) -> None:
            raise PermissionError("wrong password")

    broker = Locked()
    broker.register_task(_nothing, "nothing", pipeline="tables")
    async with serving(create_visualization_api(broker, config())) as client:
        answer = await client.execute("tables", PROCESSOR)
    assert (answer.status_code, answer.json()["reason"]) == (503, "backend_unavailable")
    assert "wrong password" not in answer.text
    assert "wrong password" in caplog.text


async def test_kicks_outside_of_requests_are_in_nobodys_name() -> None:
    broker = InMemoryBroker()
    task = broker.register_task(_nothing, "nothing", pipeline="tables")
    async with serving(create_visualization_api(broker, config())) as client:
        await client.run("tables", PROCESSOR)
        with pytest.raises(AuthenticationError):
            await task.kiq()


async def test_without_security_everybody_may_do_everything() -> None:
    broker = InMemoryBroker()
    broker.register_task(_nothing, "nothing", pipeline="tables")
    async with serving(create_visualization_api(broker, config(security_enabled=False))) as client:
        listed = (await client.get("/pipelines")).json()["pipelines"]
        started = await client.execute("tables", None)
        run = await client.finished(started, PROCESSOR)
        async with client.live(None) as live:
            assert (await live.ask(type="subscribe", pipeline_id="tables"))["type"] == "subscribed"
    assert [pipeline["id"] for pipeline in listed if pipeline["may_execute"]] == ["tables"]
    assert (run["state"], run["subject"]) == ("completed", "anonymous")


async def test_while_monitoring_what_would_be_refused_is_served() -> None:
    broker = InMemoryBroker()
    broker.register_task(_nothing, "nothing", pipeline="tables")
    async with serving(create_visualization_api(broker, config(enforcement="monitor"))) as client:
        listed = (await client.get("/pipelines")).json()["pipelines"]
        run = await client.finished(await client.execute("tables", None), PROCESSOR)
        async with client.live(STRANGER) as live:
            assert (await live.ask(type="subscribe", pipeline_id="tables"))["type"] == "subscribed"
    assert [pipeline["id"] for pipeline in listed] == ["tables"]
    assert run["state"] == "completed"


async def test_websockets_without_authentication_where_the_settings_say_so() -> None:
    broker = InMemoryBroker()
    broker.register_task(_nothing, "nothing", pipeline="tables")
    api = create_visualization_api(broker, config(websocket_require_auth=False))
    async with serving(api) as client, client.live(None) as live:
        assert (await live.ask(type="subscribe", pipeline_id="tables"))["type"] == "subscribed"
        assert (await client.get("/pipelines")).status_code == 401


async def _nothing() -> None:
    """A task."""
