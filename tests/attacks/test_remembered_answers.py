"""That something was allowed before lets nothing through that is not allowed now."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import Context
from datetime import datetime, timezone
from enum import Enum
from inspect import unwrap
from typing import Any, ClassVar, NamedTuple
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from taskiq import TaskiqDepends, TaskiqMessage, TaskiqMiddleware
from taskiq.exceptions import SendTaskError
from taskiq.labels import LabelType
from taskiq.message import BrokerMessage
from taskiq.serializers import MSGPackSerializer

from taskiq_flow_security import AuthenticationError, FlowSecurityError, Principal, acting, current_principal, guard
from taskiq_flow_security.broker.admissions import Admissions
from taskiq_flow_security.broker.clearances import Clearances
from taskiq_flow_security.core.events import AuditEvent
from taskiq_flow_security.core.events import Outcome as AuditOutcome
from taskiq_flow_security.core.policy import AccessRequest, Decision
from taskiq_flow_security.errors import UnsignableMessageError
from taskiq_flow_security.ids import new_id
from taskiq_flow_security.live_policy import InForce, PolicyChange, Revocation
from tests.attacks.forging import claims_of, header_of, principal_of, read, sign, signature_of, write
from tests.integration.inmemory.fixtures import NewProcess
from tests.integration.inmemory.harness import PROCESSOR, AuditTrail, Clock, Process

ADMIN = Principal("root", permissions=["admin"])
KEY = "the-key-of-the-processor"


ARGUMENTS = {"clean": ([1],), "guarded": ([1],)}


class Regular:
    """A caller that kicks the same again and again, in one and the same name."""

    def __init__(self, process: Process, principal: Principal = PROCESSOR, pipeline: str | None = None) -> None:
        self.process = process
        with process.security.acting_as(principal, pipeline=pipeline):
            self._actor = acting.current()

    async def kick(
        self, task: str = "clean", labels: dict[str, Any] | None = None, task_id: str | None = None, **kwargs: Any
    ) -> bytes:
        registered = self.process.broker.find_task(task)
        assert registered is not None
        kicker = registered.kicker().with_labels(**(labels or {}))
        with acting.scope(self._actor):
            await (kicker.with_task_id(task_id) if task_id else kicker).kiq(*ARGUMENTS.get(task, ()), **kwargs)
        return self.process.broker.take()

    async def settles_in(self, task: str = "clean", labels: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Kick and run until both sides remember that this is allowed."""
        for _ in range(3):
            await self.process.runs(await self.kick(task, labels, **kwargs))
        with patch.object(self.process.security.authorization, "decide", side_effect=AssertionError):
            await self.process.runs(await self.kick(task, labels, **kwargs))


@pytest.fixture
def api_keys(clock: Clock) -> dict[str, Any]:
    ends = datetime.fromtimestamp(clock.now + 60, timezone.utc)
    return {KEY: {"role": "processor", "permissions": ["execute"], "expires_at": ends.isoformat()}}


async def _narrow(process: Process) -> None:
    await process.security.administration.change(ADMIN, PolicyChange(pipeline_acls={"data": {}}))


async def _take_roles(process: Process) -> None:
    await process.security.administration.change(ADMIN, PolicyChange(roles={"alice": []}))


async def _revoke_subject(process: Process) -> None:
    await process.security.administration.revoke(ADMIN, Revocation(subject="alice"))


async def _revoke_all(process: Process) -> None:
    process.clock.now += 1
    await process.security.administration.revoke(ADMIN, Revocation(issued_before=process.clock.now))


async def _nothing() -> None:
    """Nobody knows the policy."""


Change = Callable[[Process], Awaitable[None]]

CHANGES: dict[str, tuple[Change, str]] = {
    "an ACL was narrowed": (_narrow, "acl"),
    "roles were taken": (_take_roles, "acl"),
    "the subject was revoked": (_revoke_subject, "revoked"),
    "all was revoked": (_revoke_all, "revoked"),
}


@pytest.mark.parametrize(("change", "reason"), CHANGES.values(), ids=CHANGES)
async def test_what_was_allowed_is_denied_at_the_kick_and_on_the_worker_once(
    process: Process, change: Change, reason: str
) -> None:
    regular = Regular(process)
    await regular.settles_in()
    queued = await regular.kick()
    await change(process)
    process.audit.take()
    if reason != "revoked" or change is _revoke_subject:  # else its token is only made anew
        with pytest.raises(FlowSecurityError) as refusal:
            await regular.kick()
        assert refusal.value.reason == reason
    outcome = await process.broker.deliver(queued)
    assert outcome.reason == reason
    assert process.ran == []


