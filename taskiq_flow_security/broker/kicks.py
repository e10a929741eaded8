"""One kick: where it is made, and what is known of it."""

from __future__ import annotations

from contextvars import ContextVar

from taskiq.message import BrokerMessage, TaskiqMessage

from taskiq_flow_security.acting import Acting
from taskiq_flow_security.broker import delivery as deliveries
from taskiq_flow_security.broker.answers import Clearance
from taskiq_flow_security.broker.delivery import Delivery
from taskiq_flow_security.core.policy import AccessRequest, Decision
from taskiq_flow_security.core.principal import UNRESTRICTED
from taskiq_flow_security.tokens.message_signature import NOT_DELEGATED, Delegation, Denial
from taskiq_flow_security.tokens.principal_token import PrincipalToken


class Kick:
    """One kick, from when a middleware is first told of it to when it is signed."""

    delivery: Delivery | None = None
    """The message that is handled where this is kicked, if one is."""
    retries: bool = False
    """Whether it repeats the task that is, or was, run there: a retry or a requeue.

    A kick under the running task's own id and name counts as a retry, whoever makes it: a retry middleware that stands
    before ours kicks in `on_error` before we know that the function is over.
    """
    by_hook: bool = False
    """Whether a middleware kicks this after a task has run or was refused: a retry, a next step, an alarm."""
    actor: Acting | None = None
    token: PrincipalToken | None = None
    request: AccessRequest | None = None
    decision: Decision | None = None
    clearance: Clearance | None = None
    """What it is allowed by, if it was not decided about by itself."""
    counted: bool = False
    """Whether it was counted against the rate limit of its task's guard, or need not be."""
    denied: Denial | None = None
    """Why a worker is to refuse it: it may not be made, and somebody may wait for it."""
    recorded: bool = False
    """Whether it was recorded that it is denied, or should be."""
    withheld: bool = False
    """Whether it is not to be sent at all."""
    outer: Kick | None = None
    """The one in the middle of which a middleware makes it."""

    def __init__(self, owner: object, message: TaskiqMessage, given: object) -> None:
        """`owner` stands for the broker that it is made with: another one's middleware does not go on with it. `given`
        is the principal that the message was given explicitly.
        """
        self.owner = owner
        self.message = message
        self.given = given
        delivery = deliveries.current.get()
        if delivery is not None:
            self.delivery = delivery
            self.retries = self.counted = delivery.admitted is not None and delivery.is_of(message)
            executed = deliveries.executed.get() is delivery
            self.by_hook = self.retries or executed or delivery.refusal is not None

    @classmethod
    def begin(cls, owner: object, message: TaskiqMessage, given: object) -> Kick:
        """The kick that begins in this context with this message.

        Where the message was dumped before, by a middleware that wants to know how long it is, say, the principal that
        it was given then was taken off.
        """
        before = _under_way.get()
        kick = cls(owner, message, given)
        if before is not None and before.owner is owner and before.message is message:
            kick.given, kick.outer = given or before.given, before.outer
        elif before is not None:
            kick.outer, before.outer = before, None  # one is enough: most of these were given up
        _under_way.set(kick)
        return kick

    @classmethod
    def resume(cls, owner: object, message: TaskiqMessage, given: object) -> Kick:
        """The kick that is under way in this context, if this is its message or a copy; else one that begins now."""
        kick = _under_way.get()
        if kick is not None and kick.owner is owner and kick.is_of(message) and given in (None, kick.given):
            kick.message = message
            return kick
        return cls.begin(owner, message, given)

    def is_of(self, message: TaskiqMessage | BrokerMessage) -> bool:
        """Whether this is the kick of a message, or of the one that it was copied from."""
        ours = self.message
        return ours is message or (ours.task_id == message.task_id and ours.task_name == message.task_name)

    @staticmethod
    def cleared(owner: object, message: TaskiqMessage) -> Clearance | None:
        """What allows the kick of this very message, as long as nobody has changed what it depends on."""
        kick = _under_way.get()
        if kick is None or kick.clearance is None or kick.message is not message or kick.owner is not owner:
            return None
        return kick.clearance if kick.clearance.likeness.is_of(message) else None

    def stand_alone(self) -> None:
        """Be a kick that was decided about by itself: it is no longer like the one before it."""
        if self.clearance is not None:
            allowed, self.clearance = self.clearance, None
            self.actor, self.token = allowed.actor, allowed.token
            self.request, self.decision = allowed.request, allowed.decision

    def pipeline(self, actor: Acting) -> str | None:
        """The pipeline that it is made for, if for any: the next step of a pipeline, for that of the last one."""
        if actor.pipeline is None and self.by_hook and self.delivery is not None and self.delivery.request is not None:
            return self.delivery.request.pipeline
        return actor.pipeline

    def actors(self, actor: Acting) -> tuple[str, ...]:
        """The tasks that pass the principal on with it: the running one too, if it is its function that kicks."""
        delivery = self.delivery
        if delivery is None or delivery.admitted is None:
            return actor.actors
        scheduled = actor.token is not None and actor.token.schedule is not None and not actor.actors
        if self.by_hook and not scheduled:
            return actor.actors
        # A principal that was issued for a schedule has to be passed on by its task, and be it to its own retry.
        return (*actor.actors, delivery.task_name)

    def delegation(self, actor: Acting, token: PrincipalToken) -> Delegation:
        """On what terms the actor passes the principal on that the token proves."""
        actors, scope, pipeline = self.actors(actor), actor.principal.scope, self.pipeline(actor)
        if scope is token.principal.scope or scope == token.principal.scope:
            scope = UNRESTRICTED
        if not actors and scope is UNRESTRICTED and pipeline is None:
            return NOT_DELEGATED
        return Delegation(actors, scope, pipeline)

    def expires_at(self, time_to_live: float, actor: Acting, now: float) -> float:
        """When the message is too old to run. For what is tried again its time counts from the first kick."""
        ends = now + time_to_live
        if self.retries and self.delivery is not None and self.delivery.signature is not None:
            ends = min(ends, self.delivery.signature.expires_at)
        return ends if actor.until is None else min(ends, actor.until)


_under_way: ContextVar[Kick | None] = ContextVar("taskiq_flow_security_kick", default=None)
"""The kick that was begun in this context and is not sent yet."""


def take() -> Kick | None:
    """The kick that is under way, which is sent now: what is kicked until it `end`s is another one."""
    kick = _under_way.get()
    if kick is not None:
        _under_way.set(None)
    return kick


def end(kick: Kick | None) -> None:
    """This kick is sent, or will not be: the one that it was made in the middle of goes on."""
    outer = None if kick is None else kick.outer
    if _under_way.get() is not outer:  # to set it takes longer
        _under_way.set(outer)


def give_up() -> None:
    """The kick that is under way is denied, and will not be sent."""
    end(_under_way.get())
