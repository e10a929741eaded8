"""How often each principal may kick what, and have it run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from taskiq_flow_security.core.policy import AccessRequest
from taskiq_flow_security.core.principal import Principal
from taskiq_flow_security.security import FlowSecurity


class _Count(NamedTuple):
    """One limit that a kick counts against, and what it is counted by."""

    limit: str
    identifiers: tuple[str, ...]


class KickLimits:
    """Counts kicks against the limits of the settings and of guards."""

    def __init__(self, security: FlowSecurity) -> None:
        self._security = security

    def apply_to(self, request: AccessRequest) -> bool:
        """Whether there may be a limit for this. False costs nothing, and is what most kicks are."""
        in_force = self._security.live.in_force
        return bool(
            request.guard is not None
            or in_force.task_rate_limits
            or in_force.pipeline_rate_limits
            or self._security.config.principal_rate_limit
        )

    async def count(self, principal: Principal, request: AccessRequest, *, by_hook: bool) -> None:
        """Count one kick, which a middleware makes if it is `by_hook`: the next step of a pipeline, say.

        Raises `RateLimitExceededError`, or `BackendUnavailableError` where it cannot be counted.
        """
        await self._count("kick", principal, self._counts(request, by_hook=by_hook))

    async def count_run(self, principal: Principal, request: AccessRequest) -> None:
        """Count one task that is about to run. Raises as `count`."""
        await self._count("run", principal, self._counts(request, by_hook=False))

    async def _count(self, what: str, principal: Principal, counts: Iterable[_Count]) -> None:
        if self._security.rate_limits is None:
            return
        for limit, identifiers in counts:
            name = f"{what}_{identifiers[0]}"
            await self._security.rate_limits.hit(limit, what, *identifiers, principal.subject, name=name)

    def _counts(self, request: AccessRequest, *, by_hook: bool) -> Iterator[_Count]:
        in_force, task = self._security.live.in_force, str(request.task)
        if request.guard is not None and request.guard.rate_limit is not None:
            yield _Count(request.guard.rate_limit, ("guarded", task))
        if (limit := in_force.task_rate_limits.get(task)) is not None:
            yield _Count(limit, ("task", task))
        if by_hook:
            return  # what follows from a kick is not asked for again
        if request.pipeline is not None and (limit := in_force.pipeline_rate_limits.get(request.pipeline)) is not None:
            yield _Count(limit, ("pipeline", request.pipeline))
        if (limit := self._security.config.principal_rate_limit) is not None:
            yield _Count(limit, ("all",))
