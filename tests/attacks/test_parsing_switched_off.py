"""A worker that does not parse arguments (``taskiq worker --no-parse``) does not get others than a predicate saw."""

from __future__ import annotations

import pytest
from taskiq.receiver import Receiver

from taskiq_flow_security import Principal, guard
from taskiq_flow_security.core.guard import Arguments
from tests.integration.inmemory.harness import Process


@pytest.mark.xfail(strict=True, reason="a predicate sees arguments as TaskIQ parses them by default: see the README")
async def test_a_predicate_sees_what_a_function_gets_where_arguments_are_not_parsed(process: Process) -> None:
    seen: list[object] = []

    def see(_caller: Principal, arguments: Arguments) -> bool:
        seen.append(arguments["amount"])
        return True

    @process.broker.task("pay", pipeline="data")
    @guard(predicate=see)
    async def pay(amount: int) -> None:
        process.ran.append(("pay", amount))

    data = await process.kick(pay, "100")
    seen.clear()
    receiver = Receiver(process.broker, executor=process.broker.executor, validate_params=False)
    await process.broker.deliver(data, receiver)
    assert [("pay", amount) for amount in seen] == process.ran or process.ran == []
