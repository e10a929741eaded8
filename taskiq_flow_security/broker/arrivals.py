"""How messages arrive: a broker hands them to whoever listens, and keeps some of them until they are acked.

The receiver of TaskIQ 0.13 acks at one of several points, or leaves it to the task, and acks some messages whose
result it could not save. So "completed" is what is acked, and whatever has to be noted of that is noted before the ack.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

from taskiq.acks import AckableMessage
from taskiq.utils import maybe_awaitable

from taskiq_flow_security.broker.delivery import Delivery

Listen = Callable[[], AsyncGenerator[bytes | AckableMessage, None]]
Completed = Callable[[Delivery], Awaitable[None]]


class Arrival(bytes):
    """A message as a broker delivers it, which knows how it has come."""

    ended: asyncio.Event
    """Set when the worker listens no longer, so that it ends as soon as its tasks have."""
    kept: bool
    """Whether the broker keeps it until it is acked."""
    ack: Callable[[], Awaitable[None]] | None = None
    """Acks it, once."""
    delivery: Delivery | None = None

    def becomes(self, delivery: Delivery) -> None:
        """Note what is made of it."""
        delivery.ended = self.ended
        delivery.kept = self.kept
        delivery.ack = self.ack
        self.delivery = delivery


def observed(listen: Listen, completed: Completed) -> Listen:
    """A broker's `listen`, whose messages are `Arrival`s. What is acked has `completed` first."""

    @functools.wraps(listen)
    async def observed_listen() -> AsyncGenerator[bytes | AckableMessage, None]:
        ended = asyncio.Event()
        async with aclosing(listen()) as messages:
            try:
                async for message in messages:
                    yield _observe(message, ended, completed)
            finally:
                ended.set()

    observed_listen.observed = True  # type: ignore[attr-defined]  # a mark, so that it is wrapped once
    return observed_listen


async def ended_within(seconds: float, ended: asyncio.Event) -> bool:
    """Wait so long, or until the worker ends; whether it does."""
    try:
        await asyncio.wait_for(ended.wait(), seconds)
    except asyncio.TimeoutError:
        return False
    return True


def _observe(message: bytes | AckableMessage, ended: asyncio.Event, completed: Completed) -> bytes | AckableMessage:
    if not isinstance(message, AckableMessage):
        return _arrival(message, ended, kept=False)
    arrival = _arrival(message.data, ended, kept=True)
    ack, acked = message.ack, False

    async def ack_completed() -> None:
        nonlocal acked
        if acked:
            return
        if arrival.delivery is not None:
            await completed(arrival.delivery)
        await maybe_awaitable(ack())
        acked = True

    message.data = arrival
    message.ack = arrival.ack = ack_completed
    return message


def _arrival(data: bytes, ended: asyncio.Event, *, kept: bool) -> Arrival:
    arrival = Arrival(data)
    arrival.ended = ended
    arrival.kept = kept
    return arrival
