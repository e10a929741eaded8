"""Your own FastAPI application behind the middleware: it kicks tasks in the name of whoever calls. Needs no service.

Serve it with ``ANALYST_KEY=<your key> uvicorn examples.fastapi_app:app``; run as a program, it serves itself and makes
a few calls.
"""

import asyncio
import os
import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import uvicorn
from fastapi import Depends, FastAPI
from taskiq import InMemoryBroker, TaskiqDepends

from taskiq_flow_security import FlowSecurity, Principal, SecurityMiddleware, TaskiqFlowConfig, current_principal
from taskiq_flow_security.http import HTTPSecurityMiddleware, Rule

ANALYST_KEY = os.environ.get("ANALYST_KEY") or secrets.token_urlsafe()
READER_KEY = secrets.token_urlsafe()

security = FlowSecurity(
    TaskiqFlowConfig(
        jwt_secret=secrets.token_urlsafe(32),  # in a deployment, the same in every process
        api_keys={
            ANALYST_KEY: {"role": "analyst", "pipelines": ["reports"], "permissions": ["read", "execute"]},
            READER_KEY: {"role": "reader", "pipelines": ["reports"], "permissions": ["read"]},
        },
        pipeline_acls={"reports": {"read": ["analyst", "reader"], "execute": ["analyst"]}},
        require_https=False,  # only here, on this machine; in a deployment, TLS ends at a proxy or at uvicorn
    )
)
broker = InMemoryBroker().with_middlewares(SecurityMiddleware(security))


@broker.task(pipeline="reports")
async def make_report(month: str, caller: Principal = TaskiqDepends(current_principal)) -> str:
    """Runs in a worker, where the caller is verified and decided about again."""
    return f"the report of {month}, made for {caller.subject}"


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    await broker.startup()
    yield
    await broker.shutdown()


app = FastAPI(lifespan=lifespan)
app.add_middleware(
    HTTPSecurityMiddleware,
    security=security,
    rules=[  # a path that is neither among them nor among those of the guide is denied
        Rule("GET", "/", "welcome", public=True),
        Rule("GET", "/me", "me"),
        Rule("POST", "/reports/{month}", "make_report", permission="execute", pipeline="reports"),
    ],
)


@app.get("/")
async def welcome() -> str:
    return "Welcome"


@app.get("/me")
async def me(caller: Principal = Depends(current_principal)) -> str:
    return caller.subject


@app.post("/reports/{month}")
async def report(month: str) -> str:
    task = await make_report.kiq(month)  # in the name of whoever calls
    return (await task.wait_result(check_interval=0.01, timeout=10)).return_value


async def main() -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    serving = asyncio.create_task(server.serve([listening]))
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{listening.getsockname()[1]}") as client:
            await call(client)
    finally:
        server.should_exit = True
        await serving


async def call(client: httpx.AsyncClient) -> None:
    print("Everybody is welcome:", (await client.get("/")).json())
    print("An analyst is known:", (await client.get("/me", headers={"X-API-Key": ANALYST_KEY})).json())
    answer = await client.post("/reports/march", headers={"X-API-Key": ANALYST_KEY})
    print("An analyst gets", answer.json())
    answer = await client.post("/reports/march", headers={"X-API-Key": READER_KEY})
    problem = answer.json()
    print("A reader is refused:", answer.status_code, problem["detail"], f"(reason: {problem['reason']})")


if __name__ == "__main__":
    asyncio.run(main())
