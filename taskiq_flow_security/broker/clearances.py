"""Kicks that need not be decided about again."""

from __future__ import annotations

from typing import Any

from taskiq.abc.broker import AsyncBroker

from taskiq_flow_security import acting
from taskiq_flow_security.broker.access_requests import check_arguments, registered_pipeline
from taskiq_flow_security.broker.delivery import Task
from taskiq_flow_security.broker.kicks import Clearance, Kick
from taskiq_flow_security.broker.wire import SCHEDULE_LABEL
from taskiq_flow_security.live_policy import InForce
from taskiq_flow_security.security import FlowSecurity
from taskiq_flow_security.tokens.principal_token import PrincipalToken

_REMEMBERED = 1000
"""Tasks, at most."""


class Clearances:
    """Remembers, for each task, the last kick that was allowed, if it was not the first one with its token.

    One that differs from it in nothing but its id and its arguments is allowed too, as long as nothing has changed that
    the answer depends on. Kicks that a task or a schedule makes, and those that are counted or judged by their
    arguments, are decided about each time.
    """

    def __init__(self, security: FlowSecurity, broker: AsyncBroker) -> None:
        self._security = security
        self._broker = broker
        self._clearances: dict[str, Clearance] = {}
        self._tokens: dict[str, PrincipalToken] = {}

    def cover(self, kick: Kick) -> bool:
        """Whether a kick is allowed like the one before it, which it is then. Raises as `check_arguments`."""
        message, live = kick.message, self._security.live
        clearance = self._clearances.get(message.task_name)
        if (
            clearance is None
            or acting.current() is not clearance.actor
            or kick.delivery is not None
            or kick.given is not None
            or live.in_force is not clearance.in_force
            or live.stale
            or self._security.clock() >= clearance.until
            or self._broker.find_task(message.task_name) is not clearance.task
            or registered_pipeline(clearance.task) != clearance.pipeline
            or message.labels != clearance.labels
            or message.labels_types != clearance.labels_types
            or not message.task_id.isprintable()
        ):
            return False
        check_arguments(message, clearance.task)
        kick.clearance, kick.actor, kick.token = clearance, clearance.actor, clearance.token
        kick.request, kick.decision = clearance.request, clearance.decision
        return True

    def remember(
        self, kick: Kick, task: Task | None, labels: dict[str, Any], time_to_live: float, in_force: InForce
    ) -> None:
        """Remember a kick of this task that was allowed with these labels by what was in force, if others can be like
        it.
        """
        name, actor, token = kick.message.task_name, kick.actor, kick.token
        if self._tokens.get(name) is not token:
            if len(self._tokens) >= _REMEMBERED:
                self._tokens.clear()
                self._clearances.clear()
            if token is not None:
                self._tokens[name] = token
        elif actor is not None and token is not None and self._is_plain(kick, token, labels, in_force):
            request, decision, types = kick.request, kick.decision, kick.message.labels_types
            assert request is not None  # it was allowed
            assert decision is not None
            self._clearances[name] = Clearance(
                request,
                decision,
                token,
                kick.delegation(actor, token),
                time_to_live,
                actor,
                task,
                registered_pipeline(task),
                labels,
                None if types is None else types.copy(),
                in_force,
                min(self._security.authorization.allows_until(actor.principal), token.expires_at - time_to_live),
            )

    def _is_plain(self, kick: Kick, token: PrincipalToken, labels: dict[str, Any], in_force: InForce) -> bool:
        """Whether what was decided depends on nothing but what a clearance holds."""
        guard = None if kick.request is None else kick.request.guard
        return (
            kick.delivery is None
            and not in_force.kicks_limited
            and (guard is None or (guard.predicate is None and guard.rate_limit is None))
            and SCHEDULE_LABEL not in labels
            and labels == kick.message.labels  # no pipeline was put there
            and self._security.issuer.keeps(token)
        )
