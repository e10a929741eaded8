"""Puts the API together."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute
from starlette.types import Receive, Scope, Send
from taskiq import AsyncBroker, InMemoryBroker

from taskiq_flow_security.broker.middleware import SecurityMiddleware
from taskiq_flow_security.config import IN_MEMORY, TaskiqFlowConfig
from taskiq_flow_security.errors import ConfigurationError, FlowSecurityError
from taskiq_flow_security.http.api import documents
from taskiq_flow_security.http.api.endpoints import Endpoints
from taskiq_flow_security.http.api.failures import on_http_exception, on_security_error, on_unexpected_error
from taskiq_flow_security.http.api.live import Live
from taskiq_flow_security.http.api.policy import PolicyEndpoints
from taskiq_flow_security.http.api.run_states import warn_if_read_once
from taskiq_flow_security.http.middleware import HTTPSecurityMiddleware
from taskiq_flow_security.http.rules import Rule, policy_rules
from taskiq_flow_security.pipelines import Catalogue
from taskiq_flow_security.security import FlowSecurity

_logger = logging.getLogger(__name__)

_PREFIX = "/api"
"""Under which the endpoints are served too."""


def create_visualization_api(
    broker: AsyncBroker,
    config: TaskiqFlowConfig | None = None,
    *,
    pipelines: Mapping[str, object] | None = None,
) -> VisualizationAPI:
    """An ASGI application that shows the pipelines of a broker and starts them: ``uvicorn module:app``.

    A broker that has a `SecurityMiddleware` is served with that one's security; `config` must then be the same or not
    given. Any other broker gets one, made from `config` or from the variables ``TASKIQ_FLOW_*``.

    `pipelines` by their ids: taskiq-flow's `DataflowPipeline` and `Pipeline`, taskiq-pipelines' `Pipeline`, tasks, and
    whatever meets `taskiq_flow_security.pipelines.Pipeline`. A task whose label ``pipeline`` no other task has is a
    pipeline of one step without being named here.

    Raises `ConfigurationError` if something of this cannot work.
    """
    api = VisualizationAPI(broker, config)
    for pipeline_id, pipeline in (pipelines or {}).items():
        api.add_pipeline(pipeline_id, pipeline)
    return api


class VisualizationAPI:
    """What `create_visualization_api` makes. It starts the broker and shuts it down with the server."""

    def __init__(self, broker: AsyncBroker, config: TaskiqFlowConfig | None = None) -> None:
        self.broker = broker
        self.security = _secure(broker, config)
        config = self.security.config
        self._catalogue = Catalogue(broker, patience=config.principal_ttl + config.clock_leeway)
        routes = [
            *documents.description_routes(),
            *_routes(Endpoints(self.security, broker, self._catalogue), Live(self.security, self._catalogue)),
            *_policy_routes(PolicyEndpoints(self.security.administration)),
        ]
        app = Starlette(
            routes=[*documents.page_routes(), Mount(_PREFIX, routes=routes), *routes],
            lifespan=self.lifespan,
            exception_handlers={
                HTTPException: on_http_exception,
                FlowSecurityError: on_security_error,
                Exception: on_unexpected_error,
            },
        )
        app.router.redirect_slashes = False  # a path is one of ours, or none
        # Around the whole application: what Starlette answers to an unexpected error passes through it, too.
        self._app = HTTPSecurityMiddleware(app, self.security, rules=rules())

    def add_pipeline(self, pipeline_id: str, pipeline: object) -> None:
        """Serve a pipeline. Raises `ConfigurationError` if that is not possible."""
        self._catalogue.add(pipeline_id, pipeline)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)

    @asynccontextmanager
    async def lifespan(self, _app: object = None) -> AsyncIterator[None]:
        """Start the broker, and shut it down in the end. A server does that; an application that this is mounted in has
        to, as frameworks leave it to the outermost one: ``FastAPI(lifespan=api.lifespan)``.
        """
        await self.broker.startup()
        warn_if_read_once(self.broker.result_backend)
        _warn_if_alone(self.broker, self.security)
        try:
            yield
        finally:
            await self._catalogue.close()
            await self.broker.shutdown()
            await self.security.run_events.close()


def _warn_if_alone(broker: AsyncBroker, security: FlowSecurity) -> None:
    """Warn at start-up where nothing is heard of what runs in worker processes."""
    alone = security.config.shared_store.get_secret_value() == IN_MEMORY
    if security.enabled and alone and not isinstance(broker, InMemoryBroker):
        _logger.warning(
            "shared_store is not set, so that each process knows only its own runs: subscribers get no events of what "
            "workers run. Set it to a Redis that the API and the workers share."
        )


def _secure(broker: AsyncBroker, config: TaskiqFlowConfig | None) -> FlowSecurity:
    middleware = SecurityMiddleware.of(broker)
    if middleware is not None:
        if config is not None and config != middleware.security.config:
            raise ConfigurationError(
                "The broker has a SecurityMiddleware with another configuration; give the API none, or the same."
            )
        return middleware.security
    security = FlowSecurity(TaskiqFlowConfig() if config is None else config)
    broker.add_middlewares(SecurityMiddleware(security))
    return security


def rules() -> list[Rule]:
    """Who may use which path of the API, beside those of the guide."""
    prefixes = ("", _PREFIX)
    health = (Rule("GET", f"{prefix}/health", "health", public=True) for prefix in prefixes)
    return [*policy_rules(prefixes), *health, *documents.public_rules(prefixes)]


def _routes(endpoints: Endpoints, live: Live) -> list[BaseRoute]:
    pipeline = "/pipelines/{pipeline_id}"
    return [
        Route("/health", endpoints.health),
        Route("/whoami", endpoints.whoami),
        Route("/pipelines", endpoints.list_pipelines),
        Route(f"{pipeline}/dag", endpoints.dag),
        Route(f"{pipeline}/critical-path", endpoints.critical_path),
        Route(f"{pipeline}/parallel-groups", endpoints.parallel_groups),
        Route(f"{pipeline}/execute", endpoints.execute, methods=["POST"]),
        Route(f"{pipeline}/status", endpoints.status),
        Route(f"{pipeline}/runs/{{run_id}}", endpoints.run),
        WebSocketRoute("/ws", live.serve),
    ]


def _policy_routes(policy: PolicyEndpoints) -> list[BaseRoute]:
    return [
        Route("/policy", policy.show),
        Route("/policy", policy.change, methods=["PATCH"]),
        Route("/policy/revocations", policy.revoke, methods=["POST"]),
        Route("/policy/reinstatements", policy.reinstate, methods=["POST"]),
    ]
