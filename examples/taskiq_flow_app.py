"""taskiq-flow's own visualization API, secured. Needs the extra ``flow`` and FastAPI, and no service.

Its own security is switched off. It asks for two things then: a user in ``request.state``, and an object that says
whether that user may read a pipeline. Its lists name every pipeline, so they are cut down to what the caller may read.

Serve it with ``LISTENER_KEY=<your key> uvicorn examples.taskiq_flow_app:app``; run as a program, it serves itself and
makes a few calls.
"""

import asyncio
import json
import os
import secrets
import socket
from collections.abc import Awaitable, Callable

import httpx
import uvicorn
from fastapi import Request, Response
from fastapi.responses import JSONResponse
from taskiq import InMemoryBroker
from taskiq_flow import DataflowPipeline, pipeline_task
from taskiq_flow.api.core import PipelineVisualizationAPI
from taskiq_flow.api.routes import dag, websocket
from taskiq_flow.config import TaskiqFlowConfig as FlowConfig

from taskiq_flow_security import FlowSecurity, SecurityMiddleware, TaskiqFlowConfig, current_principal
from taskiq_flow_security.http import HTTPSecurityMiddleware, Rule, taskiq_flow_rules

LISTENER_KEY = os.environ.get("LISTENER_KEY") or secrets.token_urlsafe()

security = FlowSecurity(
    TaskiqFlowConfig(
        jwt_secret=secrets.token_urlsafe(32),  # in a deployment, the same in every process
        api_keys={LISTENER_KEY: {"role": "listener", "pipelines": ["songs"], "permissions": ["read"]}},
        require_https=False,  # only here, on this machine; in a deployment, TLS ends at a proxy or at uvicorn
    )
)
broker = InMemoryBroker().with_middlewares(SecurityMiddleware(security))


@broker.task
@pipeline_task(output="audio")
async def load(path: str) -> str:
    return path


@broker.task
@pipeline_task(output="features", inputs=["audio"])
async def extract(audio: str) -> int:
    return len(audio)


api = PipelineVisualizationAPI(broker, config=FlowConfig(security_enabled=False, metrics_enabled=False))
app = api.app
app.include_router(dag.router)
app.include_router(websocket.router)
for pipeline_id in ("songs", "payroll"):
    api.add_pipeline(pipeline_id, DataflowPipeline.from_tasks(broker, [load, extract]))


def may_read(pipeline_id: str) -> bool:
    return security.explain(current_principal(), pipeline=pipeline_id, permission="read").allowed


class Authorization:
    """What taskiq-flow's routes ask."""

    def can_read(self, pipeline_id: str, _user: dict[str, str]) -> bool:
        return may_read(pipeline_id)


app.state.authorization = Authorization()


@app.middleware("http")
async def show_what_may_be_read(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    request.state.user = {"user_id": request.state.principal.subject}
    response = await call_next(request)
    if response.headers.get("content-type") != "application/json":
        return response
    body = b"".join([chunk async for chunk in response.body_iterator])  # type: ignore[attr-defined]  # it streams
    answer = json.loads(body)
    if "pipelines" not in answer:  # looked for in every answer: no path, however it is asked for, gets around that
        return Response(body, response.status_code, dict(response.headers))
    listed = [item for item in answer["pipelines"] if may_read(item if isinstance(item, str) else item["id"])]
    return JSONResponse({"pipelines": listed})


app.add_middleware(  # the last one that is added is the first one that a request meets
    HTTPSecurityMiddleware,
    security=security,
    rules=[*taskiq_flow_rules(), Rule("GET", "/health", "health", public=True)],
)


async def main() -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    serving = asyncio.create_task(server.serve([listening]))
    try:
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        async with httpx.AsyncClient(base_url=address, headers={"X-API-Key": LISTENER_KEY}) as client:
            await call(client)
    finally:
        server.should_exit = True
        await serving


async def call(client: httpx.AsyncClient) -> None:
    listed = (await client.get("/pipelines")).json()["pipelines"]
    print("A listener sees:", [pipeline["id"] for pipeline in listed])
    print("and its critical path:", (await client.get("/dag/songs/critical-path")).json()["critical_path"])
    answer = await client.get("/dag/payroll")
    problem = answer.json()
    print("Another pipeline is refused:", answer.status_code, problem["detail"], f"(reason: {problem['reason']})")


if __name__ == "__main__":
    asyncio.run(main())
