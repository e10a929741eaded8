"""Kicks that need not be decided about again."""

from __future__ import annotations

from typing import Any

from taskiq.abc.broker import AsyncBroker
from taskiq.message import TaskiqMessage

from taskiq_flow_security import acting
from taskiq_flow_security.broker import wire
from taskiq_flow_security.broker.answers import Answers, Clearance, Likeness, Registration
from taskiq_flow_security.broker.delivery import Task
from taskiq_flow_security.broker.envelope import Envelope
from taskiq_flow_security.broker.kicks import Kick
from taskiq_flow_security.broker.wire import SCHEDULE_LABEL
from taskiq_flow_security.errors import UnsignableMessageError
from taskiq_flow_security.live_policy import InForce
from taskiq_flow_security.security import FlowSecurity
from taskiq_flow_security.tokens.message_signature import SIGNATURE_LABEL
from taskiq_flow_security.tokens.principal_token import PRINCIPAL_LABEL

_NOT_TO_REMEMBER = frozenset({PRINCIPAL_LABEL, SIGNATURE_LABEL, SCHEDULE_LABEL})


class Clearances:
    """Allows a kick like the one before it.

    Kicks that a task or a schedule makes, those that are counted or judged by their arguments, and those that are only
    monitored are decided about each time.
    """

    def __init__(self, security: FlowSecurity, broker: AsyncBroker) -> None:
        self._security = security
        self._broker = broker
        self._answers = Answers[Clearance](security)

    def cover(self, kick: Kick) -> bool:
        """Whether a kick is allowed like the one before it, which it is then."""
        message = kick.message
        clearance = self._answers.find(message, self._broker.find_task(message.task_name))
        if (
            clearance is None
            or type(message) is not TaskiqMessage  # of a subclass, who knows what it is dumped as
            or acting.current() is not clearance.actor
            or kick.delivery is not None
            or kick.given is not None
            or not message.task_id.isprintable()
        ):
            return False
        kick.clearance = clearance
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
        message, guard = kick.message, request.guard
        if (
            kick.delivery is None
            and not self._security.monitoring  # what cannot be signed is to be sent all the same
            and not in_force.kicks_limited
            and (guard is None or (guard.predicate is None and guard.rate_limit is None))
            and _NOT_TO_REMEMBER.isdisjoint(labels)
            and labels == message.labels  # no pipeline was put there
            and wire.holds_text(message.labels)
            and self._security.issuer.keeps(token)
            and self._security.messages.signs_whenever()
            and self._answers.meets_again(message.task_name, token)
        ):
            likeness = Likeness.of(message)
            until = min(self._security.authorization.allows_until(actor.principal), token.expires_at - time_to_live)
            try:
                envelope = Envelope.of(
                    likeness.task_name, {**likeness.labels, PRINCIPAL_LABEL: token.text}, likeness.labels_types
                )
            except UnsignableMessageError:
                return  # as is said when it is signed
            self._answers.remember(
                Clearance(
                    request,
                    decision,
                    actor,
                    token,
                    kick.delegation(actor, token),
                    Registration.of(task),
                    likeness,
                    in_force,
                    until,
                    time_to_live,
                    envelope,
                ),
            )
