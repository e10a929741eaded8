"""What was allowed, and is again as long as nothing changes that it depends on."""

from __future__ import annotations

from typing import Any, NamedTuple

from taskiq.message import TaskiqMessage

from taskiq_flow_security.acting import Acting
from taskiq_flow_security.broker.access_requests import registered_pipeline
from taskiq_flow_security.broker.delivery import Task
from taskiq_flow_security.core.policy import AccessRequest, Decision
from taskiq_flow_security.live_policy import InForce
from taskiq_flow_security.security import FlowSecurity
from taskiq_flow_security.tokens.message_signature import NOT_DELEGATED, Delegation
from taskiq_flow_security.tokens.principal_token import PrincipalToken

_REMEMBERED = 1000
"""Tasks, at most."""


class Answer(NamedTuple):
    """That somebody may have a task run, with the labels of a message; and all that this depends on."""

    request: AccessRequest
    decision: Decision
    actor: Acting
    token: PrincipalToken
    task: Task | None
    labels: dict[str, Any]
    in_force: InForce
    until: float
    """When the answer may become another one by itself: an API key or a login ends, or the token does not last as long
    as a message may wait.
    """
    delegation: Delegation = NOT_DELEGATED
    """On what terms the message is sent."""
    time_to_live: float = 0.0
    """Seconds that the message may wait, of one that is sent."""


class _Remembered(NamedTuple):
    answer: Answer
    labels_types: dict[str, int] | None
    pipeline: str | None
    """The task's own, by registration."""


class Answers:
    """Remembers, for each task, the last answer that allowed it.

    Of a token's first one, only the token is: whoever asks once pays nothing for what others ask again and again.
    """

    def __init__(self, security: FlowSecurity) -> None:
        self._security = security
        self._remembered: dict[str, _Remembered] = {}
        self._tokens: dict[str, PrincipalToken] = {}

    def find(self, message: TaskiqMessage, task: Task | None) -> Answer | None:
        """What was answered to a message that differs from this one in nothing but its id and its arguments.

        Whose both are, and how the arguments are, has to be looked at by who asks.
        """
        remembered, live = self._remembered.get(message.task_name), self._security.live
        if remembered is None:
            return None
        answer = remembered.answer
        if (
            live.in_force is not answer.in_force
            or live.stale
            or self._security.clock() >= answer.until
            or task is not answer.task
            or registered_pipeline(task) != remembered.pipeline
            or message.labels != answer.labels
            or message.labels_types != remembered.labels_types
        ):
            return None
        return answer

    def remember(self, message: TaskiqMessage, answer: Answer) -> None:
        """Remember an answer that depends on nothing but what it holds, the types of the labels and the task."""
        name = message.task_name
        if self._tokens.get(name) is not answer.token:
            if len(self._tokens) >= _REMEMBERED:
                self._tokens.clear()
                self._remembered.clear()
            self._tokens[name] = answer.token
            return
        types = message.labels_types
        self._remembered[name] = _Remembered(
            answer, None if types is None else types.copy(), registered_pipeline(answer.task)
        )
