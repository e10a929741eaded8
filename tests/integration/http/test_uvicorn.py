"""The edge holds under a real server, for real clients."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from typing import Any
from uuid import uuid4

import httpx
import pytest
from fastapi import FastAPI, Request
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket
from taskiq import InMemoryBroker
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Origin

from taskiq_flow_security import AccessDeniedError, SecurityMiddleware, current_principal, guard
from taskiq_flow_security.http import HTTPSecurityMiddleware, Rule
from taskiq_flow_security.http.limits import DEFAULTS
from tests.edge import ADMIN, API_KEYS, SECRET, VIEWER, Edge
from tests.integration.api.server import serving
from tests.integration.http.servers import serve
from tests.services import REDIS_URL, require

PLAIN = {"require_https": False}
FORWARDED = {"X-Forwarded-Proto": "https", "X-Forwarded-For": "198.51.100.7"}


def client(port: int, **options: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", **options)


async def curl(*arguments: str) -> str:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    process = await asyncio.create_subprocess_exec("curl", "-sS", "-i", *arguments, stdout=subprocess.PIPE)
    return (await process.communicate())[0].decode()


async def test_the_three_curl_checks_of_the_guide() -> None:
    async with serve(Edge(settings=PLAIN).app) as port:
        url = f"http://localhost:{port}/pipelines"
        nobody = await curl(url)
        assert nobody.startswith("HTTP/1.1 401 Unauthorized")
        assert 'www-authenticate: Bearer realm="taskiq-flow"' in nobody
        assert (await curl("-H", "X-API-Key: invalid-key", url)).startswith("HTTP/1.1 403 Forbidden")
        assert (await curl("-H", f"X-API-Key: {VIEWER}", url)).startswith("HTTP/1.1 200 OK")


@pytest.mark.parametrize(
    "path", ["/pipelines/p1%2fdag", "/pipelines//p1/dag", "/pipelines/x/../p1/dag", "/%73ecret", "//"]
)
async def test_a_path_is_judged_as_it_arrives(path: str) -> None:
    edge = Edge(settings=PLAIN)
    async with serve(edge.app) as port:
        answer = await curl("--path-as-is", "-H", f"X-API-Key: {ADMIN}", f"http://127.0.0.1:{port}{path}")
    assert answer.startswith("HTTP/1.1 403 Forbidden")
    assert "no_rule" in answer
    assert edge.reached == []


@pytest.mark.parametrize("proxy_headers", [True, False])
@pytest.mark.parametrize("forwarded", [True, False])
async def test_https_behind_a_proxy_whether_or_not_uvicorn_reads_its_headers_too(
    proxy_headers: bool, forwarded: bool
) -> None:
    edge = Edge()
    async with serve(edge.app, proxy_headers=proxy_headers) as port, client(port) as http:
        answer = await http.get("/pipelines", headers={"X-API-Key": VIEWER, **(FORWARDED if forwarded else {})})
    if forwarded:
        assert answer.status_code == 200
        assert answer.headers["strict-transport-security"] == "max-age=31536000; includeSubDomains"
        assert edge.trail.last.ip == "198.51.100.7"
    else:
        assert answer.status_code == 403
        assert answer.json()["reason"] == "https_required"
        assert "strict-transport-security" not in answer.headers
        assert edge.trail.last.ip == "127.0.0.1"


@pytest.mark.parametrize("proxy_headers", [True, False])
async def test_headers_of_somebody_who_is_no_proxy_change_nothing(proxy_headers: bool) -> None:
    edge = Edge(settings={"trusted_proxies": []})
    options = {"proxy_headers": proxy_headers, "forwarded_allow_ips": "192.0.2.1"}
    async with serve(edge.app, **options) as port, client(port) as http:
        answer = await http.get("/pipelines", headers={"X-API-Key": VIEWER, **FORWARDED})
    assert answer.json()["reason"] == "https_required"
    assert edge.trail.last.ip == "127.0.0.1"


@pytest.mark.parametrize("trusted", [[], ["10.0.0.1"]])
async def test_uvicorns_default_trust_in_the_loopback_address_gets_nobody_past_the_settings(trusted: list[str]) -> None:
    edge = Edge(settings={"trusted_proxies": trusted, "rate_limit_failed_logins": "2/minute"})
    async with serve(edge.app) as port, client(port) as http:
        for forwarded in ({"X-Forwarded-Proto": "https"}, FORWARDED, {**FORWARDED, "X-Forwarded-For": "10.0.0.1:1"}):
            answer = await http.get("/pipelines", headers={"X-API-Key": VIEWER, **forwarded})
            assert (answer.status_code, answer.json()["reason"]) == (403, "https_required")
            assert "strict-transport-security" not in answer.headers
    assert {event.ip for event in edge.trail.events} == {"127.0.0.1", "unknown"}
    edge = Edge(settings={**PLAIN, "trusted_proxies": trusted, "rate_limit_failed_logins": "2/minute"})
    async with serve(edge.app) as port, client(port) as http:
        statuses = [
            (await http.get("/pipelines", headers={"X-API-Key": "x", "X-Forwarded-For": address})).status_code
            for address in ("5.5.5.1", "5.5.5.2:99", "10.0.0.1", "[2001:db8::1%1]:9")
        ]
    assert statuses == [403, 403, 429, 429]


PATHS = {
    "list_pipelines": ("GET", "/pipelines"),
    "get_dag": ("GET", "/pipelines/p1/dag"),
    "get_critical_path": ("GET", "/pipelines/p1/critical-path"),
    "get_parallel_groups": ("GET", "/pipelines/p1/parallel-groups"),
    "execute_pipeline": ("POST", "/pipelines/p1/execute"),
    "get_status": ("GET", "/pipelines/p1/status"),
    "default": ("GET", "/whoami"),
}
LIMITS = {"default": "100/minute", **DEFAULTS}


@pytest.mark.parametrize("endpoint", PATHS)
async def test_each_row_of_the_guides_table_of_limits(endpoint: str) -> None:
    method, path = PATHS[endpoint]
    allowed = int(LIMITS[endpoint].partition("/")[0])
    async with serve(Edge(settings=PLAIN).app) as port, client(port, headers={"X-API-Key": ADMIN}) as http:
        statuses = [(await http.request(method, path)).status_code for _ in range(allowed)]
        refused = await http.request(method, path)
    assert statuses == [200] * allowed
    assert refused.status_code == 429
    assert 0 < int(refused.headers["retry-after"]) <= 60
    name = "whoami" if endpoint == "default" else endpoint
    assert refused.headers["ratelimit-policy"] == f'"{name}";q={allowed};w=60'


async def test_the_guides_limit_of_websocket_connections() -> None:
    async with serve(Edge(settings=PLAIN).app) as port:
        for _ in range(5):
            async with connect(f"ws://127.0.0.1:{port}/ws", additional_headers={"X-API-Key": VIEWER}):
                pass
        with pytest.raises(InvalidStatus) as refusal:
            await connect(f"ws://127.0.0.1:{port}/ws", additional_headers={"X-API-Key": VIEWER})
    assert refusal.value.response.status_code == 429
    assert "Retry-After" in refusal.value.response.headers


async def test_an_application_that_only_writes_ends_when_its_client_has_gone() -> None:
    ended = asyncio.Event()

    async def ticks(websocket: WebSocket) -> None:
        await websocket.accept()
        reader = asyncio.create_task(websocket.receive())  # by which the connection knows
        try:
            while True:
                await websocket.send_text("tick")
                await asyncio.sleep(0.01)
        finally:
            reader.cancel()
            ended.set()

    edge = Edge(settings=PLAIN)
    app = Starlette(routes=[WebSocketRoute("/ticks", ticks)])
    app.add_middleware(
        HTTPSecurityMiddleware, security=edge.security, rules=[Rule("WEBSOCKET", "/ticks", "ticks", "read")]
    )
    async with serve(app) as port:
        async with connect(f"ws://127.0.0.1:{port}/ticks", additional_headers={"X-API-Key": ADMIN}) as socket_:
            assert await socket_.recv() == "tick"
        await asyncio.wait_for(ended.wait(), 10)


@pytest.mark.parametrize("ws", ["websockets-sansio", "wsproto"])
async def test_a_websocket_from_handshake_to_termination(ws: str) -> None:
    edge = Edge(settings=PLAIN)
    async with serve(edge.app, ws=ws) as port:
        url = f"ws://127.0.0.1:{port}/ws"
        for headers in ({"X-API-Key": VIEWER}, {}):
            async with connect(url, additional_headers=headers) as socket_:
                if not headers:
                    await socket_.send(json.dumps({"type": "connect", "auth": VIEWER}))
                    assert json.loads(await socket_.recv()) == {"type": "connected", "subject": "viewer"}
                await socket_.send(json.dumps({"type": "subscribe", "pipeline_id": "p1"}))
                assert json.loads(await socket_.recv()) == {"type": "received"}
                await socket_.send(json.dumps({"type": "subscribe", "pipeline_id": "p2"}))
                assert json.loads(await socket_.recv())["reason"] == "whitelist"
                with pytest.raises(ConnectionClosed) as closed:
                    await socket_.recv()
                assert closed.value.rcvd is not None
                assert closed.value.rcvd.code == 4403
        with pytest.raises(InvalidStatus) as refusal:
            await connect(url, additional_headers={"X-API-Key": "wrong"})
        assert refusal.value.response.status_code == 403
        assert json.loads(refusal.value.response.body)["reason"] == "unknown_api_key"
        with pytest.raises(InvalidStatus) as refusal:
            await connect(url, additional_headers={"X-API-Key": VIEWER}, origin=Origin("https://evil.example"))
        assert json.loads(refusal.value.response.body)["reason"] == "origin"


async def test_a_slow_client_holds_up_nobody_and_is_disconnected() -> None:
    edge = Edge(settings={**PLAIN, "websocket_auth_timeout": 0.3})
    async with serve(edge.app) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /pipelines HTTP/1.1\r\nHost: x\r\nX-API-Key: ")
        await writer.drain()
        async with connect(f"ws://127.0.0.1:{port}/ws") as silent, client(port) as http:
            answer = await http.get("/pipelines", headers={"X-API-Key": VIEWER})
            assert answer.status_code == 200
            assert json.loads(await silent.recv())["reason"] == "no_credentials"
            with pytest.raises(ConnectionClosed):
                await silent.recv()
        writer.close()
        await writer.wait_closed()
    assert edge.reached == [("/pipelines", "viewer")]
    del reader


RULES = [
    Rule("POST", "/start/{name}", "start", "execute", "{name}"),
    Rule("GET", "/mine", "mine"),
    Rule("GET", "/refused", "refused"),
]


@pytest.mark.parametrize("framework", ["fastapi", "starlette"])
async def test_an_application_kicks_tasks_as_its_caller(framework: str) -> None:
    broker = InMemoryBroker()

    @broker.task(task_name="who", pipeline="p1")
    @guard(permission="execute")
    async def who() -> str:
        return current_principal().subject

    async def started(name: str) -> Any:
        result = await (await who.kiq()).wait_result()
        return result.return_value

    app: Any
    if framework == "fastapi":
        app = FastAPI()

        async def start(name: str) -> Any:
            return await started(name)

        async def mine(request: Request) -> str:
            return str(request.state.principal.subject)

        async def refused() -> None:
            raise AccessDeniedError("guard", "Not you.")

        app.add_api_route("/start/{name}", start, methods=["POST"])
        app.add_api_route("/mine", mine)
        app.add_api_route("/refused", refused)

    else:

        async def start_(request: Any) -> JSONResponse:
            return JSONResponse(await started(request.path_params["name"]))

        async def mine_(request: Any) -> JSONResponse:
            return JSONResponse(request.state.principal.subject)

        async def refused_(request: Any) -> JSONResponse:
            raise AccessDeniedError("guard", "Not you.")

        routes = [Route("/start/{name}", start_, methods=["POST"]), Route("/mine", mine_), Route("/refused", refused_)]
        app = Starlette(routes=routes)

    security = Edge(settings=PLAIN).security
    app.add_middleware(HTTPSecurityMiddleware, security=security, rules=RULES)
    broker.add_middlewares(SecurityMiddleware(security))
    await broker.startup()
    async with serve(app) as port, client(port) as http:
        assert (await http.post("/start/p1", headers={"X-API-Key": ADMIN})).json() == "admin"
        assert (await http.post("/start/p1", headers={"X-API-Key": VIEWER})).status_code == 403
        assert (await http.get("/mine", headers={"X-API-Key": VIEWER})).json() == "viewer"
        refused_answer = await http.get("/refused", headers={"X-API-Key": VIEWER})
        assert (refused_answer.status_code, refused_answer.json()["reason"]) == (403, "guard")
        for path in ("/docs", "/openapi.json", "/redoc", "/"):
            assert (await http.get(path)).status_code == 401
            assert (await http.get(path, headers={"X-API-Key": ADMIN})).status_code == 403
    await broker.shutdown()


async def test_what_a_request_leaves_in_its_state_is_gone_with_it() -> None:
    async def mine(request: Request) -> JSONResponse:
        seen = {name: str(value) for name, value in request.state._state.items() if name != "principal"}
        request.state.left = request.state.principal.subject
        return JSONResponse({**seen, "subject": request.state.principal.subject})

    @asynccontextmanager
    async def lifespan(_: object) -> AsyncIterator[dict[str, str]]:
        yield {"shared": "pool"}

    app = Starlette(routes=[Route("/mine", mine), Route("/open", mine)], lifespan=lifespan)
    rules = [Rule("GET", "/mine", "mine"), Rule("GET", "/open", "open", public=True)]
    app.add_middleware(HTTPSecurityMiddleware, security=Edge(settings=PLAIN).security, rules=rules)
    async with serving(app) as http:
        answers = [
            (await http.get(path, key)).json() for path, key in (("/mine", ADMIN), ("/mine", VIEWER), ("/open", None))
        ]
    assert answers == [{"shared": "pool", "subject": subject} for subject in ("admin", "viewer", "anonymous")]
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="https://edge.example") as direct:
        for key, subject in ((ADMIN, "admin"), (VIEWER, "viewer")):
            assert (await direct.get("/mine", headers={"X-API-Key": key})).json() == {"subject": subject}


@pytest.fixture
def two_servers() -> Iterator[list[int]]:
    """Two processes that share one Redis database."""
    require("redis")
    keys = {ADMIN: {**API_KEYS[ADMIN], "subject": f"admin-{uuid4().hex}"}}
    variables = {
        "TASKIQ_FLOW_JWT_SECRET": SECRET,
        "TASKIQ_FLOW_API_KEYS": json.dumps(keys),
        "TASKIQ_FLOW_REQUIRE_HTTPS": "false",
        "TASKIQ_FLOW_RATE_LIMIT_STORAGE": REDIS_URL,
        "TASKIQ_FLOW_RATE_LIMITS": '{"list_pipelines": "20/minute"}',
    }
    with ExitStack() as stack:
        ports = []
        for _ in range(2):
            listener = stack.enter_context(socket.socket())
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            os.set_inheritable(listener.fileno(), True)
            command = [sys.executable, "-m", "uvicorn", "--fd", str(listener.fileno()), "--log-level", "warning"]
            process = stack.enter_context(
                subprocess.Popen(
                    [*command, "tests.integration.http.counting_app:app"],
                    env={**os.environ, **variables},
                    pass_fds=[listener.fileno()],
                )
            )
            stack.callback(process.terminate)
            ports.append(int(listener.getsockname()[1]))
        yield ports


async def test_two_processes_that_share_one_redis_count_together(two_servers: list[int]) -> None:
    async with (
        client(two_servers[0], timeout=60, headers={"X-API-Key": ADMIN}) as one,
        client(two_servers[1], timeout=60, headers={"X-API-Key": ADMIN}) as two,
    ):
        await asyncio.gather(one.get("/nothing"), two.get("/nothing"))  # both have started
        answers = await asyncio.gather(*(server.get("/pipelines") for server in (one, two) for _ in range(20)))
    statuses = sorted(answer.status_code for answer in answers)
    assert statuses == [200] * 20 + [429] * 20
