"""The endpoints, behind the middleware, which has decided by then that the caller may use them."""

from __future__ import annotations

import logging
from datetime import datetime, timezone

from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from taskiq import AsyncBroker
from taskiq.exceptions import SendTaskError

from taskiq_flow_security.core.policy import AccessRequest
from taskiq_flow_security.core.principal import ANONYMOUS, Permission, Principal
from taskiq_flow_security.core.reasons import Reason
from taskiq_flow_security.errors import BackendUnavailableError
from taskiq_flow_security.http.api import bodies
from taskiq_flow_security.http.api.bodies import answer
from taskiq_flow_security.http.api.failures import cause_of
from taskiq_flow_security.http.api.models import (
    Caller,
    CriticalPath,
    Dag,
    Execution,
    Health,
    ParallelGroups,
    PipelineList,
    PipelineStatus,
    PipelineSummary,
    RunStarted,
)
from taskiq_flow_security.http.api.run_states import RunStates
from taskiq_flow_security.pipelines import Catalogue, InputError, Pipeline
from taskiq_flow_security.runs.records import Run
from taskiq_flow_security.security import FlowSecurity

_logger = logging.getLogger(__name__)


class Endpoints:
    """Answers about the pipelines of one broker, and starts them."""

    def __init__(self, security: FlowSecurity, broker: AsyncBroker, catalogue: Catalogue) -> None:
        self._security = security
        self._states = RunStates(security.runs, broker)
        self._catalogue = catalogue

    async def health(self, request: Request) -> Response:
        """Whether the API answers."""
        return answer(Health())

    async def whoami(self, request: Request) -> Response:
        """Who asks."""
        principal = caller(request)
        explicit = principal.permissions
        return answer(
            Caller(
                subject=principal.subject,
                roles=sorted(principal.roles),
                permissions=None if explicit is None else sorted(explicit),
                pipelines=sorted(principal.pipelines),
                expires_at=None
                if principal.expires_at is None
                else datetime.fromtimestamp(principal.expires_at, timezone.utc),
            )
        )

    async def list_pipelines(self, request: Request) -> Response:
        """The pipelines that the caller may read."""
        principal = caller(request)
        return answer(
            PipelineList(
                pipelines=[
                    PipelineSummary(
                        id=pipeline.id,
                        node_count=len(pipeline.graph.nodes),
                        edge_count=len(pipeline.graph.edges),
                        may_execute=may(self._security, principal, Permission.EXECUTE, pipeline.id),
                    )
                    for pipeline in self._catalogue
                    if may(self._security, principal, Permission.READ, pipeline.id)
                ]
            )
        )

    async def dag(self, request: Request) -> Response:
        """The steps of a pipeline."""
        pipeline = self._pipeline(request)
        graph = pipeline.graph
        return answer(Dag(pipeline_id=pipeline.id, nodes=list(graph.nodes), edges=list(graph.edges)))

    async def critical_path(self, request: Request) -> Response:
        """The longest chain of steps."""
        pipeline = self._pipeline(request)
        path = pipeline.graph.critical_path()
        return answer(CriticalPath(pipeline_id=pipeline.id, critical_path=path, length=len(path)))

    async def parallel_groups(self, request: Request) -> Response:
        """What can run at the same time."""
        pipeline = self._pipeline(request)
        groups = pipeline.graph.parallel_groups()
        return answer(ParallelGroups(pipeline_id=pipeline.id, parallel_groups=groups, group_count=len(groups)))

    async def execute(self, request: Request) -> Response:
        """Start a run in the caller's name."""
        security, pipeline, principal = self._security, self._pipeline(request), caller(request)
        execution = await bodies.read(request, Execution)
        await security.runs.recent(pipeline.id, limit=1)  # what cannot be recorded is not started
        with security.acting_as(principal, pipeline=pipeline.id):
            actor = security.actor()
            assert actor is not None  # it was just made
            started_at = security.clock()
            try:
                task_id = await pipeline.start(execution.args, execution.kwargs)
            except InputError as error:
                raise HTTPException(422, str(error)) from None
            except SendTaskError as error:
                raise cause_of(error) from error
        run = Run(actor.txn, pipeline.id, task_id, principal.subject, started_at)
        try:
            await security.runs.add(run)
        except BackendUnavailableError:
            # It has started, which an error would deny: whoever tried again would start it twice.
            _logger.exception("The run %s has started, but cannot be recorded and followed.", run.run_id)
        started = RunStarted(pipeline_id=pipeline.id, run_id=run.run_id)
        return answer(started, 202, {"location": f"runs/{run.run_id}"})  # relative to .../execute (RFC 9110, 10.2.2)

    async def status(self, request: Request) -> Response:
        """The latest runs of a pipeline."""
        pipeline = self._pipeline(request)
        return answer(PipelineStatus(pipeline_id=pipeline.id, runs=await self._states.recent(pipeline.id)))

    async def run(self, request: Request) -> Response:
        """One run of a pipeline."""
        pipeline = self._pipeline(request)
        run = await self._states.one(pipeline.id, request.path_params["run_id"])
        if run is None:
            raise HTTPException(404, "The pipeline has no such run.")
        return answer(run)

    def _pipeline(self, request: Request) -> Pipeline:
        pipeline = self._catalogue.get(request.path_params["pipeline_id"])
        if pipeline is None:
            raise HTTPException(404, "There is no such pipeline.")
        return pipeline


def caller(connection: HTTPConnection) -> Principal:
    """Who asks, as the middleware knows it; where security is off, it knows nobody."""
    principal = getattr(connection.state, "principal", ANONYMOUS)
    assert isinstance(principal, Principal)
    return principal


def may(security: FlowSecurity, principal: Principal, permission: Permission, pipeline_id: str) -> bool:
    """Whether the policy lets the principal do this with a pipeline, or security is only monitored."""
    return refusal(security, principal, permission, pipeline_id) is None


def refusal(security: FlowSecurity, principal: Principal, permission: Permission, pipeline_id: str) -> Reason | None:
    """Why the principal may not do this with a pipeline; ``None`` where it may."""
    decision = security.authorization.decide(principal, AccessRequest(permission, pipeline_id))
    return None if security.monitoring or decision.allowed else decision.reason
