"""What is noted in the background."""

from __future__ import annotations

import asyncio

from taskiq import InMemoryBroker

from taskiq_flow_security import BackendUnavailableError, FlowSecurity, Principal
from taskiq_flow_security.broker.delivery import Delivery
from taskiq_flow_security.broker.replays import Replays
from taskiq_flow_security.replay import MemoryReplays, Progress, ReplayStores
from taskiq_flow_security.tokens.message_signature import MessageSignature
from tests.integration.inmemory.harness import config


class Slow:
    """A store that answers when it is told what to."""

    def __init__(self) -> None:
        self.asked: list[asyncio.Future[Progress | None]] = []
        self.closed = False

    def _ask(self) -> asyncio.Future[Progress | None]:
        self.asked.append(asyncio.get_running_loop().create_future())
        return self.asked[-1]

    def progress(self, message: MessageSignature) -> asyncio.Future[Progress | None]:
        return self._ask()

    def claim(self, message: MessageSignature, claimant: str) -> asyncio.Future[Progress | None]:
        return self._ask()

    def complete(self, message: MessageSignature) -> asyncio.Future[Progress | None]:
        return self._ask()

    async def close(self) -> None:
        self.closed = True


async def test_the_store_is_closed_when_all_is_noted_also_what_is_tried_again() -> None:
    security, store = FlowSecurity(config()), Slow()
    security.replays = ReplayStores(MemoryReplays(security.clock, margin=60), store)
    replays = Replays(security, broadcast=False)
    delivery = Delivery(InMemoryBroker(), "id", "task")
    delivery.signature = MessageSignature("kid", "jti", security.clock(), int(security.clock()) + 60)
    delivery.admitted = Principal("alice")
    delivery.ended = asyncio.Event()
    replays.note(delivery)
    closing = asyncio.ensure_future(replays.close())
    await asyncio.sleep(0)
    store.asked[0].set_exception(BackendUnavailableError("away"))
    for _ in range(10):
        await asyncio.sleep(0)
    assert len(store.asked) == 2
    assert not closing.done()
    store.asked[1].set_result(None)
    await asyncio.wait_for(closing, 5)
    assert store.closed
