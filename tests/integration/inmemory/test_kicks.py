"""Who kicks is decided about before anything is sent, and signed for exactly."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from uuid import uuid4

import pytest
from taskiq import Context, TaskiqDepends, TaskiqMiddleware, async_shared_broker
from taskiq.exceptions import SendTaskError
from taskiq.kicker import AsyncKicker
from taskiq.message import TaskiqMessage

from taskiq_flow_security import (
    AccessDeniedError,
    AuthenticationError,
    BackendUnavailableError,
    ConfigurationError,
    FlowSecurityError,
    PolicyChange,
    Principal,
    RateLimitExceededError,
    UnsignableMessageError,
    current_principal,
    guard,
)
from taskiq_flow_security.rate_limits import RateLimits
from tests.attacks.forging import PRINCIPAL, SIGNATURE, claims_of, principal_of, read
from tests.integration.inmemory import tasks
from tests.integration.inmemory.fixtures import NewProcess
from tests.integration.inmemory.harness import PROCESSOR, VIEWER, Clock, Process
from tests.integration.waiting import until

EVERYWHERE = Principal("carol", permissions=["execute"])


async def test_a_kick_without_a_principal_raises_before_anything_is_sent(process: Process) -> None:
    with pytest.raises(AuthenticationError) as refusal:
        await process.clean.kiq([1])
    assert refusal.value.reason == "no_principal"
    assert process.broker.sent == []


DENIED: dict[str, tuple[Principal, str]] = {
    "acl": (VIEWER, "acl"),
    "whitelist": (Principal("carol", roles=["processor"], pipelines=["reports"]), "whitelist"),
    "permission": (Principal("carol", roles=["processor"], permissions=["read"]), "permission"),
    "no permission at all": (Principal("carol", roles=["processor"], permissions=[]), "permission"),
}


@pytest.mark.parametrize(("principal", "reason"), DENIED.values(), ids=DENIED)
async def test_a_kick_that_the_policy_denies_raises_before_anything_is_sent(
    process: Process, principal: Principal, reason: str
) -> None:
    with pytest.raises(AccessDeniedError) as refusal:
        await process.kick(process.clean, [1], principal=principal)
    assert refusal.value.reason == reason
    assert process.broker.sent == []


async def test_a_kick_beyond_the_rate_limit_raises_before_anything_is_sent(process: Process) -> None:
    @process.broker.task("rare", pipeline="data")
    @guard(rate_limit="2/hour")
    async def rare() -> None: ...

    for _ in range(2):
        await process.kick(rare)
    with pytest.raises(RateLimitExceededError) as refusal:
        await process.kick(rare)
    assert 0 < refusal.value.retry_after <= 3600
    assert process.broker.sent == []
    await process.kick(rare, principal=Principal("carol", roles=["processor"]))


async def test_a_denied_kick_does_not_use_up_a_rate_limit(process: Process) -> None:
    @process.broker.task("rare", pipeline="data")
    @guard(rate_limit="1/hour")
    async def rare() -> None: ...

    for _ in range(3):
        with pytest.raises(AccessDeniedError):
            await process.kick(rare, principal=Principal("alice", roles=["viewer"]))
    await process.kick(rare)


@pytest.mark.parametrize(
    "limits",
    [
        {"task_rate_limits": {"clean": "2/hour"}},
        {"pipeline_rate_limits": {"data": "2/hour"}},
        {"principal_rate_limit": "2/hour"},
    ],
    ids=str,
)
async def test_kicks_are_limited_by_task_by_pipeline_and_by_principal(
    new_process: NewProcess, limits: dict[str, Any]
) -> None:
    process = new_process(**limits)
    for _ in range(2):
        await process.kick(process.clean, [1])
    with pytest.raises(RateLimitExceededError) as refusal:
        await process.kick(process.clean, [1])
    assert 0 < refusal.value.retry_after <= 3600
    assert process.broker.sent == []
    assert process.audit.entries[-1].rule is None  # the policy's would be the one that has allowed it
    await process.kick(process.clean, [1], principal=Principal("carol", roles=["processor"]))


async def test_each_limit_counts_what_it_names_and_nothing_else(new_process: NewProcess) -> None:
    process = new_process(task_rate_limits={"clean": "1/hour"}, pipeline_rate_limits={"data": "3/hour"})
    await process.kick(process.clean, [1])
    await process.kick(process.purge, [1])
    await process.kick(process.purge, [1])
    with pytest.raises(RateLimitExceededError, match="3 per 1 hour"):
        await process.kick(process.purge, [1])
    other = new_process(task_rate_limits={"clean": "1/hour"}, principal_rate_limit="1/hour", rate_limit_enabled=False)
    for _ in range(3):
        await other.kick(other.clean, [1])


async def test_a_kick_that_one_limit_denies_counts_against_no_other(new_process: NewProcess) -> None:
    process = new_process(task_rate_limits={"clean": "2/hour"}, principal_rate_limit="1/second")
    await process.kick(process.clean, [1])
    for _ in range(5):
        with pytest.raises(RateLimitExceededError, match="1 second"):
            await process.kick(process.clean, [1])
    await asyncio.sleep(1)
    await process.kick(process.clean, [1])
    with pytest.raises(RateLimitExceededError, match="1 hour") as refusal:  # which has to wait longer than the second
        await process.kick(process.clean, [1])
    assert refusal.value.retry_after > 3000


async def test_a_limit_can_be_changed_while_everything_runs(process: Process) -> None:
    admin = Principal("root", permissions=["admin"])
    await process.kick(process.clean, [1])
    change = PolicyChange(task_rate_limits={"clean": "1/hour"})
    await process.security.administration.change(admin, change)
    await process.kick(process.clean, [1])
    with pytest.raises(RateLimitExceededError):
        await process.kick(process.clean, [1])
    await process.security.administration.change(admin, PolicyChange(task_rate_limits={"clean": None}))
    await process.kick(process.clean, [1])


async def test_what_runs_is_limited_on_the_worker_where_that_is_asked_for(new_process: NewProcess) -> None:
    api, worker = new_process(), new_process(rate_limits_on_workers=True, task_rate_limits={"clean": "2/hour"})
    for _ in range(2):
        await worker.runs(await api.genuine())
    await worker.refuses(await api.genuine(), "rate_limit", RateLimitExceededError, serves=False)
    await worker.runs(await api.kick(api.clean, [1], principal=Principal("carol", roles=["processor"])))


async def _nowhere(*_: object, **__: object) -> None:
    raise BackendUnavailableError("away")


async def test_a_kick_that_cannot_be_counted_is_denied_unless_a_setting_says_otherwise(
    new_process: NewProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RateLimits, "hit_all", _nowhere)
    process = new_process(principal_rate_limit="2/hour")
    with pytest.raises(BackendUnavailableError):
        await process.kick(process.clean, [1])
    other = new_process(principal_rate_limit="2/hour", unsafe_allow_uncounted=True, rate_limits_on_workers=True)
    process.audit.take()
    data = await other.kick(other.clean, [1])
    (uncounted, enqueued) = process.audit.take()
    assert (uncounted.event, uncounted.reason) == ("task_authz_shadow_deny", "backend_unavailable")
    assert enqueued.event == "task_enqueued"
    assert (await other.broker.deliver(data)).acks == 1
    assert len(other.ran) == 1


async def test_a_task_that_cannot_be_counted_waits_until_it_can(
    new_process: NewProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    api, worker = new_process(), new_process(rate_limits_on_workers=True, task_rate_limits={"clean": "2/hour"})
    with monkeypatch.context() as away:
        away.setattr(RateLimits, "hit_all", _nowhere)
        delivered = asyncio.create_task(worker.broker.deliver(await api.genuine()))
        await until(lambda: any(entry.reason == "backend_unavailable" for entry in worker.audit.entries))
        assert worker.ran == []
    assert (await delivered).acks == 1
    assert len(worker.ran) == 1


async def test_a_message_waits_unacked_while_the_policy_is_stale_and_its_times_are_checked_again(
    new_process: NewProcess, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    api, worker = new_process(), new_process()
    kicks = [await api.genuine(), await api.kick(api.clean.kicker().with_labels(queue_ttl=60), [1])]
    live = worker.security.live
    with monkeypatch.context() as away:
        away.setattr(live._stored._store, "mark", _nowhere)
        live.stale = True
        deliveries = [asyncio.create_task(worker.broker.deliver(message)) for message in kicks]
        await asyncio.sleep(0.3)
        assert not any(delivery.done() for delivery in deliveries)
        denied = [(entry.event, entry.reason) for entry in worker.audit.take() if entry.outcome == "deny"]
        assert denied == [("task_authz_deny", "backend_unavailable")] * 2
        clock.now += 80
    outcomes = await asyncio.wait_for(asyncio.gather(*deliveries), 10)
    assert [outcome.acks for outcome in outcomes] == [1, 1]
    (error,) = [result.error for result in worker.broker.result_backend.results.values() if result.is_err]
    assert isinstance(error, AuthenticationError)
    assert error.reason == "expired"
    assert len(worker.ran) == 1


def _nest(depth: int) -> list[object]:
    nest: list[object] = []
    for _ in range(depth):
        nest = [nest]
    return nest


UNSIGNABLE: dict[str, object] = {
    "a lone surrogate": "\ud800",
    "bytes that are no text": b"\xff\xfe",
    "a lone surrogate as a key": {"\ud800": 1},
    "a nest": _nest(300),
    "an object": object(),
}


@pytest.mark.parametrize("value", UNSIGNABLE.values(), ids=UNSIGNABLE)
async def test_a_value_that_cannot_be_signed_is_named_at_the_kick_before_anything_is_sent(
    process: Process, value: object
) -> None:
    with pytest.raises((UnsignableMessageError, SendTaskError)) as refusal:
        await process.kick(process.echo, value)
    cause = refusal.value.__cause__ or refusal.value
    assert isinstance(cause, UnsignableMessageError)
    assert process.broker.sent == []
    assert [(entry.outcome, entry.reason) for entry in process.audit.take()] == [("deny", "unsignable")]


@pytest.mark.parametrize("label", ["delay", "queue_ttl"])
@pytest.mark.parametrize("value", ["tomorrow", "nan", "inf", "-1", "1e400", ""])
async def test_a_label_that_says_no_time_is_named_at_the_kick_before_anything_is_sent(
    process: Process, label: str, value: str
) -> None:
    with pytest.raises((UnsignableMessageError, SendTaskError)):
        await process.kick(process.echo.kicker().with_labels(**{label: value}), 1)
    assert process.broker.sent == []


@pytest.mark.parametrize(
    ("labels", "pipeline", "reason"), [({"queue_ttl": "soon"}, "data", "unsignable"), ({}, 5, "misconfigured")]
)
async def test_a_mistake_of_who_kicks_is_not_recorded_as_an_error_of_ours(
    process: Process, labels: dict[str, str], pipeline: object, reason: str
) -> None:
    @process.broker.task("mistaken", pipeline=pipeline)
    async def mistaken() -> None: ...

    with pytest.raises((UnsignableMessageError, ConfigurationError)):
        await process.kick(mistaken.kicker().with_labels(**labels))
    assert [(entry.event, entry.reason) for entry in process.audit.take()] == [("task_authz_deny", reason)]


async def test_a_message_may_wait_for_its_delay_and_its_time_to_live(process: Process) -> None:
    message = await process.kick(process.echo.kicker().with_labels(delay=100_000, queue_ttl=10), 1)
    process.clock.now += 100_010
    await process.runs(message)


@pytest.mark.parametrize("labels", [{"delay": 172_800}, {"queue_ttl": 172_801}, {"delay": 1e300}, {"queue_ttl": 1e300}])
async def test_no_label_makes_a_principal_last_longer_than_the_settings_say(
    process: Process, labels: dict[str, float]
) -> None:
    with pytest.raises(UnsignableMessageError, match="principal_ttl"):
        await process.kick(process.echo.kicker().with_labels(**labels), 1)
    assert process.broker.sent == []


async def test_a_login_that_has_ended_is_not_issued_any_more(process: Process) -> None:
    ended = Principal("alice", ["processor"], ["execute"], expires_at=process.clock.now + 60)
    message = await process.kick(process.echo, 1, principal=ended)
    process.clock.now += 71
    for kick in (lambda: process.kick(process.echo, 1, principal=ended), lambda: _labels(process, ended)):
        with pytest.raises(AuthenticationError) as refusal:
            await kick()
        assert refusal.value.reason == "expired"
    await process.runs(message)


async def _labels(process: Process, principal: Principal) -> None:
    process.security.labels_for(principal)


async def test_an_explicit_kick_runs_for_its_principal(process: Process) -> None:
    labels = process.security.labels_for(PROCESSOR)
    assert labels.keys() == {PRINCIPAL}
    await process.clean.kicker().with_labels(**labels).kiq([1])
    message = read(process.broker.take())
    assert principal_of(message) == labels[PRINCIPAL]
    assert claims_of(principal_of(message))["sub"] == "alice"


async def test_an_explicit_kick_goes_before_whoever_acts(process: Process) -> None:
    labels = process.security.labels_for(PROCESSOR)
    with process.security.acting_as(VIEWER):
        await process.clean.kicker().with_labels(**labels).kiq([1])
        with pytest.raises(AccessDeniedError):
            await process.clean.kiq([1])
    assert claims_of(principal_of(read(process.broker.take())))["sub"] == "alice"


async def test_an_explicit_kick_is_decided_about_too(process: Process) -> None:
    with process.security.acting_as(PROCESSOR), pytest.raises(AccessDeniedError):
        await process.clean.kicker().with_labels(**process.security.labels_for(VIEWER)).kiq([1])
    assert process.broker.sent == []


async def test_labels_for_a_principal_can_be_used_many_times(process: Process) -> None:
    labels = process.security.labels_for(PROCESSOR)
    for _ in range(3):
        await process.clean.kicker().with_labels(**labels).kiq([1])
        await process.runs(process.broker.take())


async def test_a_kicker_can_be_used_many_times(process: Process) -> None:
    kicker = process.clean.kicker().with_labels(**process.security.labels_for(PROCESSOR))
    for _ in range(3):
        await kicker.kiq([1])
        await process.runs(process.broker.take())


async def test_a_signature_that_a_kick_brings_is_thrown_away(process: Process) -> None:
    await process.runs(await process.kick(process.clean.kicker().with_labels(**{SIGNATURE: "a..b"}), [1]))


async def test_a_registered_tasks_labels_keep_no_label_of_ours(process: Process) -> None:
    await process.clean.kicker().with_labels(**process.security.labels_for(PROCESSOR)).kiq([1])
    await process.broker.deliver(process.broker.take())
    assert process.clean.labels == {"pipeline": "data"}


async def test_acting_nests_and_unwinds(process: Process) -> None:
    with process.security.acting_as(PROCESSOR):
        with process.security.acting_as(VIEWER):
            assert current_principal() == VIEWER
            with process.security.acting_as(EVERYWHERE):
                assert current_principal() == EVERYWHERE
            assert current_principal() == VIEWER
        assert current_principal() == PROCESSOR
    with pytest.raises(AuthenticationError):
        current_principal()


async def test_acting_unwinds_after_an_exception(process: Process) -> None:
    with pytest.raises(LookupError), process.security.acting_as(PROCESSOR):
        raise LookupError
    with pytest.raises(AuthenticationError):
        current_principal()


async def test_those_who_act_at_the_same_time_kick_for_themselves(process: Process) -> None:
    async def kick(number: int) -> None:
        with process.security.acting_as(Principal(f"user-{number}", roles=["processor"])):
            await asyncio.gather(*(process.echo.kiq(number) for _ in range(3)))

    await asyncio.gather(*map(kick, range(10)))
    for data in process.broker.sent:
        message = read(data)
        assert claims_of(principal_of(message))["sub"] == f"user-{message.args[0]}"


async def test_one_principal_is_issued_once_for_all_kicks_of_a_scope(process: Process) -> None:
    with process.security.acting_as(PROCESSOR):
        for _ in range(3):
            await process.echo.kiq(1)
    assert len({principal_of(read(data)) for data in process.broker.sent}) == 1


async def test_acting_for_a_pipeline_names_it_for_tasks_without_one(process: Process) -> None:
    with process.security.acting_as(PROCESSOR, pipeline="data"):
        await process.loose.kiq()
    message = process.broker.take()
    assert read(message).labels["pipeline"] == "data"
    await process.runs(message)


async def test_who_acts_with_less_goes_on_for_the_pipeline_and_nobody_else_does(process: Process) -> None:
    with process.security.acting_as(PROCESSOR, pipeline="data"):
        with process.security.acting_as(current_principal().restrict(permissions=["execute"])):
            await process.loose.kiq()
        assert read(process.broker.take()).labels["pipeline"] == "data"
        with process.security.acting_as(EVERYWHERE):
            await process.loose.kiq()
        assert "pipeline" not in read(process.broker.take()).labels


async def test_acting_for_a_pipeline_does_not_rename_that_of_a_registered_task(process: Process) -> None:
    with process.security.acting_as(PROCESSOR, pipeline="reports"):
        await process.clean.kiq([1])
    message = process.broker.take()
    assert read(message).labels["pipeline"] == "data"
    await process.runs(message)


async def test_acting_for_a_pipeline_that_one_may_not_run_is_denied(process: Process) -> None:
    with process.security.acting_as(PROCESSOR, pipeline="reports"), pytest.raises(AccessDeniedError) as refusal:
        await process.loose.kiq()
    assert refusal.value.reason == "acl"


async def test_a_label_that_names_another_pipeline_than_one_acts_for_is_denied(process: Process) -> None:
    with process.security.acting_as(EVERYWHERE, pipeline="data"), pytest.raises(AccessDeniedError) as refusal:
        await process.loose.kicker().with_labels(pipeline="elsewhere").kiq()
    assert refusal.value.reason == "pipeline_mismatch"


async def test_children_stay_in_the_pipeline_that_their_parent_was_kicked_for(process: Process) -> None:
    @process.broker.task("parent")
    async def parent() -> None:
        await process.loose.kiq()

    with process.security.acting_as(PROCESSOR, pipeline="data"):
        await parent.kiq()
    await process.broker.deliver(process.broker.take())
    message = process.broker.take()
    assert read(message).labels["pipeline"] == "data"
    await process.runs(message)


async def test_a_child_under_the_task_id_of_its_parent_is_refused_as_any_other(process: Process) -> None:
    @process.broker.task("parent", pipeline="data")
    async def parent(context: Context = TaskiqDepends()) -> None:
        await process.report.kicker().with_task_id(context.message.task_id).kiq()

    outcome = await process.broker.deliver(await process.kick(parent))
    assert process.broker.sent == []
    assert outcome.reason == "acl"


async def test_a_child_under_the_task_id_of_its_parent_counts_against_its_rate_limit(process: Process) -> None:
    @process.broker.task("rare", pipeline="data")
    @guard(rate_limit="1/hour")
    async def rare() -> None: ...

    @process.broker.task("parent", pipeline="data")
    async def parent(context: Context = TaskiqDepends()) -> None:
        for _ in range(3):
            await rare.kicker().with_task_id(context.message.task_id).kiq()

    outcome = await process.broker.deliver(await process.kick(parent))
    assert len(process.broker.sent) == 1
    assert isinstance(outcome.error, RateLimitExceededError)


async def test_nothing_but_a_flow_security_error_says_why_a_kick_is_refused(process: Process) -> None:
    attempts: list[Any] = [
        process.clean.kiq([1]),
        process.clean.kicker().with_labels(**{PRINCIPAL: "x"}).kiq([1]),
        process.clean.kicker().with_labels(pipeline="reports").kiq([1]),
    ]
    for attempt in attempts:
        with pytest.raises(FlowSecurityError):
            await attempt


async def test_a_kick_works_from_another_thread(process: Process) -> None:
    with process.security.acting_as(PROCESSOR):
        await asyncio.to_thread(asyncio.run, process.clean.kiq([1]))
    await process.runs(process.broker.take())


async def test_an_explicit_kick_of_a_shared_task_is_not_made_in_the_name_of_a_former_one(process: Process) -> None:
    shared = async_shared_broker.register_task(tasks.asks_in_the_loop, f"shared-{uuid4().hex}", pipeline="data")
    try:
        for principal in (PROCESSOR, Principal("carol", roles=["processor"])):
            kicker = shared.kicker().with_broker(process.broker).with_labels(**process.security.labels_for(principal))
            with pytest.raises(ConfigurationError):
                await kicker.kiq()
        with pytest.raises(AuthenticationError):
            await shared.kicker().with_broker(process.broker).kiq()
        assert process.broker.sent == []
    finally:
        async_shared_broker.global_task_registry.pop(shared.task_name)


class _Changes(TaskiqMiddleware):
    """Does something to a message after it was decided about, to the message itself or to a copy."""

    def __init__(self, change: Callable[[TaskiqMessage], None], *, copies: bool) -> None:
        super().__init__()
        self._change, self._copies = change, copies

    async def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
        changed = message.model_copy(update={"labels": dict(message.labels)}) if self._copies else message
        self._change(changed)
        return changed


@pytest.mark.parametrize("copies", [False, True])
async def test_a_principal_that_is_put_on_after_the_decision_is_the_one_that_is_signed_for(
    new_process: NewProcess, copies: bool
) -> None:
    others = new_process().security.labels_for(VIEWER)
    process = new_process(after=(_Changes(lambda message: message.labels.update(others), copies=copies),))
    message = await process.genuine()
    assert claims_of(principal_of(read(message)))["sub"] == VIEWER.subject
    assert (await process.broker.deliver(message)).reason == "acl"


@pytest.mark.parametrize("copies", [False, True])
async def test_a_time_to_live_that_is_set_after_the_decision_is_the_one_that_is_signed(
    new_process: NewProcess, copies: bool
) -> None:
    short = _Changes(lambda message: message.labels.update(queue_ttl="60"), copies=copies)
    process = new_process(after=(short,))
    message = await process.genuine()
    process.clock.now += 100
    assert (await process.broker.deliver(message)).reason == "expired"


class _Waits(TaskiqMiddleware):
    """Lets no message go on, or a copy of it, before two are there; the first one goes on first."""

    def __init__(self, *, copies: bool) -> None:
        super().__init__()
        self._copies, self._waiting, self._both = copies, 0, asyncio.Event()

    async def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
        self._waiting += 1
        if self._waiting == 2:
            self._both.set()
            await asyncio.sleep(0)
        await self._both.wait()
        return message.model_copy() if self._copies else message


@pytest.mark.parametrize("copies", [False, True])
async def test_kicks_under_one_id_at_the_same_time_are_each_signed_for_who_makes_them(
    new_process: NewProcess, copies: bool
) -> None:
    process = new_process(after=(_Waits(copies=copies),), pipeline_acls={})
    # As alike as two principals can be: what is signed for one of them must not be found for the other.
    alike: dict[str, Any] = {"permissions": ["execute"], "txn": "one"}
    kickers = {login: Principal("carol", **alike, token_id=str(login), token_issued_at=1.0) for login in (1, 2)}

    async def kick(login: int) -> None:
        with process.security.acting_as(kickers[login]):
            await process.clean.kicker().with_task_id("one-id").kiq([login])

    await asyncio.gather(*map(kick, kickers))
    sent = [read(data) for data in process.broker.sent]
    logins = {message.args[0][0]: claims_of(principal_of(message))["login"] for message in sent}
    assert {login: claim["jti"] for login, claim in logins.items()} == {1: "1", 2: "2"}


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("deep", [False, True])
async def test_what_was_decided_holds_for_a_copy_of_the_message(
    new_process: NewProcess, given: bool, deep: bool
) -> None:
    class Copies(TaskiqMiddleware):
        async def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
            return message.model_copy(deep=deep)

    process = new_process(after=(Copies(),))

    @process.broker.task("rare", pipeline="data")
    @guard(rate_limit="1/hour")
    async def rare() -> None:
        process.ran.append(("rare", None))

    labels = process.security.labels_for(PROCESSOR) if given else {}
    process.audit.take()
    message = await process.kick(rare.kicker().with_labels(**labels))
    assert [(entry.event, entry.reason) for entry in process.audit.take()] == [("task_enqueued", "acl")]
    await process.runs(message)


async def test_kicks_that_are_given_up_leave_nothing_behind(new_process: NewProcess) -> None:
    def give_up(_message: TaskiqMessage) -> None:
        raise LookupError

    process = new_process(after=(_Changes(give_up, copies=False),))
    with process.security.acting_as(PROCESSOR):
        for _ in range(1000):
            with suppress(LookupError):
                await process.clean.kiq([1])
    gc.collect()
    assert len([found for found in gc.get_objects() if type(found) is TaskiqMessage]) < 500


async def test_a_rate_limit_that_the_sender_does_not_know_counts_on_the_worker(new_process: NewProcess) -> None:
    api, worker = new_process(), new_process()

    @worker.broker.task("rare", pipeline="data")
    @guard(rate_limit="2/hour")
    async def rare() -> None:
        worker.ran.append(("rare", None))

    with api.security.acting_as(PROCESSOR, pipeline="data"):
        for _ in range(3):
            await AsyncKicker[Any, Any]("rare", api.broker, {}).kiq()
    outcomes = [await worker.broker.deliver(message) for message in api.broker.sent]
    assert [outcome.result.is_err for outcome in outcomes] == [False, False, True]
    assert isinstance(outcomes[-1].error, RateLimitExceededError)


async def test_a_rate_limit_that_has_counted_at_the_kick_does_not_count_on_the_worker(process: Process) -> None:
    @process.broker.task("rare", pipeline="data")
    @guard(rate_limit="1/hour")
    async def rare() -> None:
        process.ran.append(("rare", None))

    message = await process.kick(rare)
    await process.runs(message)


@pytest.mark.parametrize("copies", [False, True])
async def test_a_kick_counts_once_whatever_becomes_of_its_message(new_process: NewProcess, copies: bool) -> None:
    process = new_process(after=(_Changes(lambda _message: None, copies=copies),))

    @process.broker.task("rare", pipeline="data")
    @guard(rate_limit="1/hour")
    async def rare() -> None:
        process.ran.append(("rare", None))

    message = await process.kick(rare)
    assert [entry.reason for entry in process.audit.take()] == ["acl"]
    await process.runs(message)


async def test_many_kicks_at_the_same_time_count_once_each(new_process: NewProcess) -> None:
    class Slow(TaskiqMiddleware):
        async def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
            await asyncio.sleep(0.01)
            return message

    process = new_process(after=(Slow(),))

    @process.broker.task("rare", pipeline="data")
    @guard(rate_limit="600/hour")
    async def rare() -> None:
        process.ran.append(("rare", None))

    with process.security.acting_as(PROCESSOR):
        await asyncio.gather(*(rare.kiq() for _ in range(600)))
    for message in process.broker.sent:
        await process.broker.deliver(message)
    assert len(process.ran) == 600


class _Measures(TaskiqMiddleware):
    """Has the message dumped to know how long it is."""

    def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
        with suppress(FlowSecurityError):
            self.broker.formatter.dumps(message)
        return message


@pytest.mark.parametrize("position", ["before", "after"])
async def test_a_message_that_is_dumped_before_it_is_sent_stays_of_whom_it_was_given(
    new_process: NewProcess, position: str
) -> None:
    process = new_process(before=(_Measures(),)) if position == "before" else new_process(after=(_Measures(),))
    labels = process.security.labels_for(VIEWER)
    with process.security.acting_as(PROCESSOR), pytest.raises(AccessDeniedError):
        await process.clean.kicker().with_labels(**labels).kiq([1])
    labels = process.security.labels_for(PROCESSOR)
    with process.security.acting_as(VIEWER):
        await process.clean.kicker().with_labels(**labels).kiq([1])
    assert claims_of(principal_of(read(process.broker.take())))["sub"] == PROCESSOR.subject


async def test_a_kick_that_a_middleware_makes_in_the_middle_of_another_is_one_of_its_own(
    new_process: NewProcess,
) -> None:
    class Logs(TaskiqMiddleware):
        async def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
            if message.task_name == "rare":
                with process.security.acting_as(EVERYWHERE):
                    await process.echo.kiq(1)
            return message

    process = new_process(after=(Logs(),), pipeline_acls={})

    @process.broker.task("rare", pipeline="data")
    @guard(rate_limit="1/hour")
    async def rare() -> None:
        process.ran.append(("rare", None))

    with process.security.acting_as(Principal("dora", permissions=["execute"])):
        await rare.kiq()
    inner, outer = process.broker.sent
    assert [claims_of(principal_of(read(data)))["sub"] for data in (inner, outer)] == ["carol", "dora"]
    assert not (await process.broker.deliver(outer)).result.is_err
