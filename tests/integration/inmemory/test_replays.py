"""A message that has completed is refused when it comes again; one that was interrupted runs."""

from __future__ import annotations

import asyncio
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import pytest
from taskiq import Context, InMemoryBroker, SimpleRetryMiddleware, TaskiqDepends, TaskiqMiddleware, TaskiqResult
from taskiq.acks import AcknowledgeType
from taskiq.exceptions import NoResultError
from taskiq.message import BrokerMessage, TaskiqMessage
from taskiq.receiver import Receiver

from taskiq_flow_security import AccessDeniedError, ConfigurationError, FlowSecurity, SecurityMiddleware, guard
from tests.integration.inmemory import tasks
from tests.integration.inmemory.fixtures import NewProcess
from tests.integration.inmemory.harness import PROCESSOR, AuditTrail, Outcome, Process, Queue, Task, config


class Failing(TaskiqMiddleware):
    """Fails in one hook, for as long as it is told to."""

    def __init__(self, hook: str) -> None:
        super().__init__()
        self._hook = hook
        self.fails = True

    def post_execute(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:
        """As told."""
        self._fail("post_execute")

    def post_save(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:
        """As told."""
        self._fail("post_save")

    def _fail(self, hook: str) -> None:
        if self.fails and hook == self._hook:
            raise RuntimeError(hook)


async def refuses_copy(process: Process, message: bytes) -> None:
    """Check that a copy is refused as one should be: acked, recorded, and without any result."""
    process.audit.take()
    process.ran.clear()
    assert await process.broker.deliver(message) == Outcome(acks=1, stored={})
    assert process.ran == []
    assert [(entry.event, entry.outcome, entry.reason) for entry in process.audit.take()] == [
        ("task_replay", "deny", "replayed")
    ]


async def test_a_copy_of_a_finished_message_is_refused_and_its_result_stays(process: Process) -> None:
    message = await process.genuine()
    first = await process.runs(message)
    await refuses_copy(process, message)
    assert process.broker.result_backend.results == first.stored


async def test_a_copy_is_refused_to_the_last_moment_in_which_it_could_run(process: Process) -> None:
    message = await process.kick(process.clean.kicker().with_labels(queue_ttl=60), [1])
    await process.runs(message)
    for seconds in (30, 30, 9):
        process.clock.now += seconds
        await refuses_copy(process, message)


async def test_a_copy_gives_no_result_to_a_task_whose_result_was_taken_away(process: Process) -> None:
    message = await process.genuine()
    await process.runs(message)
    process.broker.result_backend.results.clear()
    await refuses_copy(process, message)


async def test_who_replayed_what_is_in_the_audit_event(process: Process) -> None:
    message = await process.genuine()
    [enqueued] = process.audit.take()
    await process.runs(message)
    await process.broker.deliver(message)
    [replay] = process.audit.take()
    assert (replay.sub, replay.task, replay.roles) == ("alice", "clean", ["processor"])
    assert (replay.jti, replay.txn) == (enqueued.jti, enqueued.txn)


async def test_a_message_in_the_middle_of_which_the_worker_ends_runs_again(new_process: NewProcess) -> None:
    failing = Failing("post_execute")
    process = new_process(after=(failing,))
    message = await process.genuine()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="post_execute"):
            await process.broker.deliver(message)
    assert len(process.ran) == 2
    process.ran.clear()
    failing.fails = False
    await process.runs(message)
    await refuses_copy(process, message)


async def test_a_message_that_was_acked_without_its_hooks_having_run_has_completed(new_process: NewProcess) -> None:
    process = new_process(after=(Failing("post_save"),))
    message = await process.genuine()
    await process.runs(message)
    await refuses_copy(process, message)


async def test_a_message_that_was_acked_without_its_result_having_been_saved_has_completed(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = await process.genuine()

    async def away(*_: object) -> NoReturn:
        raise ConnectionError

    with monkeypatch.context() as patch:
        patch.setattr(process.broker.result_backend, "set_result", away)
        outcome = await process.broker.deliver(message)
    assert outcome == Outcome(acks=1, stored={})
    assert len(process.ran) == 1
    await refuses_copy(process, message)


@pytest.mark.parametrize("ack_type", [each for each in AcknowledgeType if each is not AcknowledgeType.MANUAL])
async def test_whenever_a_message_is_acked_a_copy_of_it_is_refused(process: Process, ack_type: AcknowledgeType) -> None:
    receiver = Receiver(process.broker, executor=process.broker.executor, ack_type=ack_type, max_async_tasks=10)
    message = await process.genuine()
    assert (await process.broker.deliver(message, receiver)).acks == 1
    await refuses_copy(process, message)


def _fail() -> NoReturn:
    raise ConnectionError("the channel is closed")


@pytest.mark.parametrize("ack_type", [AcknowledgeType.WHEN_RECEIVED, AcknowledgeType.WHEN_EXECUTED])
async def test_a_message_whose_early_ack_fails_runs_when_it_is_delivered_again(
    process: Process, ack_type: AcknowledgeType
) -> None:
    receiver = Receiver(process.broker, executor=process.broker.executor, ack_type=ack_type, max_async_tasks=10)
    message = await process.genuine()
    with pytest.raises(ConnectionError):
        await process.broker.deliver(message, receiver, on_ack=_fail)
    assert process.broker.result_backend.results == {}
    process.ran.clear()
    assert (await process.broker.deliver(message, receiver)).result.return_value == 6
    assert len(process.ran) == 1
    await refuses_copy(process, message)


async def test_a_message_whose_own_ack_fails_runs_when_it_is_delivered_again(process: Process) -> None:
    @process.broker.task("manual", pipeline="data", ack_type="manual")
    async def manual(context: Context = TaskiqDepends()) -> int:
        process.ran.append(("manual", None))
        await context.ack()
        return 7

    message = await process.kick(manual)
    outcome = await process.broker.deliver(message, on_ack=_fail)
    assert isinstance(outcome.error, ConnectionError)
    assert (await process.broker.deliver(message)).result.return_value == 7
    assert len(process.ran) == 2
    await refuses_copy(process, message)


async def test_a_message_whose_last_ack_fails_is_refused_when_it_is_delivered_again_and_its_result_stays(
    process: Process,
) -> None:
    message = await process.genuine()
    with pytest.raises(ConnectionError):
        await process.broker.deliver(message, on_ack=_fail)
    before = dict(process.broker.result_backend.results)
    assert len(before) == 1
    await refuses_copy(process, message)
    assert process.broker.result_backend.results == before


@pytest.mark.parametrize("ack_type", [AcknowledgeType.WHEN_RECEIVED, AcknowledgeType.WHEN_EXECUTED])
async def test_what_is_acked_early_has_not_completed_before_its_result_is_stored(
    process: Process, ack_type: AcknowledgeType, monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver = Receiver(process.broker, executor=process.broker.executor, ack_type=ack_type, max_async_tasks=10)
    message = await process.genuine()
    storing = asyncio.Event()

    async def never(*_: object) -> None:
        storing.set()
        await asyncio.Event().wait()

    with monkeypatch.context() as patch:
        patch.setattr(process.broker.result_backend, "set_result", never)
        ended = asyncio.ensure_future(process.broker.deliver(message, receiver))
        await storing.wait()
        ended.cancel()  # as when the worker ends in the middle of it
        with pytest.raises(asyncio.CancelledError):
            await ended
    process.ran.clear()
    await process.runs(message)


async def test_a_message_that_another_acks_while_its_result_is_stored_is_acked_first(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a batch does, whose last message acks them all."""
    waiting: list[Context] = []

    @process.broker.task("batched", pipeline="data", ack_type="manual")
    async def batched(context: Context = TaskiqDepends()) -> None:
        waiting.append(context)

    message = await process.kick(batched)
    store = process.broker.result_backend.set_result

    async def acked_meanwhile(task_id: str, result: TaskiqResult[Any]) -> None:
        with pytest.raises(ConnectionError):
            await asyncio.create_task(waiting[0].ack())
        await store(task_id, result)

    with monkeypatch.context() as patch:
        patch.setattr(process.broker.result_backend, "set_result", acked_meanwhile)
        await process.broker.deliver(message, on_ack=_fail)
    await process.broker.deliver(message)
    assert len(waiting) == 2


async def test_a_message_that_another_acks_after_its_end_has_completed_before_that(process: Process) -> None:
    waiting: list[Context] = []

    @process.broker.task("batched", pipeline="data", ack_type="manual")
    async def batched(context: Context = TaskiqDepends()) -> None:
        process.ran.append(("batched", None))
        waiting.append(context)

    message = await process.kick(batched)
    await process.broker.deliver(message, on_ack=_fail)
    with pytest.raises(ConnectionError):
        await waiting[0].ack()
    await refuses_copy(process, message)


async def test_a_message_that_was_acked_early_and_has_no_result_because_a_hook_failed_runs_again(
    new_process: NewProcess,
) -> None:
    failing = Failing("post_execute")
    process = new_process(after=(failing,))
    receiver = Receiver(
        process.broker,
        executor=process.broker.executor,
        ack_type=AcknowledgeType.WHEN_RECEIVED,
        max_async_tasks=10,
    )
    message = await process.genuine()
    with pytest.raises(RuntimeError, match="post_execute"):
        await process.broker.deliver(message, receiver)
    failing.fails = False
    process.ran.clear()
    await process.runs(message)


async def test_what_a_task_does_not_ack_runs_when_it_is_delivered_again(process: Process) -> None:
    acks = False

    @process.broker.task("manual", pipeline="data", ack_type="manual")
    async def manual(context: Context = TaskiqDepends()) -> None:
        process.ran.append(("manual", None))
        if acks:
            await context.ack()

    message = await process.kick(manual)
    for _ in range(2):
        assert (await process.broker.deliver(message)).acks == 0
    acks = True
    assert (await process.broker.deliver(message)).acks == 1
    assert len(process.ran) == 3
    await refuses_copy(process, message)


async def test_a_batch_of_messages_that_the_last_one_acks_has_completed(process: Process) -> None:
    waiting: list[Context] = []

    @process.broker.task("batched", pipeline="data", ack_type="manual")
    async def batched(number: int, context: Context = TaskiqDepends()) -> None:
        process.ran.append(("batched", number))
        waiting.append(context)
        if len(waiting) == 3:
            for other in waiting:
                await other.ack()

    messages = [await process.kick(batched, number) for number in range(3)]
    for message in messages:
        await process.broker.deliver(message)
    for message in messages:
        await refuses_copy(process, message)


@pytest.mark.parametrize("how", ["no result", "rejected", "raised"])
async def test_a_message_that_ended_without_a_value_has_completed(process: Process, how: str) -> None:
    @process.broker.task("ends", pipeline="data")
    async def ends(context: Context = TaskiqDepends()) -> None:
        process.ran.append(("ends", None))
        if how == "no result":
            raise NoResultError
        if how == "rejected":
            context.reject()
        raise ValueError(how)

    message = await process.kick(ends)
    await process.broker.deliver(message)
    assert len(process.ran) == 1
    await refuses_copy(process, message)


async def test_a_requeued_message_is_a_new_one(process: Process) -> None:
    @process.broker.task("requeued", pipeline="data")
    async def requeued(context: Context = TaskiqDepends()) -> None:
        process.ran.append(("requeued", None))
        if len(process.ran) == 1:
            await context.requeue()

    first = await process.kick(requeued)
    await process.broker.deliver(first)
    second = process.broker.take()
    assert not (await process.broker.deliver(second)).result.is_err
    assert len(process.ran) == 2
    await refuses_copy(process, first)
    await refuses_copy(process, second)


async def test_a_copy_does_not_answer_who_waits_for_a_retry(new_process: NewProcess) -> None:
    process = new_process(after=(SimpleRetryMiddleware(),))

    @process.broker.task("retried", pipeline="data", retry_on_error=True, max_retries=3)
    async def retried() -> int:
        process.ran.append(("retried", None))
        if len(process.ran) < 3:
            raise ValueError
        return 7

    first = await process.kick(retried)
    assert (await process.broker.deliver(first)).stored == {}
    second = process.broker.take()
    ran = list(process.ran)
    await refuses_copy(process, first)
    process.ran[:] = ran
    assert (await process.broker.deliver(second)).stored == {}
    third = process.broker.take()
    assert (await process.broker.deliver(third)).result.return_value == 7
    for message in (first, second, third):
        await refuses_copy(process, message)


async def test_what_was_refused_may_run_when_that_is_allowed(process: Process, new_process: NewProcess) -> None:
    message = await process.genuine()
    strict = new_process(pipeline_acls={"data": {"execute": ["administrator"]}})
    await strict.broker.deliver(message)
    assert strict.ran == []
    await process.runs(message)


async def test_a_copy_that_is_only_monitored_runs_and_is_recorded(new_process: NewProcess) -> None:
    process = new_process(enforcement="monitor")
    message = await process.genuine()
    await process.broker.deliver(message)
    process.audit.take()
    outcome = await process.broker.deliver(message)
    assert outcome.result.return_value == 6
    assert len(process.ran) == 2
    assert [(entry.event, entry.reason) for entry in process.audit.take()] == [("task_authz_shadow_deny", "replayed")]


async def test_unsigned_messages_run_as_often_as_they_like_while_security_only_monitors(
    new_process: NewProcess,
) -> None:
    process = new_process(enforcement="monitor")
    bare = new_process(secured=False)
    message = await bare.kick(bare.clean, [1])
    for _ in range(2):
        await process.broker.deliver(message)
    assert len(process.ran) == 2


async def test_replays_can_be_allowed_and_that_is_said(
    new_process: NewProcess, caplog: pytest.LogCaptureFixture
) -> None:
    process = new_process(unsafe_allow_replays=True)
    assert "unsafe_allow_replays is set" in caplog.text
    message = await process.genuine()
    for _ in range(2):
        await process.runs(message)


async def test_a_process_does_not_know_what_another_has_run_if_they_share_nothing(
    process: Process, new_process: NewProcess
) -> None:
    message = await process.genuine()
    await process.runs(message)
    await new_process().runs(message)


@pytest.mark.parametrize("inplace", [False, True])
async def test_a_copy_that_is_kicked_again_on_an_inmemory_broker_is_refused(audit: AuditTrail, inplace: bool) -> None:
    security = FlowSecurity(config())
    broker = InMemoryBroker(await_inplace=inplace).with_middlewares(SecurityMiddleware(security))
    kicked: list[BrokerMessage] = []
    ran: list[int] = []
    original = broker.kick

    async def kick(message: BrokerMessage) -> None:
        kicked.append(message)
        await original(message)

    broker.kick = kick  # type: ignore[method-assign]  # listens in

    @broker.task("clean", pipeline="data")
    async def clean(number: int) -> int:
        ran.append(number)
        return number

    with security.acting_as(PROCESSOR):
        task = await clean.kiq(7)
    assert (await task.wait_result(timeout=5)).return_value == 7
    await broker.wait_all()
    audit.take()
    for _ in range(3):
        await original(kicked[0])
        await broker.wait_all()
    assert ran == [7]
    assert (await task.get_result()).return_value == 7
    assert [entry.event for entry in audit.take()] == ["task_replay"] * 3
    await broker.shutdown()


async def _runs_once(process: Process, task: Task, *args: object, receiver: Receiver | None = None) -> None:
    message = await process.kick(task, *args)
    outcome = await process.broker.deliver(message, receiver)
    assert not outcome.result.is_err, outcome.result.error
    assert await process.broker.deliver(message, receiver) == Outcome(acks=1, stored={})


async def test_a_copy_for_a_thread_is_refused(process: Process, tmp_path: Path) -> None:
    task = process.broker.task("sync", pipeline="data")(tasks.in_an_executor)
    await _runs_once(process, task, str(tmp_path / "mark"))


async def test_a_copy_for_a_process_pool_is_refused(process: Process, tmp_path: Path) -> None:
    task = process.broker.task("pooled", pipeline="data")(tasks.in_an_executor)
    with ProcessPoolExecutor(max_workers=1) as pool:
        receiver = Receiver(process.broker, executor=pool, max_async_tasks=10)
        await _runs_once(process, task, str(tmp_path / "mark"), receiver=receiver)


def _once(process: Process) -> Task:
    @process.broker.task("once", pipeline="data")
    @guard(at_most_once=True)
    async def once() -> int:
        process.ran.append(("once", None))
        return 7

    return once


async def test_a_message_that_may_run_once_does_not_run_again_where_it_was_interrupted(
    new_process: NewProcess,
) -> None:
    failing = Failing("post_execute")
    process = new_process(after=(failing,))
    message = await process.kick(_once(process))
    with pytest.raises(RuntimeError, match="post_execute"):
        await process.broker.deliver(message)
    failing.fails = False
    process.audit.take()
    outcome = await process.broker.deliver(message)
    assert len(process.ran) == 1
    assert outcome.acks == 1
    assert isinstance(outcome.error, AccessDeniedError)  # nobody waits for ever
    assert outcome.reason == "replayed"
    assert [entry.event for entry in process.audit.take()] == ["task_replay"]


async def test_the_result_of_a_message_that_may_run_once_stays(process: Process) -> None:
    message = await process.kick(_once(process))
    first = await process.broker.deliver(message)
    assert first.result.return_value == 7
    await refuses_copy(process, message)
    assert process.broker.result_backend.results == first.stored


@pytest.mark.parametrize("settings", [{}, {"unsafe_allow_replays": True}])
async def test_a_worker_does_not_start_that_cannot_keep_a_task_from_running_twice(
    new_process: NewProcess, settings: dict[str, Any]
) -> None:
    process = new_process(**settings)
    _once(process)
    process.broker.is_worker_process = True
    with pytest.raises(ConfigurationError, match="at_most_once, which needs a store that outlives"):
        await process.broker.startup()


async def test_a_worker_of_a_broadcast_remembers_for_itself_and_need_not_say_so(
    process: Process, caplog: pytest.LogCaptureFixture
) -> None:
    broker = Queue()
    broker.add_middlewares(SecurityMiddleware(process.security, broadcast=True))
    broker.is_worker_process = True
    await broker.startup()
    assert "remembers for itself" not in caplog.text


@pytest.mark.parametrize(
    ("settings", "is_worker", "said"),
    [
        ({}, True, True),
        ({}, False, False),
        ({"unsafe_allow_replays": True}, True, False),
        ({"shared_store": "redis://localhost:1"}, True, False),
    ],
)
async def test_a_worker_that_remembers_for_itself_says_so(
    new_process: NewProcess, settings: dict[str, Any], is_worker: bool, said: bool, caplog: pytest.LogCaptureFixture
) -> None:
    process = new_process(**settings)
    process.broker.is_worker_process = is_worker
    await process.broker.startup()
    assert ("each worker process remembers for itself what has completed" in caplog.text) is said
