"""Messages that need not be decided about again."""

from __future__ import annotations

from taskiq.message import TaskiqMessage

from taskiq_flow_security.broker.answers import Answer, Answers, Likeness, Registration
from taskiq_flow_security.broker.delivery import Delivery
from taskiq_flow_security.core.principal import UNRESTRICTED
from taskiq_flow_security.live_policy import InForce
from taskiq_flow_security.security import FlowSecurity


class Admissions:
    """Admits a message like the one before it.

    What tasks have passed on, what its guard counts, claims or judges by its arguments, and all messages while anything
    is revoked, are decided about each time.
    """

    def __init__(self, security: FlowSecurity) -> None:
        self._authorization = security.authorization
        self._answers = Answers[Answer](security)

    def cover(self, message: TaskiqMessage, delivery: Delivery) -> bool:
        """Whether a verified message may run like the one before it, which it does then."""
        answer, signature = self._answers.find(message, delivery.task), delivery.signature
        if (
            answer is None
            or delivery.token is not answer.token
            or signature is None
            or signature.delegation != answer.delegation
            or signature.denied is not None
        ):
            return False
        delivery.request, delivery.decision, delivery.actor = answer.request, answer.decision, answer.actor
        return True

    def remember(self, message: TaskiqMessage, delivery: Delivery, in_force: InForce) -> None:
        """Remember a message that may run by what was in force, if others can be like it."""
        request, decision, actor, token = delivery.request, delivery.decision, delivery.actor, delivery.token
        task, signature = delivery.task, delivery.signature
        assert request is not None  # it may run
        assert decision is not None
        assert actor is not None
        assert token is not None
        assert signature is not None
        guard = request.guard
        if (
            not signature.delegation.actors
            and signature.delegation.scope is UNRESTRICTED
            and in_force.revocations is None  # of messages too
            and (guard is None or not (guard.predicate or guard.rate_limit or guard.at_most_once))
            and self._answers.meets_again(message.task_name, token)
        ):
            self._answers.remember(
                Answer(
                    request,
                    decision,
                    actor,
                    token,
                    signature.delegation,
                    Registration.of(task),
                    Likeness.of(message),
                    in_force,
                    self._authorization.allows_until(token.principal),
                ),
            )
