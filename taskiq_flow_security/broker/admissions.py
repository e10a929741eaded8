"""Messages that need not be decided about again."""

from __future__ import annotations

from typing import Any, NamedTuple

from taskiq.message import TaskiqMessage

from taskiq_flow_security.acting import Acting
from taskiq_flow_security.broker.access_requests import check_arguments, registered_pipeline
from taskiq_flow_security.broker.delivery import Delivery, Task
from taskiq_flow_security.core.policy import AccessRequest, Decision
from taskiq_flow_security.live_policy import InForce
from taskiq_flow_security.security import FlowSecurity
from taskiq_flow_security.tokens.message_signature import NOT_DELEGATED
from taskiq_flow_security.tokens.principal_token import PrincipalToken

_REMEMBERED = 1000
"""Tasks, at most."""


class Admission(NamedTuple):
    """A message that was let run: the answer, and all that it depends on."""

    request: AccessRequest
    decision: Decision
    actor: Acting
    token: PrincipalToken
    task: Task | None
    pipeline: str | None
    """The task's own, by registration."""
    labels: dict[str, Any]
    labels_types: dict[str, int] | None
    in_force: InForce
    until: float
    """When the answer may become another one by itself: an API key, a login or the token ends."""


class Admissions:
    """Remembers, for each task, the last message that might run, if it was not the first one with its token.

    One that differs from it in nothing but its id and its arguments may run too, as long as nothing has changed that
    the answer depends on. What tasks have passed on, what is judged by its arguments, and all messages while anything
    is revoked, are decided about each time.
    """

    def __init__(self, security: FlowSecurity) -> None:
        self._security = security
        self._admissions: dict[str, Admission] = {}
        self._tokens: dict[str, PrincipalToken] = {}

    def cover(self, message: TaskiqMessage, delivery: Delivery) -> AccessRequest | None:
        """What is asked with a verified message that may run like the one before it; ``None`` for any other.

        Raises as `check_arguments`.
        """
        admission, live, signature = self._admissions.get(delivery.task_name), self._security.live, delivery.signature
        if (
            admission is None
            or signature is None
            or signature.delegation is not NOT_DELEGATED
            or signature.denied is not None
            or delivery.token is not admission.token
            or live.in_force is not admission.in_force
            or live.stale
            or self._security.clock() >= admission.until
            or delivery.task is not admission.task
            or registered_pipeline(admission.task) != admission.pipeline
            or message.labels != admission.labels
            or message.labels_types != admission.labels_types
        ):
            return None
        check_arguments(message, admission.task)
        delivery.request, delivery.decision, delivery.actor = admission.request, admission.decision, admission.actor
        return admission.request

    def remember(self, message: TaskiqMessage, delivery: Delivery, in_force: InForce) -> None:
        """Remember a message that may run by what was in force, if others can be like it."""
        name, token = delivery.task_name, delivery.token
        if self._tokens.get(name) is not token:
            if len(self._tokens) >= _REMEMBERED:
                self._tokens.clear()
                self._admissions.clear()
            if token is not None:
                self._tokens[name] = token
        elif token is not None and self._is_plain(delivery, in_force):
            request, decision, actor, types = delivery.request, delivery.decision, delivery.actor, message.labels_types
            assert request is not None  # it may run
            assert decision is not None
            assert actor is not None
            self._admissions[name] = Admission(
                request,
                decision,
                actor,
                token,
                delivery.task,
                registered_pipeline(delivery.task),
                message.labels.copy(),
                None if types is None else types.copy(),
                in_force,
                self._security.authorization.allows_until(token.principal),
            )

    def _is_plain(self, delivery: Delivery, in_force: InForce) -> bool:
        """Whether what was decided depends on nothing but what an admission holds."""
        signature, guard = delivery.signature, None if delivery.request is None else delivery.request.guard
        return (
            signature is not None
            and signature.delegation is NOT_DELEGATED
            and in_force.revocations is None  # of messages too
            and (guard is None or guard.predicate is None)
        )
