"""The applications of the benchmark of requests: ``uvicorn --factory tests.benchmarks.http_apps:<name>``."""

import logging
import os
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Request
from slowapi import Limiter
from slowapi.errors import RateLimitExceeded
from slowapi.extension import _rate_limit_exceeded_handler
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route
from taskiq import InMemoryBroker
from taskiq_flow.api.core import PipelineVisualizationAPI
from taskiq_flow.config import TaskiqFlowConfig as TheirConfig

from taskiq_flow_security import FlowSecurity, TaskiqFlowConfig
from taskiq_flow_security.audit import AuditFormatter
from taskiq_flow_security.http import HTTPSecurityMiddleware
from tests.benchmarks.guarded import SECRET, new_audit

KEY = "the-api-key-of-the-benchmark-0123456789"
PIPELINE = "data-pipeline"
AUDIT_FILE = "BENCHMARK_AUDIT_FILE"

_LIMIT = "100000000/minute"


def starlette() -> Any:
    """A bare route."""

    async def dag(request: Request) -> JSONResponse:
        return JSONResponse({"pipeline_id": request.path_params["pipeline_id"]})

    return Starlette(routes=[Route("/pipelines/{pipeline_id}/dag", dag)])


def starlette_guarded() -> Any:
    """The same behind `HTTPSecurityMiddleware`."""
    return _guarded(starlette())


def fastapi() -> Any:
    """A bare route."""
    app = FastAPI()

    @app.get("/pipelines/{pipeline_id}/dag")
    async def dag(pipeline_id: str) -> dict[str, str]:
        return {"pipeline_id": pipeline_id}

    return app


def fastapi_guarded() -> Any:
    """The same behind `HTTPSecurityMiddleware`."""
    return _guarded(fastapi())


def fastapi_dependencies() -> Any:
    """What is usual: each check a dependency, counted by slowapi, logged as JSON."""
    logger = logging.getLogger("benchmark.dependencies")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    handler = logging.FileHandler(_audit_file())
    handler.setFormatter(AuditFormatter())
    logger.addHandler(handler)
    keys = {KEY: {"role": "viewer", "pipelines": {PIPELINE}, "permissions": {"read"}}}
    acls = {PIPELINE: {"read": {"viewer"}}}
    limiter = Limiter(key_func=lambda request: request.headers["x-api-key"])
    app = FastAPI()
    app.state.limiter = limiter
    app.add_exception_handler(RateLimitExceeded, _rate_limit_exceeded_handler)  # type: ignore[arg-type]  # as documented

    def authenticated(request: Request) -> dict[str, Any]:
        found = keys.get(request.headers.get("x-api-key", ""))
        if found is None:
            raise HTTPException(403)
        return found

    async def authorized(pipeline_id: str, caller: Annotated[dict[str, Any], Depends(authenticated)]) -> None:
        may = pipeline_id in caller["pipelines"] and "read" in caller["permissions"]
        if not may or caller["role"] not in acls[pipeline_id]["read"]:
            raise HTTPException(403)
        fields = {"event": "authz_allow", "outcome": "allow", "sub": caller["role"], "pipeline": pipeline_id}
        logger.info("authz_allow", extra=fields)

    @app.get("/pipelines/{pipeline_id}/dag", dependencies=[Depends(authorized)])
    @limiter.limit(_LIMIT)
    async def dag(request: Request, pipeline_id: str) -> dict[str, str]:
        return {"pipeline_id": pipeline_id}

    return app


def taskiq_flow() -> Any:
    """taskiq-flow's own API, with its own security."""
    config = TheirConfig(
        security_enabled=True,
        require_https=False,
        api_keys={KEY: {"role": "viewer", "pipelines": [PIPELINE], "permissions": ["read"]}},
    )
    return PipelineVisualizationAPI(InMemoryBroker(), config=config).app


def _guarded(app: Any) -> Any:
    config = TaskiqFlowConfig(
        jwt_secret=SECRET,
        api_keys={KEY: {"role": "viewer", "pipelines": [PIPELINE], "permissions": ["read"]}},
        pipeline_acls={PIPELINE: {"read": ["viewer"]}},
        rate_limits={"get_dag": _LIMIT},
    )
    app.add_middleware(HTTPSecurityMiddleware, security=FlowSecurity(config, audit=new_audit(_audit_file())))
    return app


def _audit_file() -> Path:
    return Path(os.environ[AUDIT_FILE])
