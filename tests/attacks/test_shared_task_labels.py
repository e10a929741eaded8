"""All kickers of a shared task write into the task's own labels (TaskIQ 0.13): no principal may stay behind there."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from taskiq import InMemoryBroker, async_shared_broker

from taskiq_flow_security import (
    AuthenticationError,
    ConfigurationError,
    FlowSecurity,
    Principal,
    SecurityMiddleware,
    TaskiqFlowConfig,
    current_principal,
)

ALICE = Principal("alice", permissions=["execute"])
BOB = Principal("bob", permissions=["execute"])

security = FlowSecurity(TaskiqFlowConfig(jwt_secret="x" * 32))


@async_shared_broker.task("attacks:shared")
async def shared() -> str:
    return current_principal().subject


@pytest.fixture(autouse=True)
def broker() -> Iterator[InMemoryBroker]:
    broker = InMemoryBroker(await_inplace=True).with_middlewares(SecurityMiddleware(security))
    async_shared_broker.default_broker(broker)
    yield broker
    shared.labels.clear()


async def test_a_principal_in_the_labels_of_a_shared_task_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="acting_as"):
        await shared.kicker().with_labels(**security.labels_for(ALICE)).kiq()


async def test_nobody_kicks_a_shared_task_as_who_kicked_it_before() -> None:
    with pytest.raises(ConfigurationError):
        await shared.kicker().with_labels(**security.labels_for(ALICE)).kiq()
    with pytest.raises(AuthenticationError) as refusal:
        await shared.kiq()
    assert refusal.value.reason == "no_principal"


async def test_nobody_kicks_a_shared_task_as_who_is_about_to_kick_it() -> None:
    shared.kicker().with_labels(**security.labels_for(ALICE))
    with pytest.raises(ConfigurationError), security.acting_as(BOB):
        await shared.kiq()


async def test_a_shared_task_runs_as_who_acts() -> None:
    with security.acting_as(BOB):
        task = await shared.kiq()
    assert (await task.get_result()).return_value == "bob"
