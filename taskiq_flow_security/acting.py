"""In whose name this code runs: kept for the current context (request, task, thread) and nowhere else."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass

from taskiq_flow_security.core.principal import Principal
from taskiq_flow_security.core.reasons import Reason
from taskiq_flow_security.errors import AuthenticationError
from taskiq_flow_security.losses import Losses
from taskiq_flow_security.tokens.principal_token import PrincipalToken


@dataclass(slots=True)
class Acting:
    """A principal at work."""

    principal: Principal
    txn: str
    owner: object
    """The `FlowSecurity` that vouches for the principal; to another one, nobody acts here."""
    pipeline: str | None = None
    """The pipeline that tasks without one of their own are kicked for."""
    token: PrincipalToken | None = None
    """The principal as signed: as it was received, or as it was last issued for this scope."""
    actors: tuple[str, ...] = ()
    """The tasks that have passed the principal on, the first one first."""
    received: bool = False
    """Whether the token came with a message. Such a token is passed on as it is and never issued again."""
    schedule: str | None = None
    """The id of the schedule that is due, where the scheduler sends what it stands for."""
    until: float | None = None
    """When the grant ends by which it acts: nothing that it sends lasts longer."""
    counted: bool = False
    """Whether what it sends was counted before: it is to be tried again."""
    outer: Acting | None = None
    """Who acts around it, where several `FlowSecurity` are at work in one place: each sees its own."""


_elsewhere = Losses(logging.getLogger(__name__), "blocks of acting_as were left")

_acting: ContextVar[Acting | None] = ContextVar("taskiq_flow_security_acting", default=None)

_firing: ContextVar[Acting | None] = ContextVar("taskiq_flow_security_firing", default=None)

if hasattr(os, "register_at_fork"):  # not on Windows, where nothing is forked
    # A process pool forks a worker in the context of the task that needs it first; the next task is somebody else's.
    os.register_at_fork(after_in_child=lambda: (_acting.set(None), _firing.set(None)))


current: Callable[[], Acting | None] = _acting.get
"""Who acts here, if anybody."""

become: Callable[[Acting | None], object] = _acting.set
"""Act as this from here on, to the end of the current context. Prefer `scope`."""


def fire(acting: Acting | None) -> None:
    """Let the next kick of the schedule that this acts for be in its name, and nothing else."""
    _firing.set(acting)


def firing(schedule: object) -> Acting | None:
    """In whose name the schedule of this id is sent, if it is the one that is due here."""
    acting = _firing.get()
    return acting if acting is not None and acting.schedule == schedule else None


def fired(schedule: object) -> None:
    """What the schedule of this id stands for is sent, or will not be."""
    if firing(schedule) is not None:
        _firing.set(None)


class scope:  # noqa: N801 (a context manager, which reads as a verb; a generator would take four times as long)
    """Act as this inside the block; whatever happens in it, nothing of it is left behind in its context."""

    __slots__ = ("_acting", "_token")

    def __init__(self, acting: Acting | None) -> None:
        self._acting = acting

    def __enter__(self) -> None:
        self._token = _acting.set(self._acting)

    def __exit__(self, *_: object) -> None:
        try:
            _acting.reset(self._token)
        except ValueError:
            # A generator that somebody else closes, or that a framework runs in threads. That it is over cannot be
            # told where it was entered.
            _elsewhere.add("in another context than they were entered in, where somebody may still act")


def current_principal() -> Principal:
    """The principal in whose name the current task or request runs.

    A plain function, and a TaskIQ dependency: ``caller: Principal = TaskiqDepends(current_principal)``. In a process
    pool, to which no context comes, call it in a `guard`ed function only; in another, take the dependency. Where
    security is off, or is only monitored and the caller unknown, it is ``ANONYMOUS``. Raises `AuthenticationError`
    outside of any task, request or `FlowSecurity.acting_as`.
    """
    acting = _acting.get()
    if acting is None:
        raise AuthenticationError(
            Reason.NO_PRINCIPAL,
            "Nobody acts here; use `with security.acting_as(principal):`.",
        )
    return acting.principal
