"""Two `FlowSecurity` objects in one process do not trust each other."""

from __future__ import annotations

from contextlib import suppress

import pytest
from taskiq.exceptions import SendTaskError

from taskiq_flow_security import (
    AuthenticationError,
    FlowSecurityError,
    Principal,
    SecurityMiddleware,
    current_principal,
)
from tests.attacks.forging import PRINCIPAL
from tests.integration.inmemory.fixtures import NewProcess
from tests.integration.inmemory.harness import PROCESSOR, STRANGER_SECRET, Process


@pytest.fixture
def other(new_process: NewProcess) -> Process:
    """Another deployment in the same process, where the same role may do the same."""
    return new_process(jwt_secret=STRANGER_SECRET)


async def test_a_message_of_one_is_refused_by_the_other(process: Process, other: Process) -> None:
    await process.refuses(await other.genuine(), "unknown_key")
    await other.refuses(await process.genuine(), "unknown_key")


async def test_labels_of_one_are_refused_by_the_other_at_the_kick(process: Process, other: Process) -> None:
    labels = other.security.labels_for(PROCESSOR)
    with pytest.raises(AuthenticationError) as refusal:
        await process.clean.kicker().with_labels(**labels).kiq([1])
    assert refusal.value.reason == "unknown_key"
    assert PRINCIPAL in labels


async def test_who_acts_for_one_acts_for_nobody_in_the_other(process: Process, other: Process) -> None:
    with (
        other.security.acting_as(PROCESSOR),
        pytest.raises(AuthenticationError, match="another FlowSecurity") as refusal,
    ):
        await process.clean.kiq([1])
    assert refusal.value.reason == "no_principal"
    assert process.broker.sent == []


async def test_each_sees_who_acts_for_it_however_many_act_in_one_place(process: Process, other: Process) -> None:
    inner = Principal("inner", roles=["processor"])
    with process.security.acting_as(PROCESSOR, pipeline="data"), other.security.acting_as(inner):
        await process.clean.kiq([1])
        await other.clean.kiq([1])
        with process.security.acting_as(PROCESSOR):
            await other.clean.kiq([1])
            await process.loose.kiq()  # for the pipeline that was acted for before
    assert [entry.sub for entry in process.audit.take()] == ["alice", "inner", "inner", "alice"]
    for each in (process, other):
        assert len(each.broker.sent) == 2
        for message in each.broker.sent:
            await each.runs(message)


async def test_a_task_that_acts_with_less_hides_nobody_who_acts_for_the_other(process: Process, other: Process) -> None:
    @process.broker.task("parent", pipeline="data")
    async def parent() -> None:
        caller = current_principal()
        with other.security.acting_as(PROCESSOR), process.security.acting_as(caller.restrict(pipelines=["data"])):
            await other.clean.kiq([1])

    await process.broker.deliver(await process.kick(parent))
    assert len(other.broker.sent) == 1


async def test_who_has_kicked_with_one_acts_for_nobody_in_the_other(process: Process, other: Process) -> None:
    with other.security.acting_as(PROCESSOR):
        await other.clean.kiq([1])
        with pytest.raises(AuthenticationError) as refusal:
            await process.clean.kiq([1])
    assert refusal.value.reason == "no_principal"


async def test_an_attempt_to_kick_with_the_other_leaves_kicks_with_the_one_as_they_were(
    process: Process, other: Process
) -> None:
    with other.security.acting_as(PROCESSOR):
        with suppress(FlowSecurityError):
            await process.clean.kiq([1])
        await other.clean.kiq([1])
    await other.runs(other.broker.take())


async def test_a_task_of_one_cannot_kick_tasks_of_the_other(process: Process, other: Process) -> None:
    @process.broker.task("bridge", pipeline="data")
    async def bridge() -> None:
        await other.clean.kiq([1])

    outcome = await process.broker.deliver(await process.kick(bridge))
    assert isinstance(outcome.error, (AuthenticationError, SendTaskError))
    assert other.broker.sent == []


async def test_a_task_of_one_may_kick_tasks_of_the_other_where_it_says_in_whose_name(
    process: Process, other: Process
) -> None:
    @process.broker.task("bridge", pipeline="data")
    async def bridge() -> str:
        with other.security.acting_as(Principal("bridge", roles=["processor"])):
            await other.clean.kiq([1])
        return current_principal().subject

    outcome = await process.broker.deliver(await process.kick(bridge))
    assert outcome.result.return_value == "alice"
    await other.runs(other.broker.take())


async def test_a_broker_cannot_be_secured_by_both(process: Process, other: Process) -> None:
    with pytest.raises(FlowSecurityError):
        process.broker.add_middlewares(SecurityMiddleware(other.security))


async def test_what_one_has_verified_the_other_verifies_itself(process: Process, new_process: NewProcess) -> None:
    twin = new_process(principal_audience="elsewhere")
    message = await process.genuine()
    await process.runs(message)
    await twin.refuses(message, "wrong_audience")


async def test_a_kick_that_was_begun_with_one_is_signed_by_the_other_for_nobody(
    process: Process, other: Process
) -> None:
    message = process.clean.kicker().with_task_id("one-id")._prepare_message([1])
    middleware = next(found for found in process.broker.middlewares if isinstance(found, SecurityMiddleware))
    with process.security.acting_as(PROCESSOR):
        await middleware.pre_send(message)
        with pytest.raises(AuthenticationError) as refusal:
            other.broker.formatter.dumps(message)
    assert refusal.value.reason == "no_principal"
