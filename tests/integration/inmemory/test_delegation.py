"""Tasks that kick tasks: in whose name, on what terms, and how far."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from taskiq import Context, SimpleRetryMiddleware, TaskiqDepends, TaskiqMessage, TaskiqMiddleware, TaskiqResult

from taskiq_flow_security import (
    AccessDeniedError,
    AuthenticationError,
    Principal,
    UnsignableMessageError,
    current_principal,
)
from tests.attacks.forging import principal_of, read
from tests.attacks.test_asymmetric_keys import private, public
from tests.integration.inmemory.fixtures import NewProcess
from tests.integration.inmemory.harness import PROCESSOR, Process, Task

ALICE = Principal("alice", permissions=["read", "execute"])


def runs(process: Process, body: Callable[[], Awaitable[object]], name: str = "parent") -> Task:
    """A task that does this."""

    @process.broker.task(name, pipeline="data")
    async def parent() -> None:
        await body()

    return parent


async def deliver_all(process: Process) -> list[str | None]:
    """Deliver what was sent, and what that sends; the reasons of the results, ``None`` for each that is good."""
    reasons = []
    while process.broker.sent:
        data = process.broker.sent.pop(0)
        outcome = await process.broker.deliver(data)
        reasons += [getattr(result.error, "reason", None) for result in outcome.stored.values()]
    return reasons


async def test_a_child_is_kicked_in_the_name_of_its_parents_caller_in_the_same_transaction(process: Process) -> None:
    parent = runs(process, lambda: process.clean.kiq([1]))
    await process.broker.deliver(await process.kick(parent))
    process.audit.take()
    await deliver_all(process)
    [entry] = process.audit.take()
    assert (entry.event, entry.sub, entry.act) == ("task_authz_allow", "alice", "parent")
    assert process.ran == [("clean", ([1], 1))]


async def test_all_tasks_that_have_passed_a_principal_on_are_recorded_in_their_order(process: Process) -> None:
    child = runs(process, lambda: process.clean.kiq([1]), "child")
    parent = runs(process, lambda: child.kiq(), "parent")
    await process.broker.deliver(await process.kick(parent))
    await deliver_all(process)
    entries = process.audit.take()
    assert [(entry.event, entry.task, entry.act) for entry in entries] == [
        ("task_enqueued", "parent", None),
        ("task_authz_allow", "parent", None),
        ("task_delegated", "child", "parent"),
        ("task_authz_allow", "child", "parent"),
        ("task_delegated", "clean", "parent > child"),
        ("task_authz_allow", "clean", "parent > child"),
    ]
    assert len({entry.txn for entry in entries}) == 1


async def test_a_kick_that_a_task_may_not_make_is_recorded_with_all_who_have_passed_its_principal_on(
    process: Process,
) -> None:
    child = runs(process, lambda: process.report.kiq(), "child")
    parent = runs(process, lambda: child.kiq(), "parent")
    await process.broker.deliver(await process.kick(parent))
    process.audit.take()
    await process.broker.deliver(process.broker.take())
    (denied,) = [entry for entry in process.audit.take() if entry.outcome == "deny"]
    assert (denied.task, denied.reason, denied.act) == ("report", "acl", "parent > child")


async def test_a_task_can_narrow_what_its_children_may_do(process: Process) -> None:
    async def body() -> None:
        with process.security.acting_as(current_principal().restrict(pipelines=["other"])):
            await process.clean.kiq([1])

    await process.broker.deliver(await process.kick(runs(process, body)))
    assert process.broker.sent == []
    assert "scope" in [entry.reason for entry in process.audit.take()]


async def test_what_was_narrowed_stays_narrow_for_all_that_follows(new_process: NewProcess) -> None:
    process = new_process(pipeline_acls={})
    seen: list[object] = []

    async def child_body() -> None:
        seen.append(current_principal().scope)
        with process.security.acting_as(ALICE):  # the same principal, without a scope: it does not get wider
            seen.append(current_principal().scope)
            with pytest.raises(AccessDeniedError) as refusal:
                await process.report.kiq()
        seen.append(refusal.value.reason)
        await process.clean.kiq([1])

    child = runs(process, child_body, "child")

    async def body() -> None:
        with process.security.acting_as(current_principal().restrict(pipelines=["data"])) as narrowed:
            seen.append(narrowed.scope)
            await child.kiq()

    await process.broker.deliver(await process.kick(runs(process, body), principal=ALICE))
    assert await deliver_all(process) == [None, None]
    assert seen[0] == seen[1] == seen[2]
    assert seen[3] == "scope"
    assert process.ran == [("clean", ([1], 1))]


async def test_what_was_restricted_before_the_kick_is_restricted_on_the_worker(new_process: NewProcess) -> None:
    process = new_process(pipeline_acls={})
    seen: list[bool] = []

    async def body() -> None:
        seen.append(bool(process.security.explain(current_principal(), pipeline="data", permission="read")))
        seen.append(bool(process.security.explain(current_principal(), pipeline="data")))

    parent = runs(process, body)
    await process.broker.deliver(await process.kick(parent, principal=ALICE.restrict(permissions=["execute"])))
    labels = process.security.labels_for(ALICE.restrict(permissions=["execute"]))
    await parent.kicker().with_labels(**labels).kiq()
    await deliver_all(process)
    assert seen == [False, True] * 2


async def test_a_retry_and_a_requeue_are_made_on_the_same_terms(new_process: NewProcess) -> None:
    process = new_process(after=(SimpleRetryMiddleware(default_retry_count=1),), pipeline_acls={})
    attempts = []

    @process.broker.task("fail", pipeline="data", retry_on_error=True, max_retries=2)
    async def fail(context: Context = TaskiqDepends()) -> None:
        attempts.append(current_principal().scope)
        if len(attempts) == 1:
            raise ValueError
        if len(attempts) == 2:
            await context.requeue()

    await process.broker.deliver(await process.kick(fail, principal=ALICE.restrict(pipelines=["data"])))
    await deliver_all(process)
    assert len(attempts) == 3
    assert len(set(attempts)) == 1
    assert {entry.act for entry in process.audit.take()} == {None}


async def test_tasks_do_not_kick_one_another_for_ever(new_process: NewProcess) -> None:
    process = new_process(max_delegation_depth=3)
    ran = []

    @process.broker.task("again", pipeline="data")
    async def again() -> None:
        ran.append(1)
        await again.kiq()

    await process.broker.deliver(await process.kick(again))
    await deliver_all(process)
    assert len(ran) == 4
    assert "delegation_depth" in [entry.reason for entry in process.audit.take()]


async def test_a_worker_runs_nothing_that_more_tasks_have_passed_on_than_it_allows(new_process: NewProcess) -> None:
    generous, strict = new_process(max_delegation_depth=3), new_process(max_delegation_depth=2)
    child = runs(generous, lambda: generous.clean.kiq([1]), "child")
    parent = runs(generous, lambda: child.kiq(), "parent")
    grandparent = runs(generous, lambda: parent.kiq(), "grandparent")
    message = await generous.kick(grandparent)
    for _ in range(3):
        await generous.broker.deliver(message)
        message = generous.broker.take()
    await strict.refuses(message, "delegation_depth", AccessDeniedError)


async def test_what_a_task_leaves_running_kicks_as_the_task_does(new_process: NewProcess) -> None:
    process = new_process(max_delegation_depth=3)
    ran: list[asyncio.Task[None]] = []
    returned = asyncio.Event()

    @process.broker.task("again", pipeline="data")
    async def again() -> None:
        async def later() -> None:
            await returned.wait()
            await again.kiq()

        ran.append(asyncio.create_task(later()))

    message = await process.kick(again)
    for _ in range(5):
        returned.clear()
        await process.broker.deliver(message)
        returned.set()
        await asyncio.gather(*ran, return_exceptions=True)
        if not process.broker.sent:
            break
        message = process.broker.take()
    assert len(ran) == 4
    assert "delegation_depth" in [entry.reason for entry in process.audit.take()]


Explicit = Callable[[Process], dict[str, str]]

EXPLICIT: dict[str, Explicit] = {
    "as it came": lambda process: process.security.labels_for(current_principal()),
    "made anew": lambda process: process.security.labels_for(ALICE),
}
each_explicit_kick = pytest.mark.parametrize("labels", EXPLICIT.values(), ids=list(EXPLICIT))


@each_explicit_kick
async def test_an_explicit_kick_in_a_task_is_passed_on_like_any_other(
    new_process: NewProcess, labels: Explicit
) -> None:
    process = new_process(pipeline_acls={})
    parent = runs(process, lambda: process.clean.kicker().with_labels(**labels(process)).kiq([1]))
    await process.broker.deliver(await process.kick(parent, principal=ALICE))
    process.audit.take()
    assert await deliver_all(process) == [None]
    [entry] = process.audit.take()
    assert (entry.sub, entry.act) == ("alice", "parent")


@each_explicit_kick
async def test_explicit_kicks_do_not_go_on_for_ever(new_process: NewProcess, labels: Explicit) -> None:
    process = new_process(pipeline_acls={}, max_delegation_depth=3)
    ran = []

    @process.broker.task("again", pipeline="data")
    async def again() -> None:
        ran.append(1)
        await again.kicker().with_labels(**labels(process)).kiq()

    await process.broker.deliver(await process.kick(again, principal=ALICE))
    await deliver_all(process)
    assert len(ran) == 4


@each_explicit_kick
async def test_an_explicit_kick_gives_a_restricted_principal_nothing_back(
    new_process: NewProcess, labels: Explicit
) -> None:
    process = new_process(pipeline_acls={})
    reasons = []

    async def body() -> None:
        with pytest.raises(AccessDeniedError) as refusal:
            await process.report.kicker().with_labels(**labels(process)).kiq()
        reasons.append(refusal.value.reason)

    parent = runs(process, body)
    await process.broker.deliver(await process.kick(parent, principal=ALICE.restrict(pipelines=["data"])))
    assert reasons == ["scope"]


async def test_labels_that_were_made_for_a_restricted_principal_stay_restricted_elsewhere(
    new_process: NewProcess,
) -> None:
    process = new_process(pipeline_acls={})
    reasons = []

    async def body() -> None:
        with process.security.acting_as(current_principal().restrict(pipelines=["data"])):
            labels = process.security.labels_for(current_principal())
        with pytest.raises(AccessDeniedError) as refusal:
            await process.report.kicker().with_labels(**labels).kiq()
        reasons.append(refusal.value.reason)

    await process.broker.deliver(await process.kick(runs(process, body), principal=ALICE))
    assert reasons == ["scope"]


async def test_nobody_lengthens_the_life_of_a_principal_that_came_with_a_message(new_process: NewProcess) -> None:
    process = new_process(pipeline_acls={}, queue_ttl=50, principal_ttl=100, clock_leeway=0)
    kept: list[Principal] = []
    ends: list[float] = []

    async def body() -> None:
        kept.append(current_principal())

    await process.broker.deliver(await process.kick(runs(process, body), principal=ALICE))
    process.clock.now += 60
    with process.security.acting_as(kept[0]):
        await process.clean.kiq([1])
    await process.clean.kicker().with_labels(**process.security.labels_for(kept[0])).kiq([1])
    for message in process.broker.sent:
        text = principal_of(read(message))
        ends.append(process.security.principals.verify(text, process.clock.now).expires_at - process.clock.now)
    assert ends == [40, 40]
    process.clock.now += 40
    with pytest.raises(AuthenticationError, match="expired"):
        process.security.labels_for(kept[0])
    with process.security.acting_as(kept[0]), pytest.raises(AuthenticationError, match="expired"):
        await process.clean.kiq([1])


async def test_an_explicit_kick_is_for_the_pipeline_that_is_acted_for(new_process: NewProcess) -> None:
    process = new_process(pipeline_acls={"songs": {"execute": ["processor"]}})

    @process.broker.task("sing")
    async def sing() -> None:
        """Belongs to no pipeline by registration."""

    with process.security.acting_as(PROCESSOR, pipeline="songs"):
        await sing.kicker().with_labels(**process.security.labels_for(PROCESSOR)).kiq()
    assert await deliver_all(process) == [None]


async def test_children_of_a_task_of_the_pipeline_that_is_acted_for_are_kicked_for_it_too(
    new_process: NewProcess,
) -> None:
    process = new_process(pipeline_acls={"data": {"execute": ["processor"]}})
    parent = runs(process, lambda: process.loose.kiq())
    with process.security.acting_as(PROCESSOR, pipeline="data"):
        await parent.kiq()
    assert await deliver_all(process) == [None, None]
    assert process.ran == [("loose", None)]


async def test_children_of_a_task_that_nobody_has_kicked_for_its_pipeline_are_kicked_for_none(process: Process) -> None:
    parent = runs(process, lambda: process.loose.kiq())
    outcome = await process.broker.deliver(await process.kick(parent))
    assert outcome.reason == "permission"
    assert process.broker.sent == []


async def test_children_cannot_name_another_pipeline_than_the_one_that_is_acted_for(new_process: NewProcess) -> None:
    both = {"data": {"execute": ["processor"]}, "reports": {"execute": ["processor"]}}
    process = new_process(pipeline_acls=both)
    parent = runs(process, lambda: process.loose.kicker().with_labels(pipeline="reports").kiq())
    with process.security.acting_as(PROCESSOR, pipeline="data"):
        await parent.kiq()
    assert await deliver_all(process) == ["pipeline_mismatch"]
    await process.kick(parent)
    with process.security.acting_as(PROCESSOR):
        await parent.kiq()
    assert await deliver_all(process) == [None, None]


def too_restricted() -> Principal:
    """What is left of a principal, in more words than fit into a signature."""
    return current_principal().restrict(pipelines=["data", *(f"pipeline-number-{number}" for number in range(500))])


async def test_a_child_whose_terms_do_not_fit_into_a_signature_is_an_error_at_its_kick(process: Process) -> None:
    async def body() -> None:
        with process.security.acting_as(too_restricted()):
            await process.clean.kiq([1])

    outcome = await process.broker.deliver(await process.kick(runs(process, body)))
    assert isinstance(outcome.error, UnsignableMessageError)
    assert process.broker.sent == []


async def test_who_waits_for_a_next_step_whose_terms_do_not_fit_is_told(new_process: NewProcess) -> None:
    class NextStep(TaskiqMiddleware):
        async def post_save(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:
            with process.security.acting_as(too_restricted()):
                await process.clean.kicker().with_task_id("next").kiq([1])

    process = new_process(after=(NextStep(),))
    outcome = await process.broker.deliver(await process.kick(process.echo))
    assert outcome.acks == 1
    assert isinstance(outcome.stored["next"].error, UnsignableMessageError)
    assert process.broker.sent == []


async def test_a_task_acts_as_a_service_only_where_it_says_so(new_process: NewProcess) -> None:
    process = new_process(services={"nightly": {"roles": ["reporter"]}})

    async def body() -> None:
        with pytest.raises(AccessDeniedError):
            await process.report.kiq()
        with process.security.acting_as(process.security.service("nightly")):
            await process.report.kiq()

    await process.broker.deliver(await process.kick(runs(process, body)))
    process.audit.take()
    await deliver_all(process)
    [entry] = process.audit.take()
    assert (entry.sub, entry.act) == ("service:nightly", "parent")
    assert process.ran == [("report", None)]


class Asymmetric:
    """An API that issues, and a worker that can only send."""

    def __init__(self, new_process: NewProcess) -> None:
        common: dict[str, Any] = {
            "jwt_secret": None,
            "pipeline_acls": {},
            "services": {"nightly": {"permissions": ["execute"]}},
        }
        self.api = new_process(
            signing_keys=[private("EdDSA", "api", "issue", "send"), public("EdDSA", "worker", "send")], **common
        )
        self.worker = new_process(
            signing_keys=[private("EdDSA", "worker", "send"), public("EdDSA", "api", "issue", "send")], **common
        )

    async def run(self, body: Callable[[], Awaitable[object]]) -> None:
        """Run this on the worker, in the name of Alice."""
        runs(self.api, body)
        parent = runs(self.worker, body)
        await self.worker.broker.deliver(
            await self.api.kick(parent.kicker().with_broker(self.api.broker), principal=ALICE)
        )


async def test_a_worker_that_can_only_send_passes_a_principal_on_narrowed(new_process: NewProcess) -> None:
    both = Asymmetric(new_process)
    worker = both.worker

    async def body() -> None:
        with worker.security.acting_as(current_principal().restrict(pipelines=["data"])):
            await worker.clean.kiq([1])
            with pytest.raises(AccessDeniedError):
                await worker.report.kiq()

    await both.run(body)
    assert await deliver_all(worker) == [None]
    assert worker.ran == [("clean", ([1], 1))]


async def test_a_worker_that_can_only_send_kicks_explicitly_with_what_it_was_given(new_process: NewProcess) -> None:
    both = Asymmetric(new_process)
    worker = both.worker

    async def body() -> None:
        labels = worker.security.labels_for(current_principal())
        await worker.clean.kicker().with_broker(worker.broker).with_labels(**labels).kiq([1])

    await both.run(body)
    assert await deliver_all(worker) == [None]


async def test_a_worker_that_can_only_send_is_nobody_else(new_process: NewProcess) -> None:
    both = Asymmetric(new_process)
    worker = both.worker
    reasons = []

    async def body() -> None:
        for other in (worker.security.service("nightly"), PROCESSOR, Principal("alice", permissions=["admin"])):
            with worker.security.acting_as(other), pytest.raises(AuthenticationError) as refusal:
                await worker.clean.kicker().with_broker(worker.broker).kiq([1])
            reasons.append(refusal.value.reason)

    await both.run(body)
    assert set(reasons) == {"cannot_issue"}
    assert worker.broker.sent == []