async def test_what_was_allowed_with_an_api_key_ends_with_it(new_process: NewProcess, api_keys: dict[str, Any]) -> None:
    process = new_process(api_keys=api_keys)
    regular = Regular(process, await process.security.authenticate(api_key=KEY))
    await regular.settles_in()
    queued = await regular.kick()
    process.clock.now += 60
    with pytest.raises(FlowSecurityError) as refusal:
        await regular.kick()
    assert refusal.value.reason == "api_key_expired"
    assert (await process.broker.deliver(queued)).reason == "api_key_expired"


async def test_what_was_allowed_is_not_while_nobody_knows_the_policy(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    regular = Regular(process)
    await regular.settles_in()
    monkeypatch.setattr(process.security.live, "catch_up", _nothing)
    monkeypatch.setattr(process.security.live, "caught_up", lambda: False)
    process.security.live.stale = True
    with pytest.raises(FlowSecurityError) as refusal:
        await regular.kick()
    assert refusal.value.reason == "backend_unavailable"


async def test_nothing_is_admitted_while_nobody_knows_the_policy(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    regular = Regular(process)
    await regular.settles_in()
    queued = await regular.kick()
    monkeypatch.setattr(process.security.live, "catch_up", _nothing)
    monkeypatch.setattr(process.security.live, "caught_up", lambda: False)
    process.security.live.stale = True
    handling = process.broker.receiver.callback(queued)  # that nobody listened for, so that it does not wait
    await Context().run(asyncio.create_task, handling)
    assert process.ran == []


async def test_what_is_allowed_while_the_policy_is_replaced_is_remembered_under_neither(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    regular, security = Regular(process), process.security
    queued = [await regular.kick() for _ in range(3)]
    narrow = security.live.document.model_copy(update={"pipeline_acls": {"data": {}}})
    decide = security.authorization.decide

    def decide_too_late(principal: Principal, request: AccessRequest) -> Decision:
        decision = decide(principal, request)
        security.live.in_force = InForce.of(security.config, narrow)  # as another thread may at any time
        return decision

    await process.broker.deliver(queued[0])
    monkeypatch.setattr(security.authorization, "decide", decide_too_late)
    await process.broker.deliver(queued[1])
    monkeypatch.undo()
    process.ran.clear()
    assert (await process.broker.deliver(queued[2])).reason == "acl"
    assert process.ran == []


async def test_a_principal_lasts_as_long_as_its_message_may_wait_whatever_was_allowed_before(
    new_process: NewProcess,
) -> None:
    process = new_process(principal_ttl=1000, queue_ttl=600)
    regular = Regular(process)
    for pause in (0, 0, 0, 0, 350, 100, 350):
        process.clock.now += pause
        message = read(await regular.kick())
        assert claims_of(principal_of(message))["exp"] >= header_of(signature_of(message))["exp"]


async def test_what_another_middleware_adds_after_the_decision_counts(new_process: NewProcess) -> None:
    class Hurry(TaskiqMiddleware):
        labels: ClassVar[dict[str, str]] = {}

        def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
            message.labels.update(self.labels)
            return message

    hurry = Hurry()
    process = new_process(after=(hurry,))
    regular = Regular(process)
    await regular.settles_in()
    hurry.labels["queue_ttl"] = "10"
    header = header_of(signature_of(read(await regular.kick())))
    assert header["exp"] == int(process.clock.now) + 10


class Meddler(TaskiqMiddleware):
    """Does something with each message before it is sent."""

    def __init__(self) -> None:
        super().__init__()
        self.do: Callable[[TaskiqMessage], object] = lambda _message: None

    def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
        self.do(message)
        return message


async def test_the_message_says_what_another_middleware_makes_of_it_after_the_decision(new_process: NewProcess) -> None:
    after = Meddler()
    process = new_process(after=(after,), task_acls={"loose": {"execute": ["processor"]}})
    regular = Regular(process)
    await regular.settles_in("loose", {"count": "7"})
    after.do = lambda message: message.labels_types.update(count=LabelType.INT)  # type: ignore[union-attr]
    message = read(await regular.kick("loose", {"count": "7"}))
    assert message.labels_types == {"count": LabelType.INT}
    after.do = lambda message: setattr(message, "task_name", "report")
    queued = await regular.kick("loose", {"count": "7"})
    assert read(queued).task_name == "report"
    assert (await process.broker.deliver(queued)).reason == "acl"


async def test_what_one_broker_has_allowed_is_not_signed_by_another(new_process: NewProcess) -> None:
    after = Meddler()
    process, other = new_process(after=(after,)), new_process()
    regular = Regular(process)
    await regular.settles_in()
    after.do = other.broker.formatter.dumps
    with pytest.raises(AuthenticationError) as refusal:
        await regular.kick()
    assert refusal.value.reason == "no_principal"


async def test_a_principal_that_a_message_was_given_counts_however_early_it_was_taken_off(
    new_process: NewProcess,
) -> None:
    measure = Meddler()
    process = new_process(before=(measure,))
    regular = Regular(process)
    await regular.settles_in()
    reporter = process.security.labels_for(Principal("carol", roles=["processor", "reporter"]))

    def measured(message: TaskiqMessage) -> None:
        message.labels.update(reporter)
        process.broker.formatter.dumps(message)  # to know how long it is; whatever is dumped loses its credentials

    measure.do = measured
    assert claims_of(principal_of(read(await regular.kick())))["sub"] == "carol"


async def test_a_signature_that_a_caller_gives_is_no_part_of_the_message_however_often(process: Process) -> None:
    regular = Regular(process)
    for _ in range(5):
        message = await regular.kick(labels={"taskiq_flow_signature": "made-up"})
        assert header_of(signature_of(read(message)))["alg"] == "HS256"
        await process.runs(message)


async def test_a_label_that_is_equal_and_not_the_same_is_sent_as_it_is(new_process: NewProcess) -> None:
    meddler = Meddler()
    process = new_process(before=(meddler,))
    regular = Regular(process)
    for value in (1, 1, 1, 1, True, 1.0):
        meddler.do = lambda message, value=value: message.labels.update(level=value)  # type: ignore[misc]
        arrived = read(await regular.kick()).labels["level"]
        assert (arrived, type(arrived)) == (value, type(value))


async def test_the_pipeline_that_all_is_done_for_is_named_however_often(new_process: NewProcess) -> None:
    process = new_process()
    regular = Regular(process, pipeline="nightly")
    for _ in range(5):
        assert header_of(signature_of(read(await regular.kick())))["pipeline"] == "nightly"


async def test_a_message_that_comes_too_late_is_refused_however_often_others_like_it_have_run(process: Process) -> None:
    regular = Regular(process)
    queued = await regular.kick(labels={"queue_ttl": "60"})
    await regular.settles_in(labels={"queue_ttl": "60"})
    process.clock.now += 120
    assert (await process.broker.deliver(queued)).reason == "expired"
    assert process.ran == []


async def test_nobody_runs_on_the_terms_of_the_message_before(process: Process) -> None:
    seen = []

    @process.broker.task("watched", pipeline="data")
    async def watched() -> None:
        actor = acting.current()
        assert actor is not None
        seen.append(actor.actors)

    regular = Regular(process)
    plain = [await regular.kick("watched") for _ in range(8)]
    terms = [{"act": ["other"], "jti": f"passed-on-{number}"} for number in range(4)]
    passed_on = [write(sign(read(message), header=said)) for message, said in zip(plain[:4], terms, strict=True)]
    for message in (*passed_on, *plain[4:]):
        await process.broker.deliver(message)
    assert seen == [("other",)] * 4 + [()] * 4


async def test_what_runs_at_most_once_does_however_often_others_like_it_have(process: Process) -> None:
    copies: list[str] = []

    @process.broker.task("charge", pipeline="data")
    @guard(at_most_once=True)
    async def charge() -> None:
        if queued:
            copies.append((await process.broker.deliver(queued.pop())).reason)

    regular = Regular(process)
    queued: list[bytes] = []
    for _ in range(5):
        message = await regular.kick("charge")
        queued.append(message)
        await process.broker.deliver(message)
    assert copies == ["replayed"] * 5


async def test_arguments_that_can_be_read_once_are_sent_each_time(process: Process) -> None:
    regular = Regular(process)
    for _ in range(5):
        with acting.scope(regular._actor):
            await process.clean.kiq(number for number in (1, 2))
        assert read(process.broker.take()).args == [[1, 2]]


async def test_arguments_that_can_be_read_once_and_not_signed_are_never_sent(process: Process) -> None:
    regular = Regular(process)
    await regular.settles_in()
    for _ in range(3):
        with acting.scope(regular._actor), pytest.raises(SendTaskError) as refusal:
            await process.clean.kiq(text for text in ("1", chr(0xD800)))
        assert isinstance(refusal.value.__cause__, UnsignableMessageError)


async def test_a_value_that_nobody_can_sign_is_the_same_error_each_time(process: Process) -> None:
    regular = Regular(process)
    for _ in range(5):
        with acting.scope(regular._actor), pytest.raises(SendTaskError) as refusal:
            await process.clean.kiq(object())
        assert isinstance(refusal.value.__cause__, UnsignableMessageError)


class Stamped(TaskiqMessage):  # type: ignore[no-redef]  # for mypy, a field `kwargs` is a parameter
    """A message that is dumped as something else than it is."""

    stamp: str = "x"

    def model_dump(self, **options: Any) -> dict[str, Any]:
        return {**super().model_dump(**options), "args": [[9]]}


async def test_a_message_of_a_kind_of_its_own_is_signed_as_it_is_dumped_each_time(new_process: NewProcess) -> None:
    class Stamps(TaskiqMiddleware):
        def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
            return Stamped(**dict(message))

    process = new_process(before=(Stamps(),))
    regular = Regular(process)
    for _ in range(5):
        message = await regular.kick()
        assert read(message).args == [[9]]
        assert not (await process.broker.deliver(message)).result.is_err


class Incomparable(str):
    """Text that cannot be compared."""

    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        raise OSError


async def test_what_cannot_be_compared_is_decided_about_by_itself(new_process: NewProcess) -> None:
    meddler = Meddler()
    process = new_process(before=(meddler,))
    regular = Regular(process)
    await regular.settles_in(labels={"note": "x"})
    meddler.do = lambda message: message.labels.update(note=Incomparable("x"))
    assert read(await regular.kick(labels={"note": "x"})).labels["note"] == "x"
    meddler.do = lambda message: setattr(message, "task_id", 7)
    with pytest.raises(FlowSecurityError) as refusal:
        await regular.kick(labels={"note": "x"})
    assert refusal.value.reason == "internal_error"


class Array:
    """As one of numpy's: whether it equals anything has no one answer."""

    def __eq__(self, other: object) -> Any:
        return Array()

    def __bool__(self) -> bool:
        raise ValueError

    def __str__(self) -> str:
        return "an array"

    __hash__ = None  # type: ignore[assignment]  # of what can be changed


async def test_a_label_that_cannot_be_compared_denies_nothing_where_it_is_put_after_the_decision(
    new_process: NewProcess,
) -> None:
    meddler = Meddler()
    process = new_process(after=(meddler,))
    regular = Regular(process)
    await regular.settles_in(labels={"note": "x"})
    meddler.do = lambda message: message.labels.update(note=Array())
    assert read(await regular.kick(labels={"note": "x"})).labels["note"] == "an array"


class Arrays(TaskiqMiddleware):
    """Puts something else into each message before it runs."""

    def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
        message.labels["note"] = Array()
        return message


async def test_a_label_that_cannot_be_compared_denies_nothing_where_it_is_put_before_the_decision(
    new_process: NewProcess,
) -> None:
    process = new_process(before=(Arrays(),))
    regular = Regular(process)
    for _ in range(5):
        await process.runs(await regular.kick())


async def test_a_type_of_a_label_without_an_end_is_denied_at_the_kick(new_process: NewProcess) -> None:
    meddler = Meddler()
    process = new_process(before=(meddler,))
    regular = Regular(process)
    await regular.settles_in()
    meddler.do = lambda message: message.labels_types.update(pipeline=10**5000)  # type: ignore[union-attr]
    for _ in range(4):
        with pytest.raises(SendTaskError) as refusal:
            await regular.kick()
        assert isinstance(refusal.value.__cause__, UnsignableMessageError)


async def test_the_labels_that_a_broker_sees_are_text_whatever_they_are_equal_to(new_process: NewProcess) -> None:
    class Level(str, Enum):
        HIGH = "high"

    meddler = Meddler()
    process = new_process(before=(meddler,))
    regular = Regular(process)
    await regular.settles_in(labels={"level": "high"})
    meddler.do = lambda message: message.labels.update(level=Level.HIGH)
    seen: list[object] = []

    async def kick(message: BrokerMessage) -> None:
        seen.append(message.labels["level"])
        process.broker.sent.append(message.message)

    process.broker.kick = kick  # type: ignore[method-assign]
    await regular.kick(labels={"level": "high"})
    assert [type(label) for label in seen] == [str]


async def test_a_kick_that_another_middleware_changes_is_recorded_with_what_allowed_it(
    new_process: NewProcess,
) -> None:
    meddler = Meddler()
    process = new_process(after=(meddler,))
    regular = Regular(process)
    await regular.settles_in()
    meddler.do = lambda message: message.labels.update(note="x")
    process.audit.take()
    await regular.kick()
    assert [(entry.event, entry.reason) for entry in process.audit.take()] == [("task_enqueued", "acl")]


async def test_a_broker_s_own_format_is_sent_however_often_something_was_allowed(process: Process) -> None:
    process.broker.with_serializer(MSGPackSerializer())
    regular = Regular(process)
    await regular.settles_in()
    assert MSGPackSerializer().loadb(await regular.kick())["task_name"] == "clean"


async def test_what_cannot_be_signed_is_denied_once_however_often_something_was_allowed(process: Process) -> None:
    regular = Regular(process)
    await regular.settles_in()
    process.audit.take()
    with acting.scope(regular._actor), pytest.raises(SendTaskError) as refusal:
        await process.clean.kiq([chr(0xD800)])  # no number at all
    assert isinstance(refusal.value.__cause__, UnsignableMessageError)
    assert [(entry.event, entry.sub) for entry in process.audit.take()] == [("task_authz_deny", "alice")]


async def test_what_cannot_be_recorded_is_not_let_run_however_often_something_was_allowed(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    regular = Regular(process)
    await regular.settles_in()
    queued = await regular.kick()
    record = process.security.audit.record

    def fail(event: AuditEvent) -> None:
        if event.outcome is AuditOutcome.ALLOW:
            raise OSError
        record(event)

    monkeypatch.setattr(process.security.audit, "record", fail)
    process.audit.take()
    assert (await process.broker.deliver(queued)).reason == "internal_error"
    assert process.ran == []
    assert [entry.event for entry in process.audit.take()] == ["task_authz_deny"]


async def test_runs_are_counted_however_often_something_was_allowed(new_process: NewProcess) -> None:
    process = new_process(rate_limits_on_workers=True, task_rate_limits={"clean": "4/hour"})
    regular = Regular(process)
    queued = [await regular.kick() for _ in range(4)]
    for message in queued:
        await process.runs(message)
    sender = new_process()
    assert (await process.broker.deliver(await Regular(sender).kick())).reason == "rate_limit"


async def test_a_key_that_has_ended_sends_nothing_whatever_was_allowed_before(new_process: NewProcess) -> None:
    clock = Clock()
    ends = datetime.fromtimestamp(clock.now + 60, timezone.utc).isoformat()
    issuing = {"kid": "issue", "alg": "HS256", "uses": ["issue"], "secret": "i" * 40}
    sending = {"kid": "send", "alg": "HS256", "uses": ["send"], "secret": "s" * 40, "not_after": ends}
    process = new_process(clock=clock, signing_keys=[issuing, sending])
    regular = Regular(process)
    for _ in range(4):
        await process.runs(await regular.kick())
    clock.now += 60
    with pytest.raises(AuthenticationError) as refusal:
        await regular.kick()
    assert refusal.value.reason == "cannot_issue"


async def test_a_task_that_has_moved_to_another_pipeline_is_decided_about_anew(process: Process) -> None:
    regular = Regular(process)
    for labels in ({}, {"pipeline": "data"}):
        await regular.settles_in(labels=labels)
        queued = await regular.kick(labels=labels)
        process.clean.labels["pipeline"] = "reports"
        with pytest.raises(FlowSecurityError) as refusal:
            await regular.kick(labels=labels)
        assert refusal.value.reason == ("pipeline_mismatch" if labels else "acl")
        assert (await process.broker.deliver(queued)).reason == "pipeline_mismatch"
        process.clean.labels["pipeline"] = "data"


async def test_a_task_that_is_guarded_in_another_way_is_decided_about_anew(process: Process) -> None:
    regular = Regular(process)
    await regular.settles_in("guarded")
    queued = await regular.kick("guarded")
    process.guarded.original_func = guard(roles=["nobody"])(unwrap(process.guarded.original_func))
    with pytest.raises(FlowSecurityError) as refusal:
        await regular.kick("guarded")
    assert refusal.value.reason == "guard"
    assert (await process.broker.deliver(queued)).reason == "guard"


async def test_a_task_that_is_registered_anew_is_decided_about_anew(process: Process) -> None:
    regular = Regular(process)
    await regular.settles_in()
    queued = await regular.kick()

    @process.broker.task("clean", pipeline="data")
    @guard(roles=["nobody"])
    async def clean(rows: list[int]) -> None:
        process.ran.append(("clean", rows))

    with pytest.raises(FlowSecurityError) as refusal:
        await regular.kick()
    assert refusal.value.reason == "guard"
    assert (await process.broker.deliver(queued)).reason == "guard"


async def test_others_are_not_taken_for_who_was_allowed(process: Process, new_process: NewProcess) -> None:
    regular = Regular(process)
    await regular.settles_in()
    viewer = Principal("alice", roles=["viewer"])
    for other in (viewer, PROCESSOR.restrict(pipelines=["reports"])):
        with pytest.raises(FlowSecurityError):
            await Regular(process, other).kick()
    with pytest.raises(FlowSecurityError):
        await regular.kick(labels=process.security.labels_for(viewer))
    lax = new_process(pipeline_acls={"data": {"execute": ["viewer"]}})
    await process.refuses_authentic(await lax.kick(lax.clean, [1], principal=viewer), "acl")


async def test_another_label_is_decided_about_anew(process: Process) -> None:
    regular = Regular(process)
    await regular.settles_in()
    for labels in ({"pipeline": "reports"}, {"queue_ttl": "-1"}, {"queue_ttl": "1e9"}):
        with pytest.raises(FlowSecurityError):
            await regular.kick(labels=labels)
    await process.refuses_authentic(await regular.kick(labels={"ack_type": "never"}), "invalid_label")


async def test_a_label_of_another_type_is_another_label(new_process: NewProcess) -> None:
    process = new_process(
        task_acls={"loose": {"execute": ["processor"]}}, pipeline_acls={"7": {"execute": ["processor"]}}
    )
    regular = Regular(process)
    await regular.settles_in("loose", {"pipeline": "7"})
    with pytest.raises(FlowSecurityError) as refusal:
        await regular.kick("loose", {"pipeline": 7})
    assert refusal.value.reason == "invalid_label"


async def test_an_id_that_is_no_text_is_denied_as_ever(process: Process) -> None:
    regular = Regular(process)
    await regular.settles_in()
    with pytest.raises(FlowSecurityError) as refusal:
        await regular.kick(task_id="a\nb")
    assert refusal.value.reason == "unsignable"


async def test_a_pipeline_that_the_kick_is_made_for_is_named_in_each_message(new_process: NewProcess) -> None:
    process = new_process(pipeline_acls={"mine": {"execute": ["processor"]}})
    regular = Regular(process, pipeline="mine")
    for _ in range(4):
        assert read(await regular.kick("loose")).labels["pipeline"] == "mine"


async def test_what_depends_on_its_arguments_is_decided_about_each_time(process: Process) -> None:
    @process.broker.task("picky", pipeline="data")
    @guard(predicate=lambda _principal, arguments: arguments["number"] < 5)
    async def picky(number: int) -> None:
        process.ran.append(("picky", number))

    regular = Regular(process)
    for number in range(5):
        await process.runs(await regular.kick("picky", number=number))
    with pytest.raises(FlowSecurityError) as refusal:
        await regular.kick("picky", number=5)
    assert refusal.value.reason == "guard"
    message = read(await regular.kick("picky", number=4))
    await process.refuses_authentic(write(sign(message.model_copy(update={"kwargs": {"number": 5}}))), "guard")


async def test_an_argument_in_the_place_of_a_dependency_is_denied_as_ever(process: Process) -> None:
    @process.broker.task("curious", pipeline="data")
    async def curious(note: str = "", caller: Principal = TaskiqDepends(current_principal)) -> str:
        process.ran.append(("curious", note))
        return caller.subject

    regular = Regular(process)
    await regular.settles_in("curious", note="x")
    with pytest.raises(FlowSecurityError) as refusal:
        await regular.kick("curious", caller="root")
    assert refusal.value.reason == "dependency_in_arguments"
    message = read(await regular.kick("curious", note="x"))
    forged = write(sign(message.model_copy(update={"kwargs": {"caller": "root"}})))
    await process.refuses_authentic(forged, "dependency_in_arguments")


async def test_limits_count_however_often_something_was_allowed(process: Process) -> None:
    @process.broker.task("seldom", pipeline="data")
    @guard(rate_limit="4/hour")
    async def seldom() -> None:
        process.ran.append(("seldom", None))

    regular = Regular(process)
    await regular.settles_in()
    for task in ("seldom", "clean"):
        for _ in range(4):
            await regular.kick(task)
        if task == "clean":
            await process.security.administration.change(ADMIN, PolicyChange(task_rate_limits={"clean": "1/hour"}))
            await regular.kick(task)
        with pytest.raises(FlowSecurityError) as refusal:
            await regular.kick(task)
        assert refusal.value.reason == "rate_limit"


async def test_a_message_that_is_revoked_is_refused_after_others_like_it_have_run(process: Process) -> None:
    regular = Regular(process)
    queued = await regular.kick()
    jti = header_of(signature_of(read(queued)))["jti"]
    await process.security.administration.revoke(ADMIN, Revocation(token=jti))
    for _ in range(4):
        await process.runs(await regular.kick())
    await process.refuses_authentic(queued, "revoked")


@pytest.mark.parametrize("terms", [{"denied": "acl"}, {"scope": {"pipelines": ["reports"]}}, {"act": ["a"] * 60}])
async def test_a_message_on_other_terms_is_refused_after_others_like_it_have_run(
    process: Process, terms: dict[str, Any]
) -> None:
    regular = Regular(process)
    await regular.settles_in()
    queued = write(sign(read(await regular.kick()), header=terms))
    process.audit.take()
    assert (await process.broker.deliver(queued)).result.is_err
    assert process.ran == []


@pytest.mark.parametrize("use", ["issue", "send"])
async def test_the_next_key_signs_from_its_time_on_whatever_was_allowed_before(
    new_process: NewProcess, use: str
) -> None:
    clock = Clock()
    begins = datetime.fromtimestamp(clock.now + 60, timezone.utc).isoformat()
    keys: list[dict[str, Any]] = [
        {"alg": "HS256", "uses": [use], "kid": "new", "secret": "n" * 40, "not_before": begins},
        {"alg": "HS256", "uses": ["issue", "send"], "kid": "old", "secret": "o" * 40},
    ]
    process = new_process(clock=clock, signing_keys=keys)
    regular = Regular(process)
    for _ in range(4):
        await process.runs(await regular.kick())
    clock.now += 60
    message = read(await regular.kick())
    token = principal_of(message) if use == "issue" else signature_of(message)
    assert header_of(token)["kid"] == "new"


class Step(NamedTuple):
    """Something that happens."""

    what: str
    task: str = "clean"
    who: int = 0
    value: Any = None


LABELS: list[dict[str, Any]] = [{}, {"note": 1}, {"queue_ttl": "30"}, {"pipeline": "data"}, {"pipeline": "reports"}]
ACLS: list[dict[str, list[str]] | None] = [None, {}, {"execute": ["processor"]}, {"execute": ["reporter"]}]
WHO = [PROCESSOR, Principal("carol", roles=["reporter"]), PROCESSOR.restrict(permissions=["execute"])]
TASKS = ["clean", "report", "loose", "guarded"]

kicks = st.builds(
    Step, st.just("kick"), st.sampled_from(TASKS), st.sampled_from(range(len(WHO))), st.sampled_from(LABELS)
)
changes = st.one_of(
    st.builds(Step, st.just("acl"), st.sampled_from(["data", "reports"]), value=st.sampled_from(ACLS)),
    st.builds(Step, st.just("roles"), who=st.sampled_from([0, 1]), value=st.sampled_from([[], ["processor"], None])),
    st.builds(Step, st.just("limit"), st.sampled_from(TASKS), value=st.sampled_from([None, "2/hour"])),
    st.builds(Step, st.just("revoke"), who=st.sampled_from([0, 1]), value=st.none()),
    st.builds(Step, st.just("reinstate"), who=st.sampled_from([0, 1]), value=st.none()),
    st.builds(Step, st.just("wait"), value=st.sampled_from([20.0, 500.0, 2000.0])),
)


async def _do(process: Process, regulars: list[Regular], step: Step) -> list[object]:
    """What comes of a step, and of the message that is sent, which comes two seconds later."""
    security = process.security
    if step.what == "wait":
        process.clock.now += step.value
    elif step.what == "acl":
        await security.administration.change(ADMIN, PolicyChange(pipeline_acls={step.task: step.value}))
    elif step.what == "roles":
        await security.administration.change(ADMIN, PolicyChange(roles={WHO[step.who].subject: step.value}))
    elif step.what == "limit":
        await security.administration.change(ADMIN, PolicyChange(task_rate_limits={step.task: step.value}))
    elif step.what == "revoke":
        await security.administration.revoke(ADMIN, Revocation(subject=WHO[step.who].subject))
    elif step.what == "reinstate":
        await security.administration.reinstate(ADMIN, Revocation(subject=WHO[step.who].subject))
    else:
        try:
            data = await regulars[step.who].kick(step.task, step.value)
        except FlowSecurityError as error:
            return [type(error), error.reason]
        process.clock.now += 2
        outcome = await process.broker.deliver(data)
        ran, process.ran[:] = list(process.ran), []
        return [ran, outcome.reason if outcome.result.is_err else None]
    return []


async def _all(steps: list[Step]) -> list[list[object]]:
    process = Process(AuditTrail(), Clock(), jwt_secret="x" * 40)
    regulars = [Regular(process, principal) for principal in WHO]
    return [await _do(process, regulars, step) for step in steps]


@settings(deadline=None)
@given(st.lists(st.one_of(kicks, kicks, kicks, changes), min_size=5, max_size=40))
def test_with_and_without_remembered_answers_all_comes_out_alike(steps: list[Step]) -> None:
    remembered = asyncio.run(_all(steps))
    with patch.object(Clearances, "cover", lambda *_: False), patch.object(Admissions, "cover", lambda *_: False):
        assert asyncio.run(_all(steps)) == remembered


def _with_a_parent(new_process: NewProcess) -> tuple[Process, list[str | None]]:
    """A process with a task "parent", and the pipelines that it has acted for, whenever it ran."""
    process = new_process(pipeline_acls={"data": {"execute": ["processor"]}, "reports": {"execute": ["processor"]}})
    ran_for: list[str | None] = []

    @process.broker.task("parent", pipeline="data")
    async def parent() -> None:
        process.ran.append(("parent", None))
        actor = acting.current()
        ran_for.append(None if actor is None else actor.pipeline)

    return process, ran_for


async def test_who_acts_for_a_pipeline_is_remembered_with_it(new_process: NewProcess) -> None:
    process, ran_for = _with_a_parent(new_process)
    for pipeline in ("data", None, "reports"):
        await Regular(process, pipeline=pipeline).settles_in("parent")
    assert ran_for == [*["data"] * 4, *[None] * 4, *["reports"] * 4]


@pytest.mark.parametrize("pipeline", [None, "reports"])
async def test_a_message_for_another_pipeline_is_not_the_remembered_one(
    new_process: NewProcess, pipeline: str | None
) -> None:
    process, ran_for = _with_a_parent(new_process)
    await Regular(process, pipeline="data").settles_in("parent")
    message = read(await Regular(process, pipeline="data").kick("parent"))
    header = {name: value for name, value in header_of(signature_of(message)).items() if name == "pipeline"}
    assert header == {"pipeline": "data"}
    await process.runs(write(sign(message, header={"pipeline": pipeline, "jti": "another"})))
    assert ran_for[-1] == pipeline


@pytest.mark.parametrize("restricted", [False, True])
async def test_what_a_task_has_passed_on_is_decided_about_each_time(process: Process, restricted: bool) -> None:
    @process.broker.task("parent", pipeline="data")
    async def parent() -> None:
        process.ran.append(("parent", None))
        caller = current_principal()
        with process.security.acting_as(caller.restrict(pipelines=["data"]) if restricted else caller):
            await process.clean.kiq([1])

    regular = Regular(process)
    for _ in range(4):
        outcome = await process.broker.deliver(await regular.kick("parent"))
        assert not outcome.result.is_err
        process.ran.clear()
        authorization = process.security.authorization
        with patch.object(authorization, "decide", wraps=authorization.decide) as decide:
            await process.runs(process.broker.take())
        assert decide.call_count == 1


async def test_what_only_less_was_passed_on_of_is_decided_about_each_time(process: Process) -> None:
    message = read(await Regular(process).kick())
    authorization = process.security.authorization
    for _ in range(4):
        narrow = sign(message, header={"scope": {"pipelines": ["data"]}, "jti": new_id()})
        with patch.object(authorization, "decide", wraps=authorization.decide) as decide:
            await process.runs(write(narrow))
        assert decide.call_count == 1
