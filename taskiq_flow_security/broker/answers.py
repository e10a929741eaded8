"""What was allowed, and is again as long as nothing changes that it depends on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from taskiq.message import TaskiqMessage

from taskiq_flow_security.acting import Acting
from taskiq_flow_security.broker.access_requests import gives_dependency
from taskiq_flow_security.broker.delivery import Task
from taskiq_flow_security.broker.envelope import Envelope
from taskiq_flow_security.broker.wire import PIPELINE_LABEL
from taskiq_flow_security.core.policy import AccessRequest, Decision
from taskiq_flow_security.live_policy import InForce
from taskiq_flow_security.security import FlowSecurity
from taskiq_flow_security.tokens.principal_token import PrincipalToken

_REMEMBERED = 1000
"""Tasks, at most."""


@dataclass(frozen=True, slots=True)
class Answer:
    """That somebody may have a task run, with the labels of a message; and all that this depends on."""

    request: AccessRequest
    decision: Decision
    actor: Acting
    token: PrincipalToken
    task: Task | None
    pipeline: object
    """The label of that name that the task is registered with."""
    labels: dict[str, Any]
    labels_types: dict[str, int] | None
    in_force: InForce
    until: float
    """When the answer may become another one by itself: an API key or a login ends, or the token does not last as long
    as a message may wait.
    """


@dataclass(frozen=True, slots=True)
class Clearance(Answer):
    """An answer to a kick, and what its message is made of then."""

    time_to_live: float
    """Seconds that the message may wait."""
    envelope: Envelope


A = TypeVar("A", bound=Answer)


class Answers(Generic[A]):
    """Remembers, for each task, the last answer that allowed it.

    Of a token's first one, only the token is: whoever asks once pays nothing for what others ask again and again.
    """

    def __init__(self, security: FlowSecurity) -> None:
        self._live = security.live
        self._clock = security.clock
        self._remembered: dict[str, A] = {}
        self._tokens: dict[str, PrincipalToken] = {}

    def find(self, message: TaskiqMessage, task: Task | None) -> A | None:
        """What was answered to a message that differs from this one in nothing but its id and its arguments.

        Whose both are has to be looked at by who asks.
        """
        answer, live = self._remembered.get(message.task_name), self._live
        if (
            answer is None
            or live.in_force is not answer.in_force
            or live.stale
            or self._clock() >= answer.until
            or task is not answer.task
            or (task is not None and task.labels.get(PIPELINE_LABEL) is not answer.pipeline)
            or message.labels != answer.labels
            or message.labels_types != answer.labels_types
            or (message.kwargs and gives_dependency(message, task))
        ):
            return None
        return answer

    def meets_again(self, name: str, token: PrincipalToken) -> bool:
        """Note that this task was asked for with this token; whether that was so before."""
        if self._tokens.get(name) is token:
            return True
        if len(self._tokens) >= _REMEMBERED:
            self._tokens.clear()
            self._remembered.clear()
        self._tokens[name] = token
        return False

    def remember(self, name: str, answer: A) -> None:
        """Remember an answer for this task that depends on nothing but what it holds."""
        self._remembered[name] = answer


def registered_label(task: Task | None) -> object:
    """The label that names the pipeline of a task, as it is registered."""
    return None if task is None else task.labels.get(PIPELINE_LABEL)
