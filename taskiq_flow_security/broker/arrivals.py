"""How messages arrive: a broker hands them to whoever listens, and keeps some of them until they are acked.

The receiver of TaskIQ 0.13 acks at one of several points, or leaves it to the task, and acks some messages whose
result it could not save. A message has completed when it is acked and the receiver is done with it. Where the ack comes
last, that is noted before: a copy that its broker delivers because the worker was killed between the two is refused,
and its result is there. Where the ack comes earlier, it is noted afterwards: what is lost until then, its broker holds
no longer, and whatever it still holds runs.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Protocol

from taskiq.acks import AckableMessage
from taskiq.utils import maybe_awaitable

from taskiq_flow_security.broker.delivery import Delivery

Listen = Callable[[], AsyncGenerator[bytes | AckableMessage, None]]


class Completions(Protocol):
    """Where it is noted which messages have completed."""

    async def complete(self, delivery: Delivery) -> None:
        """Note that a message has completed, if it has run."""

    def note(self, delivery: Delivery) -> None:
        """As `complete`, in the background."""


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

    def when_handled(self, then: Callable[[Delivery], None]) -> None:
        """Call something when the receiver is done with it, if it gets so far."""
        delivery = self.delivery
        if delivery is not None and delivery.handler is not None:
            delivery.handler.add_done_callback(
                lambda handler: then(delivery) if delivery.finished and not handler.cancelled() else None
            )

    def handled(self) -> bool:
        """Whether the receiver is done with it, or will be with the ack that it gives now."""
        delivery = self.delivery
        if delivery is None or delivery.handler is None or not delivery.finished:
            return False
        return delivery.handler.done() or delivery.handled_here()


def observed(listen: Listen, completions: Completions) -> Listen:
    """A broker's `listen`, whose messages are `Arrival`s. It is noted which of those that it keeps have completed."""

    @functools.wraps(listen)
    async def observed_listen() -> AsyncGenerator[bytes | AckableMessage, None]:
        ended = asyncio.Event()
        async with aclosing(listen()) as messages:
            try:
                async for message in messages:
                    yield _observe(message, ended, completions)
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


def _observe(message: bytes | AckableMessage, ended: asyncio.Event, completions: Completions) -> bytes | AckableMessage:
    if not isinstance(message, AckableMessage):
        return _arrival(message, ended, kept=False)
    arrival = _arrival(message.data, ended, kept=True)
    ack, acked = message.ack, False

    async def ack_once() -> None:
        nonlocal acked
        if acked:
            return
        handled = arrival.handled()
        if handled and arrival.delivery is not None:
            await completions.complete(arrival.delivery)
        await maybe_awaitable(ack())
        acked = True
        if not handled:
            arrival.when_handled(completions.note)

    arrival.ack = ack_once
    vars(message).update(data=arrival, ack=ack_once)  # as a model, it would look for what validates them
    return message


def _arrival(data: bytes, ended: asyncio.Event, *, kept: bool) -> Arrival:
    arrival = Arrival(data)
    arrival.ended = ended
    arrival.kept = kept
    return arrival
