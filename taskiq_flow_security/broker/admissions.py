"""Messages that need not be decided about again."""

from __future__ import annotations

from taskiq.message import TaskiqMessage

from taskiq_flow_security.broker.access_requests import check_arguments
from taskiq_flow_security.broker.answers import Answer, Answers
from taskiq_flow_security.broker.delivery import Delivery
from taskiq_flow_security.core.policy import AccessRequest
from taskiq_flow_security.live_policy import InForce
from taskiq_flow_security.security import FlowSecurity
from taskiq_flow_security.tokens.message_signature import NOT_DELEGATED, MessageSignature


class Admissions:
    """Admits a message like the one before it.

    What tasks have passed on, what is judged by its arguments, and all messages while anything is revoked, are decided
    about each time.
    """

    def __init__(self, security: FlowSecurity) -> None:
        self._security = security
        self._answers = Answers(security)

    def cover(self, message: TaskiqMessage, delivery: Delivery) -> AccessRequest | None:
        """What is asked with a verified message that may run like the one before it; ``None`` for any other.

        Raises as `check_arguments`.
        """
        answer = self._answers.find(message, delivery.task)
        if answer is None or delivery.token is not answer.token or not _as_its_sender_kicked(delivery.signature):
            return None
        check_arguments(message, answer.task)
        delivery.request, delivery.decision, delivery.actor = answer.request, answer.decision, answer.actor
        return answer.request

    def remember(self, message: TaskiqMessage, delivery: Delivery, in_force: InForce) -> None:
        """Remember a message that may run by what was in force, if others can be like it."""
        request, decision, actor, token = delivery.request, delivery.decision, delivery.actor, delivery.token
        assert request is not None  # it may run
        assert decision is not None
        assert actor is not None
        assert token is not None
        if (
            _as_its_sender_kicked(delivery.signature)
            and in_force.revocations is None  # of messages too
            and (request.guard is None or request.guard.predicate is None)
        ):
            until = self._security.authorization.allows_until(token.principal)
            labels = message.labels.copy()
            answer = Answer(request, decision, actor, token, delivery.task, labels, in_force, until)
            self._answers.remember(message, answer)


def _as_its_sender_kicked(signature: MessageSignature | None) -> bool:
    """Whether a message is on no terms: nobody has passed its principal on, and its sender does not deny it."""
    return signature is not None and signature.delegation is NOT_DELEGATED and signature.denied is None
