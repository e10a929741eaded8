"""What is known of the message that this context is handling, from its arrival to its end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

from taskiq import ScheduledTask
from taskiq.abc.broker import AsyncBroker
from taskiq.decor import AsyncTaskiqDecoratedTask
from taskiq.exceptions import NoResultError
from taskiq.message import TaskiqMessage
from taskiq.serialization import _UnpickleableExceptionWrapper

from taskiq_flow_security import acting
from taskiq_flow_security.acting import Acting
from taskiq_flow_security.core.policy import AccessRequest, Decision
from taskiq_flow_security.core.principal import Principal
from taskiq_flow_security.errors import FlowSecurityError
from taskiq_flow_security.tokens.jws import check_times
from taskiq_flow_security.tokens.message_signature import MessageSignature
from taskiq_flow_security.tokens.principal_token import PrincipalToken

Task = AsyncTaskiqDecoratedTask[Any, Any]


class RefusalSignal(NoResultError, _UnpickleableExceptionWrapper):  # noqa: N818 (the error is what it carries)
    """Ends a refused task before its function runs.

    A `NoResultError`, because that is what TaskIQ's receiver and retry middlewares let pass without acting on it. And
    an exception that TaskIQ 0.13 unwraps as soon as it makes a result of it, so that all middlewares see the error
    itself in the result, and pipelines pass it on.
    """

    def __init__(self, error: FlowSecurityError) -> None:
        Exception.__init__(self, str(error))
        self.error = error
        self.text = str(error)

    def restore(self) -> Exception:
        """The error, without its frames, which hold the message and its tokens."""
        return self.error.with_traceback(None)


class Delivery:
    """One received message."""

    token: PrincipalToken | None = None
    signature: MessageSignature | None = None
    late: bool = False
    """Whether it has not come through our formatter, because somebody has replaced that."""
    error: FlowSecurityError | None = None
    """Why it could not be verified, if so."""
    principal: Principal | None = None
    """Whose message it is, as its sender has left it, once that is verified."""
    request: AccessRequest | None = None
    """What is asked with it, once that is known."""
    decision: Decision | None = None
    """What the policy says to that."""
    actor: Acting | None = None
    """As whom it is to run, once that is decided."""
    admitted: Principal | None = None
    """In whose name it may run, once that is decided."""
    refusal: RefusalSignal | None = None
    finished: bool = False
    """Whether its result is made, and nothing but to store it is left to do."""
    ended: asyncio.Event | None = None
    """Set when the worker that listened for it listens no longer."""
    kept: bool = False
    """Whether its broker keeps it until it is acked."""
    unsure: bool = False
    """Whether the store of the messages that have run was away when it was asked for this one."""
    claimant: str | None = None
    """In whose name it is claimed, if it may run at most once."""
    counted: bool = False
    """Whether it was counted against the limits of the worker, or need not be."""
    ack: Callable[[], Awaitable[None]] | None = None
    """Acks it, if its broker keeps it and nobody else has acked it."""
    keep_result: bool = False
    """Whether a result is there already, which a refusal must not replace."""
    handler: asyncio.Task[Any] | None = None
    """The receiver's own asyncio task."""
    before: Acting | None = None
    """Who acted where it has arrived, if anybody."""

    def __init__(self, broker: AsyncBroker, task_id: str, task_name: str, task: Task | None = None) -> None:
        """`task` is the one that was registered when the message arrived, which is the one that will run."""
        self.broker = broker
        self.task_id = task_id
        self.task_name = task_name
        self.task = task

    def begin(self) -> None:
        """Be the message that this context handles."""
        self.before = acting.current()
        current.set(self)

    def end(self) -> None:
        """Leave the context to who acted there: whoever awaits the receiver itself goes on in it."""
        acting.become(self.before)
        current.set(None)
        executed.set(None)

    def is_of(self, message: TaskiqMessage | ScheduledTask) -> bool:
        """Whether this message is the one that was delivered, or is to run its task again: a retry or a requeue."""
        return (self.task_id, self.task_name) == (message.task_id, message.task_name)

    def check_times(self, now: float, leeway: float) -> None:
        """Raise `AuthenticationError` if a message that was verified, or its principal, is not valid now."""
        signature, token = self.signature, self.token
        assert signature is not None  # it was verified
        assert token is not None
        not_before = max(signature.issued_at, token.not_before)
        check_times(not_before, min(signature.expires_at, token.expires_at), now, leeway)

    def handled_here(self) -> bool:
        """Whether the receiver itself runs this, and not what it has started."""
        return self.handler is not None and _current_task() is self.handler

    @property
    def decided(self) -> bool:
        """Whether the message was let run or refused already."""
        return self.admitted is not None or self.refusal is not None


def _current_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:  # in a thread without an event loop
        return None


current: ContextVar[Delivery | None] = ContextVar("taskiq_flow_security_delivery", default=None)

executed: ContextVar[Delivery | None] = ContextVar("taskiq_flow_security_executed", default=None)
"""The message whose function has run, where middlewares' hooks do: not in what the function has left running."""
