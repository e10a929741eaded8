"""Kicks that need not be decided about again."""

from __future__ import annotations

from typing import Any

from taskiq.abc.broker import AsyncBroker

from taskiq_flow_security import acting
from taskiq_flow_security.broker.access_requests import check_arguments
from taskiq_flow_security.broker.answers import Answer, Answers
from taskiq_flow_security.broker.delivery import Task
from taskiq_flow_security.broker.kicks import Kick
from taskiq_flow_security.broker.wire import SCHEDULE_LABEL
from taskiq_flow_security.live_policy import InForce
from taskiq_flow_security.security import FlowSecurity


class Clearances:
    """Allows a kick like the one before it.

    Kicks that a task or a schedule makes, and those that are counted or judged by their arguments, are decided about
    each time.
    """

    def __init__(self, security: FlowSecurity, broker: AsyncBroker) -> None:
        self._security = security
        self._broker = broker
        self._answers = Answers(security)

    def cover(self, kick: Kick) -> bool:
        """Whether a kick is allowed like the one before it, which it is then. Raises as `check_arguments`."""
        message = kick.message
        answer = self._answers.find(message, self._broker.find_task(message.task_name))
        if (
            answer is None
            or acting.current() is not answer.actor
            or kick.delivery is not None
            or kick.given is not None
            or not message.task_id.isprintable()
        ):
            return False
        check_arguments(message, answer.task)
        kick.clearance, kick.actor, kick.token = answer, answer.actor, answer.token
        kick.request, kick.decision = answer.request, answer.decision
        return True

    def remember(
        self, kick: Kick, task: Task | None, labels: dict[str, Any], time_to_live: float, in_force: InForce
    ) -> None:
        """Remember a kick of this task that was allowed with these labels by what was in force, if others can be like
        it.
        """
        request, decision, actor, token = kick.request, kick.decision, kick.actor, kick.token
        assert request is not None  # it was allowed
        assert decision is not None
        assert actor is not None
        assert token is not None
        guard = request.guard
        if (
            kick.delivery is None
            and not in_force.kicks_limited
            and (guard is None or (guard.predicate is None and guard.rate_limit is None))
            and SCHEDULE_LABEL not in labels
            and labels == kick.message.labels  # no pipeline was put there
            and self._security.issuer.keeps(token)
            and self._security.messages.signs_whenever()
        ):
            ends = self._security.authorization.allows_until(actor.principal), token.expires_at - time_to_live
            terms = kick.delegation(actor, token)
            answer = Answer(request, decision, actor, token, task, labels, in_force, min(ends), terms, time_to_live)
            self._answers.remember(kick.message, answer)
