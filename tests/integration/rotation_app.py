"""An API that starts tasks, served by ``uvicorn --factory tests.integration.rotation_app:app``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from taskiq_flow_security import FlowSecurity, SecurityMiddleware, TaskiqFlowConfig
from taskiq_flow_security.http import HTTPSecurityMiddleware, Rule
from tests.integration.transports import from_environment
from tests.integration.worker_app import clean


def app() -> Starlette:
    """The application, made from environment variables."""
    security = FlowSecurity(TaskiqFlowConfig())
    broker = from_environment().broker().with_middlewares(SecurityMiddleware(security))

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        await broker.startup()
        yield
        await broker.shutdown()

    async def start(request: Request) -> JSONResponse:
        task = await clean.kicker().with_broker(broker).kiq(request.query_params["marker"], [1, 2])
        return JSONResponse({"task_id": task.task_id})

    api = Starlette(routes=[Route("/clean", start, methods=["POST"])], lifespan=lifespan)
    api.add_middleware(HTTPSecurityMiddleware, security=security, rules=[Rule("POST", "/clean", "clean")])
    return api
