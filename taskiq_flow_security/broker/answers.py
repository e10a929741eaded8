"""What was allowed, and is again as long as nothing changes that it depends on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

from taskiq.message import TaskiqMessage

from taskiq_flow_security.acting import Acting
from taskiq_flow_security.broker.access_requests import gives_dependency
from taskiq_flow_security.broker.delivery import Task
from taskiq_flow_security.broker.envelope import Envelope
from taskiq_flow_security.broker.wire import PIPELINE_LABEL
from taskiq_flow_security.core.policy import AccessRequest, Decision
from taskiq_flow_security.live_policy import InForce
from taskiq_flow_security.security import FlowSecurity
from taskiq_flow_security.tokens.message_signature import Delegation
from taskiq_flow_security.tokens.principal_token import PrincipalToken

_REMEMBERED = 1000
"""Tasks, at most."""


class Likeness(NamedTuple):
    """What like messages have in common: all but their ids and arguments."""

    task_name: str
    labels: dict[str, Any]
    labels_types: dict[str, int] | None

    @classmethod
    def of(cls, message: TaskiqMessage) -> Likeness:
        """That of a message, whatever becomes of it."""
        types = message.labels_types
        return cls(message.task_name, message.labels.copy(), None if types is None else types.copy())

    def is_of(self, message: TaskiqMessage) -> bool:
        """Whether a message is like these. What cannot be compared is not: other middlewares may put anything there."""
        try:
            return (message.task_name, message.labels, message.labels_types) == self
        except Exception:  # noqa: BLE001 (of other people's objects)
            return False


@dataclass(frozen=True, slots=True)
class Registration:
    """What a task's registration says of who may run it, all of which can be replaced later on."""

    function: object
    """What it runs, and with which guard; ``None`` where this process does not know the task."""
    pipeline: object
    """Its label of that name."""

    @classmethod
    def of(cls, task: Task | None) -> Registration:
        """What it says now."""
        return cls(None, None) if task is None else cls(task.original_func, task.labels.get(PIPELINE_LABEL))

    def is_of(self, task: Task | None) -> bool:
        """Whether this is what it says of a task now."""
        if task is None:
            return self.function is None
        return task.original_func is self.function and task.labels.get(PIPELINE_LABEL) is self.pipeline


@dataclass(frozen=True, slots=True)
class Answer:
    """That somebody may have a task run, with the labels of a message; and all that this depends on."""

    request: AccessRequest
    decision: Decision
    actor: Acting
    token: PrincipalToken
    delegation: Delegation
    """On what terms it is sent."""
    registration: Registration
    likeness: Likeness
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
            or not answer.registration.is_of(task)
            or not answer.likeness.is_of(message)
            or gives_dependency(message, task)
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

    def remember(self, answer: A) -> None:
        """Remember an answer that depends on nothing but what it holds."""
        self._remembered[answer.likeness.task_name] = answer
