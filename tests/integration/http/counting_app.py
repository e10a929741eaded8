"""What two uvicorn processes serve that count together: ``uvicorn tests.integration.http.counting_app:app``."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from taskiq_flow_security import FlowSecurity, TaskiqFlowConfig
from taskiq_flow_security.http import HTTPSecurityMiddleware

app = Starlette(routes=[Route("/pipelines", lambda _: JSONResponse([]))])
app.add_middleware(HTTPSecurityMiddleware, security=FlowSecurity(TaskiqFlowConfig()))
