"""How often each principal may kick what, and have it run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

from taskiq_flow_security.core.policy import AccessRequest
from taskiq_flow_security.core.principal import Principal
from taskiq_flow_security.rate_limits import Hit
from taskiq_flow_security.security import FlowSecurity

What = Literal["kick", "schedule", "run"]
"""What is counted, each by itself: a schedule when it is made, what it sends as kicks, and all that runs on workers."""

_Limit = tuple[str, tuple[str, ...]]
"""A limit that a kick counts against, and what it is counted by."""


class KickLimits:
    """Counts kicks against the limits of the settings and of guards."""

    def __init__(self, security: FlowSecurity) -> None:
        self._security = security

    def apply_to(self, request: AccessRequest) -> bool:
        """Whether there may be a limit for this. False costs nothing, and is what most kicks are."""
        return request.guard is not None or self._security.live.in_force.kicks_limited

    async def count(self, principal: Principal, request: AccessRequest, *, by_hook: bool, what: What = "kick") -> None:
        """Count one kick, or schedule, which a middleware makes if it is `by_hook`: the next step of a pipeline, say.

        It counts against all of its limits or, where one denies it, against none. Raises `RateLimitExceededError`, or
        `BackendUnavailableError` where it cannot be counted.
        """
        await self._count(what, principal, self._limits(request, by_hook=by_hook))

    async def count_guarded(self, principal: Principal, request: AccessRequest) -> None:
        """Count one kick against its guard's limit alone, of which its sender knows nothing. Raises as `count`."""
        if request.guard is not None and request.guard.rate_limit is not None:
            await self._count("kick", principal, [(request.guard.rate_limit, ("guarded", str(request.task)))])

    async def count_run(self, principal: Principal, request: AccessRequest) -> None:
        """Count one task that is about to run. Raises as `count`."""
        await self._count("run", principal, self._limits(request, by_hook=False))

    async def _count(self, what: What, principal: Principal, limits: Iterable[_Limit]) -> None:
        if self._security.rate_limits is not None:
            await self._security.rate_limits.hit_all(
                Hit(limit, (what, *counted_by, principal.subject), f"{what}_{counted_by[0]}")
                for limit, counted_by in limits
            )

    def _limits(self, request: AccessRequest, *, by_hook: bool) -> Iterator[_Limit]:
        in_force, task = self._security.live.in_force, str(request.task)
        if request.guard is not None and request.guard.rate_limit is not None:
            yield (request.guard.rate_limit, ("guarded", task))
        if (limit := in_force.task_rate_limits.get(task)) is not None:
            yield (limit, ("task", task))
        if by_hook:
            return  # what follows from a kick is not asked for again
        if request.pipeline is not None and (limit := in_force.pipeline_rate_limits.get(request.pipeline)) is not None:
            yield (limit, ("pipeline", request.pipeline))
        if (limit := in_force.principal_rate_limit) is not None:
            yield (limit, ("all",))
