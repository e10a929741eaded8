"""What is stored for a scheduler: it lets nobody send in another's name, and loses nothing."""

from __future__ import annotations

import time
import traceback
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from taskiq import ScheduledTask, ScheduleSource, SimpleRetryMiddleware, SmartRetryMiddleware, TaskiqScheduler
from taskiq.schedule_sources import LabelScheduleSource
from taskiq_redis import ListRedisScheduleSource

from taskiq_flow_security import (
    AccessDeniedError,
    AuthenticationError,
    ConfigurationError,
    PolicyChange,
    Principal,
    ProtectedSchedules,
    Revocation,
    SecurityMiddleware,
    UnsignableMessageError,
)
from taskiq_flow_security.acting import Acting
from taskiq_flow_security.schedules.payload import payload_of
from taskiq_flow_security.tokens.message_signature import SIGNATURE_LABEL
from taskiq_flow_security.tokens.principal_token import PRINCIPAL_LABEL
from tests.attacks.forging import principal_of, read
from tests.integration.inmemory.fixtures import NewProcess
from tests.integration.inmemory.harness import PROCESSOR, VIEWER, AuditTrail, Clock, Outcome, Process
from tests.unit.tokens.keys import OTHER_SECRET, PRIVATE, private_pem, public_pem

ADMIN = Principal("root", permissions=["admin"])


class Store(ScheduleSource):
    """A place for schedules, which others may be able to write to as well. It keeps them as JSON."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}

    @property
    def schedules(self) -> list[ScheduledTask]:
        return [ScheduledTask.model_validate_json(text) for text in self.texts.values()]

    @property
    def only(self) -> ScheduledTask:
        (schedule,) = self.schedules
        return schedule

    async def get_schedules(self) -> list[ScheduledTask]:
        return self.schedules

    async def add_schedule(self, schedule: ScheduledTask) -> None:
        self.texts[schedule.schedule_id] = schedule.model_dump_json()

    async def delete_schedule(self, schedule_id: str) -> None:
        del self.texts[schedule_id]


class Deployment:
    """An API that schedules, a scheduler and a worker, which share a store."""

    def __init__(self, new_process: NewProcess, **settings: Any) -> None:
        self.api, self.scheduler, self.worker = (new_process(**settings) for _ in range(3))
        self.store = Store()
        self.source = ProtectedSchedules(self.store, self.api.broker)

    async def schedule(self, *, principal: Principal = PROCESSOR, due: datetime | None = None) -> ScheduledTask:
        """What is stored when the principal schedules `clean`."""
        with self.api.security.acting_as(principal):
            if due is None:
                await self.api.clean.schedule_by_cron(self.source, "* * * * *", [1, 2], scale=3)
            else:
                await self.api.clean.schedule_by_time(self.source, due, [1, 2], scale=3)
        return self.store.only

    async def fire(self, schedule: ScheduledTask) -> list[bytes]:
        """What the scheduler sends when this is due."""
        source = ProtectedSchedules(self.store, self.scheduler.broker)
        await TaskiqScheduler(self.scheduler.broker, [source]).on_ready(source, schedule.model_copy(deep=True))
        sent, self.scheduler.broker.sent = list(self.scheduler.broker.sent), []
        return sent

    async def sends_nothing(self, schedule: ScheduledTask, reason: str, audit: AuditTrail) -> None:
        """Check that the schedule is cancelled when it is due, and why."""
        audit.take()
        assert await self.fire(schedule) == []
        assert [(entry.outcome, entry.reason) for entry in audit.take()] == [("deny", reason)]


@pytest.fixture
def deployment(new_process: NewProcess) -> Deployment:
    return Deployment(new_process)


async def test_a_schedule_runs_for_who_has_made_it_again_and_again(deployment: Deployment, audit: AuditTrail) -> None:
    stored = await deployment.schedule()
    for _ in range(3):
        deployment.scheduler.clock.now += 60
        (message,) = await deployment.fire(stored)
        outcome = await deployment.worker.broker.deliver(message)
        assert outcome.result.return_value == 6
        assert not {PRINCIPAL_LABEL, SIGNATURE_LABEL} & outcome.result.labels.keys()
    events = audit.take()
    assert [entry.event for entry in events] == ["schedule_created", *["schedule_fired", "task_authz_allow"] * 3]
    assert {entry.sub for entry in events} == {"alice"}
    assert len({entry.txn for entry in events}) == 1


async def test_a_schedule_outlives_the_login_but_not_its_own_end(new_process: NewProcess, audit: AuditTrail) -> None:
    deployment = Deployment(new_process, schedule_ttl=30 * 86_400)
    login = Principal("alice", ["processor"], expires_at=deployment.api.clock.now + 60)
    stored = await deployment.schedule(principal=login)
    deployment.api.clock.now += 29 * 86_400
    (message,) = await deployment.fire(stored)
    await deployment.worker.runs(message)
    deployment.api.clock.now += 86_400 + 10
    await deployment.sends_nothing(stored, "expired", audit)


async def test_a_schedule_ends_with_the_api_key_that_made_it(new_process: NewProcess, audit: AuditTrail) -> None:
    key = "the-key-of-a-processor-0123456789"
    ends = datetime.fromtimestamp(Clock().now, timezone.utc) + timedelta(days=1)
    entry = {"role": "processor", "permissions": ["execute"], "expires_at": ends}
    deployment = Deployment(new_process, api_keys={key: entry})
    stored = await deployment.schedule(principal=await deployment.api.security.authenticate(api_key=key))
    assert len(await deployment.fire(stored)) == 1
    deployment.api.clock.now += 86_400 + 10
    await deployment.sends_nothing(stored, "expired", audit)


async def test_who_may_not_kick_a_task_may_not_schedule_it(deployment: Deployment, audit: AuditTrail) -> None:
    with pytest.raises(AccessDeniedError) as denied:
        await deployment.schedule(principal=VIEWER)
    assert denied.value.reason == "acl"
    with pytest.raises(AuthenticationError):
        await deployment.api.clean.schedule_by_cron(deployment.source, "* * * * *", [1])
    assert deployment.store.texts == {}
    assert [(entry.outcome, entry.reason) for entry in audit.take()] == [("deny", "acl"), ("deny", "no_principal")]


@pytest.mark.parametrize("value", [b"\xff", object(), "\ud800"], ids=["bytes", "an object", "a lone surrogate"])
async def test_what_cannot_be_signed_is_not_scheduled(deployment: Deployment, audit: AuditTrail, value: object) -> None:
    with deployment.api.security.acting_as(PROCESSOR), pytest.raises(UnsignableMessageError):
        await deployment.api.echo.schedule_by_cron(deployment.source, "* * * * *", value)
    assert deployment.store.texts == {}
    assert [entry.outcome for entry in audit.take()] == ["deny"]


async def test_an_unexpected_error_lets_nothing_be_scheduled(
    deployment: Deployment, audit: AuditTrail, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("the secret")

    monkeypatch.setattr(deployment.api.security.schedules, "sign", fail)
    with pytest.raises(AccessDeniedError) as denied:
        await deployment.schedule()
    assert denied.value.reason == "internal_error"
    assert "secret" not in "".join(traceback.format_exception(denied.value))
    assert deployment.store.texts == {}
    assert [entry.outcome for entry in audit.take()] == ["deny"]


def _altered(stored: ScheduledTask) -> dict[str, dict[str, Any]]:
    later = datetime(2030, 1, 1, tzinfo=timezone.utc)
    labels = stored.labels
    return {
        "task": {"task_name": "purge"},
        "args": {"args": [[6, 6, 6]]},
        "kwargs": {"kwargs": {"scale": 4}},
        "more kwargs": {"kwargs": {**stored.kwargs, "more": 1}},
        "another id": {"schedule_id": "another"},
        "another task id": {"task_id": "chosen"},
        "cron": {"cron": "0 0 * * *"},
        "an offset": {"cron_offset": "Europe/Paris"},
        "a time": {"time": later},
        "an interval": {"interval": 1},
        "a label": {"labels": {**labels, "timeout": "1"}},
        "a label less": {"labels": {name: value for name, value in labels.items() if name != "pipeline"}},
        "a label changed": {"labels": {**labels, "pipeline": "reports"}},
        "no principal": {"labels": {name: value for name, value in labels.items() if name != PRINCIPAL_LABEL}},
        "no signature": {"labels": {name: value for name, value in labels.items() if name != SIGNATURE_LABEL}},
        "no labels": {"labels": {}},
        "a number for a signature": {"labels": {**labels, SIGNATURE_LABEL: 7}},
        "a number for a principal": {"labels": {**labels, PRINCIPAL_LABEL: 7}},
        "garbage for a signature": {"labels": {**labels, SIGNATURE_LABEL: "a..b"}},
    }


@pytest.mark.parametrize("what", _altered(ScheduledTask(task_name="", labels={}, args=[], kwargs={}, cron="*")))
async def test_a_schedule_that_was_altered_in_its_store_sends_nothing(
    deployment: Deployment, audit: AuditTrail, what: str
) -> None:
    stored = await deployment.schedule()
    audit.take()
    assert await deployment.fire(stored.model_copy(update=_altered(stored)[what])) == []
    (entry,) = audit.take()
    assert (entry.event, entry.outcome) == ("task_signature_fail", "deny")
    assert len(await deployment.fire(stored)) == 1


async def test_the_labels_of_one_schedule_are_worth_nothing_in_another(
    deployment: Deployment, audit: AuditTrail
) -> None:
    stored = await deployment.schedule()
    deployment.store.texts.clear()
    other = await deployment.schedule()
    await deployment.sends_nothing(stored.model_copy(update={"labels": other.labels}), "bad_signature", audit)


async def test_a_principal_that_was_seen_elsewhere_makes_no_schedule(deployment: Deployment, audit: AuditTrail) -> None:
    labels = deployment.api.security.labels_for(PROCESSOR)
    forged = ScheduledTask(task_name="clean", labels={**labels}, args=[[1]], kwargs={}, cron="* * * * *")
    await deployment.sends_nothing(forged, "unsigned", audit)
    plain = ScheduledTask(task_name="clean", labels={}, args=[[1]], kwargs={}, cron="* * * * *")
    await deployment.sends_nothing(plain, "unsigned", audit)


async def test_the_signature_of_a_message_makes_no_schedule_nor_the_reverse(deployment: Deployment) -> None:
    security, now = deployment.api.security, deployment.api.clock.now
    for one, other in ((security.messages, security.schedules), (security.schedules, security.messages)):
        text, _ = one.sign(b"payload", now, now + 60)
        with pytest.raises(AuthenticationError) as refusal:
            other.read(text, b"payload", now)
        assert refusal.value.reason == "wrong_type"


async def test_a_source_that_nobody_protects_sends_nothing_in_anybodys_name(
    deployment: Deployment, audit: AuditTrail
) -> None:
    stored = await deployment.schedule()
    scheduler = TaskiqScheduler(deployment.scheduler.broker, [deployment.store])
    for schedule in (stored, stored.model_copy(update={"task_name": "purge"})):
        with pytest.raises(AuthenticationError, match="ProtectedSchedules"):
            await scheduler.on_ready(deployment.store, schedule)
    labels = deployment.api.security.labels_for(PROCESSOR)
    with pytest.raises(AuthenticationError, match="ProtectedSchedules"):
        await scheduler.on_ready(deployment.store, stored.model_copy(update={"labels": labels}))
    with pytest.raises(AuthenticationError, match=r"wrap its source in ProtectedSchedules, with a service"):
        await scheduler.on_ready(deployment.store, stored.model_copy(update={"labels": {}}))
    assert deployment.scheduler.broker.sent == []


async def test_the_principal_of_a_schedule_is_accepted_with_no_other_message(deployment: Deployment) -> None:
    stored = await deployment.schedule()
    grant = stored.labels[PRINCIPAL_LABEL]
    kicker = deployment.api.clean.kicker().with_labels(**{PRINCIPAL_LABEL: grant})
    with pytest.raises(AuthenticationError):
        await kicker.kiq([1])
    with pytest.raises(AuthenticationError):
        await kicker.with_labels(schedule_id=stored.schedule_id).kiq([1])
    for name in ("clean", "purge"):
        message = await _stolen(deployment.api, grant, getattr(deployment.api, name), [1])
        await deployment.worker.refuses(message, "wrong_task", serves=False)


async def _stolen(thief: Process, grant: str, task: Any, *args: Any, **how: Any) -> bytes:
    """What a thief sends who has a process's keys and runs code of his own there."""
    token = thief.security.principals.verify(grant, thief.clock.now)
    actor = Acting(token.principal, token.txn, thief.security, token=token, received=True, **how)
    (middleware,) = (other for other in thief.broker.middlewares if isinstance(other, SecurityMiddleware))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(middleware.kick_decider, "actor_of", lambda _kick: actor)
        await task.kiq(*args)
    return thief.broker.take()


@pytest.mark.parametrize("what", ["narrowed", "subject", "token", "issued before", "signing key"])
async def test_a_schedule_ends_with_the_rights_of_who_made_it(
    new_process: NewProcess, audit: AuditTrail, what: str
) -> None:
    common = {"alg": "HS256", "uses": ["issue", "send"]}
    keys = [{"kid": "one", "secret": OTHER_SECRET, **common}, {"kid": "two", "secret": OTHER_SECRET[::-1], **common}]
    deployment = Deployment(new_process, signing_keys=keys)
    stored = await deployment.schedule()
    (created,) = (entry for entry in audit.take() if entry.event == "schedule_created")
    (queued,) = await deployment.fire(stored)
    assert created.jti is not None
    deployment.api.clock.now += 30
    for process in (deployment.scheduler, deployment.worker):
        administration = process.security.administration
        if what == "narrowed":
            await administration.change(ADMIN, PolicyChange(pipeline_acls={"data": {}}))
        elif what == "subject":
            await administration.revoke(ADMIN, Revocation(subject="alice"))
        elif what == "token":
            await administration.revoke(ADMIN, Revocation(token=created.jti))
        elif what == "issued before":
            await administration.revoke(ADMIN, Revocation(issued_before=process.clock.now))
        else:
            await administration.revoke(ADMIN, Revocation(signing_key="one"))
    audit.take()
    assert await deployment.fire(stored) == []
    assert [entry.outcome for entry in audit.take()] == ["deny"]
    assert (await deployment.worker.broker.deliver(queued)).result.is_err
    assert deployment.worker.ran == []


async def test_a_deleted_schedule_is_gone_with_its_grant(deployment: Deployment) -> None:
    stored = await deployment.schedule()
    await deployment.source.delete_schedule(stored.schedule_id)
    assert await deployment.source.get_schedules() == []


async def test_a_schedule_that_would_be_due_after_its_end_is_not_made(deployment: Deployment) -> None:
    due = datetime.fromtimestamp(deployment.api.clock.now, timezone.utc) + timedelta(days=31)
    with pytest.raises(UnsignableMessageError, match="schedule_ttl"):
        await deployment.schedule(due=due)
    assert deployment.store.texts == {}


async def test_what_a_label_allows_is_not_scheduled_for_after_its_end(
    deployment: Deployment, audit: AuditTrail
) -> None:
    labels = deployment.api.security.labels_for(PROCESSOR)
    kicker = deployment.api.clean.kicker().with_labels(**labels)
    soon, late = (datetime.fromtimestamp(deployment.api.clock.now, timezone.utc) + timedelta(days=n) for n in (1, 5))
    with pytest.raises(UnsignableMessageError, match="label"):
        await kicker.schedule_by_time(deployment.source, late, [1])
    assert deployment.store.texts == {}
    assert [entry.outcome for entry in audit.take()] == ["deny"]
    await kicker.with_labels(**labels).schedule_by_time(deployment.source, soon - timedelta(hours=1), [1])
    assert len(await deployment.fire(deployment.store.only)) == 1


async def test_a_task_schedules_nothing_for_after_the_end_of_its_principal(deployment: Deployment) -> None:
    errors: list[Exception] = []
    worker = deployment.worker

    @worker.broker.task("clean", pipeline="data")
    async def clean(rows: list[int], scale: int = 1) -> None:
        source = ProtectedSchedules(deployment.store, worker.broker)
        for days in (0.5, 5):
            due = datetime.fromtimestamp(worker.clock.now, timezone.utc) + timedelta(days=days)
            try:
                await worker.purge.schedule_by_time(source, due, rows)
            except UnsignableMessageError as error:
                errors.append(error)

    await worker.broker.deliver(await deployment.api.genuine())
    assert len(errors) == 1
    assert len(await deployment.fire(deployment.store.only)) == 1


async def test_an_explicit_label_makes_a_grant_for_this_schedule_until_the_label_ends(
    deployment: Deployment, audit: AuditTrail
) -> None:
    security, clock = deployment.api.security, deployment.api.clock
    labels = security.labels_for(PROCESSOR.restrict(pipelines=["data"]))
    label = security.principals.verify(labels[PRINCIPAL_LABEL], clock.now)
    clock.now += 3600
    kicker = deployment.api.clean.kicker().with_labels(**labels)
    await kicker.schedule_by_cron(deployment.source, "* * * * *", [1, 2])
    (created,) = audit.take()
    assert (created.event, created.sub, created.act) == ("schedule_created", "alice", None)
    stored = deployment.store.only
    grant = security.principals.verify(stored.labels[PRINCIPAL_LABEL], clock.now)
    assert grant.schedule is not None
    assert (grant.principal, grant.txn, grant.expires_at) == (label.principal, label.txn, label.expires_at)
    message = await _stolen(deployment.api, grant.text, deployment.api.purge, [1])
    await deployment.worker.refuses(message, "wrong_task", serves=False)
    (message,) = await deployment.fire(stored)
    await deployment.worker.runs(message)
    clock.now = label.expires_at + 10
    await deployment.sends_nothing(stored, "expired", audit)


async def test_where_nothing_can_be_issued_a_label_is_stored_as_it_is(new_process: NewProcess) -> None:
    api_keys, sending_keys = _asymmetric()
    deployment = Deployment(new_process, jwt_secret=None, signing_keys=sending_keys)
    issuer = new_process(jwt_secret=None, signing_keys=api_keys)
    kicker = deployment.api.clean.kicker().with_labels(**issuer.security.labels_for(PROCESSOR))
    await kicker.schedule_by_cron(deployment.source, "* * * * *", [1, 2])
    (message,) = await deployment.fire(deployment.store.only)
    deployment.worker.sender = issuer
    await deployment.worker.runs(message)


async def test_the_grant_of_what_is_due_once_ends_soon_after(deployment: Deployment, audit: AuditTrail) -> None:
    due = datetime.fromtimestamp(deployment.api.clock.now, timezone.utc) + timedelta(hours=1)
    stored = await deployment.schedule(due=due)
    deployment.api.clock.now += 3600
    assert len(await deployment.fire(stored)) == 1
    deployment.api.clock.now += 86_400 + 10
    await deployment.sends_nothing(stored, "expired", audit)


@pytest.mark.parametrize("zone", ["Asia/Tokyo", "America/Los_Angeles"])
async def test_a_time_without_a_zone_is_in_utc_wherever_the_process_runs(
    deployment: Deployment, audit: AuditTrail, monkeypatch: pytest.MonkeyPatch, zone: str
) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        due = datetime.fromtimestamp(deployment.api.clock.now, timezone.utc).replace(tzinfo=None) + timedelta(hours=1)
        stored = await deployment.schedule(due=due)
        deployment.api.clock.now += 3600 + 86_400
        assert len(await deployment.fire(stored)) == 1
        deployment.api.clock.now += 10
        await deployment.sends_nothing(stored, "expired", audit)
    finally:
        monkeypatch.undo()
        time.tzset()


async def test_what_was_restricted_stays_restricted_when_it_is_due(deployment: Deployment) -> None:
    stored = await deployment.schedule(principal=PROCESSOR.restrict(pipelines=["data"]))
    seen: list[Principal] = []
    worker = deployment.worker

    @worker.broker.task("clean", pipeline="data")
    async def clean(rows: list[int], scale: int = 1) -> None:
        actor = worker.security.actor()
        assert actor is not None
        seen.append(actor.principal)

    (message,) = await deployment.fire(stored)
    await worker.broker.deliver(message)
    assert [principal.scope.pipelines for principal in seen] == [frozenset({"data"})]


async def test_a_task_that_was_scheduled_kicks_others_as_its_caller(deployment: Deployment, audit: AuditTrail) -> None:
    worker = deployment.worker

    @worker.broker.task("clean", pipeline="data")
    async def clean(rows: list[int], scale: int = 1) -> None:
        await worker.purge.kiq(rows)

    (message,) = await deployment.fire(await deployment.schedule())
    assert not (await worker.broker.deliver(message)).result.is_err
    audit.take()
    child = worker.broker.take()
    await worker.broker.deliver(child)
    assert [name for name, _ in worker.ran] == ["purge"]
    (entry,) = audit.take()
    assert (entry.event, entry.sub, entry.act) == ("task_authz_allow", "alice", "clean")


def _failing(process: Process) -> Any:
    @process.broker.task("fail", pipeline="data", retry_on_error=True)
    async def fail(value: int = 0) -> None:
        process.ran.append(("fail", value))
        raise ValueError

    return fail


async def _retries(worker: Process, store: Store, first: bytes) -> ScheduledTask:
    """Run a task that fails, and the schedule that is made for it to run again."""
    worker.broker.add_middlewares(SmartRetryMiddleware(schedule_source=ProtectedSchedules(store, worker.broker)))
    outcome = await worker.broker.deliver(first)
    assert outcome.acks == 1
    return store.only


async def test_a_retry_through_a_schedule_is_made_for_who_kicked_the_task(new_process: NewProcess) -> None:
    deployment = Deployment(new_process)
    fail = _failing(deployment.api)
    _failing(deployment.worker)
    _failing(deployment.scheduler)
    retry = await _retries(deployment.worker, deployment.store, await deployment.api.kick(fail, 7))
    (message,) = await deployment.fire(retry)
    await deployment.worker.broker.deliver(message)
    assert deployment.worker.ran == [("fail", 7), ("fail", 7)]


async def test_a_scheduled_task_can_be_scheduled_again_by_its_retry(new_process: NewProcess) -> None:
    deployment = Deployment(new_process)
    fail = _failing(deployment.api)
    _failing(deployment.worker)
    _failing(deployment.scheduler)
    with deployment.api.security.acting_as(PROCESSOR):
        await fail.schedule_by_cron(deployment.source, "* * * * *", 7)
    stored = deployment.store.only
    (message,) = await deployment.fire(stored)
    deployment.store.texts.clear()
    retry = await _retries(deployment.worker, deployment.store, message)
    (again,) = await deployment.fire(retry)
    await deployment.worker.broker.deliver(again)
    assert deployment.worker.ran == [("fail", 7), ("fail", 7)]


async def test_a_retry_lasts_no_longer_than_the_principal_of_the_task(
    new_process: NewProcess, audit: AuditTrail
) -> None:
    deployment = Deployment(new_process, principal_ttl=7200, queue_ttl=3600, schedule_ttl=86_400)
    fail = _failing(deployment.api)
    _failing(deployment.worker)
    _failing(deployment.scheduler)
    retry = await _retries(deployment.worker, deployment.store, await deployment.api.kick(fail))
    deployment.api.clock.now += 7200 + 10
    await deployment.sends_nothing(retry, "expired", audit)


async def _retried_after(deployment: Deployment, seconds: float, delay: float = 100, **labels: Any) -> Outcome:
    """What becomes of a task that fails after so long, and is to run again after that delay."""
    fail = _failing(deployment.api).kicker().with_labels(**labels)
    first = await deployment.api.kick(fail)
    worker = deployment.worker

    @worker.broker.task("fail", pipeline="data", retry_on_error=True)
    async def fail_late(value: int = 0) -> None:
        worker.clock.now += seconds
        raise ValueError

    source = ProtectedSchedules(deployment.store, worker.broker)
    worker.broker.add_middlewares(SmartRetryMiddleware(schedule_source=source, default_delay=delay))
    return await worker.broker.deliver(first)


@pytest.mark.parametrize(("seconds", "delay"), [(305, 0), (0, 305)])
async def test_what_would_be_retried_after_its_time_to_live_is_not(
    new_process: NewProcess, audit: AuditTrail, seconds: float, delay: float
) -> None:
    deployment = Deployment(new_process)
    deployment.worker.clock.now = time.time()  # by which the middleware says when a retry is due
    outcome = await _retried_after(deployment, seconds, delay, queue_ttl=300)
    assert deployment.store.texts == {}
    assert (outcome.acks, outcome.reason) == (1, "expired")
    assert [entry.reason for entry in audit.take() if entry.outcome == "deny"] == ["expired"]


async def test_a_retry_lasts_no_longer_than_the_message_that_it_repeats(
    new_process: NewProcess, audit: AuditTrail
) -> None:
    deployment = Deployment(new_process)
    clock = deployment.worker.clock
    clock.now = first_kick = time.time()
    await _retried_after(deployment, 10, queue_ttl=300)
    retry = deployment.store.only
    _failing(deployment.scheduler)
    clock.now = first_kick + 290
    (message,) = await deployment.fire(retry)
    clock.now = first_kick + 300 + 10
    await deployment.worker.refuses(message, "expired", serves=False)
    await deployment.sends_nothing(retry, "expired", audit)


async def test_a_retry_that_is_denied_leaves_nobody_waiting(new_process: NewProcess) -> None:
    deployment = Deployment(new_process)
    first = await deployment.api.kick(_failing(deployment.api))
    worker = deployment.worker

    @worker.broker.task("fail", pipeline="data", retry_on_error=True)
    async def fail(value: int = 0) -> None:
        await worker.security.administration.change(ADMIN, PolicyChange(pipeline_acls={"data": {}}))
        raise ValueError

    worker.broker.add_middlewares(
        SmartRetryMiddleware(
            schedule_source=ProtectedSchedules(deployment.store, worker.broker), no_result_on_retry=True
        )
    )
    outcome = await worker.broker.deliver(first)
    assert deployment.store.texts == {}
    assert (outcome.acks, outcome.reason) == (1, "acl")


def _key(kid: str, alg: str, *uses: str, private: bool) -> dict[str, object]:
    pem = private_pem(PRIVATE[alg]) if private else public_pem(PRIVATE[alg])
    return {"kid": kid, "alg": alg, "uses": list(uses), "private_key" if private else "public_key": pem}


def _asymmetric() -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    """The keys of an API, and those of a process that can only send."""
    api, worker = (
        [
            _key("api", "EdDSA", "issue", "send", private=issues),
            _key("worker", "ES256", "send", private=not issues),
        ]
        for issues in (True, False)
    )
    return api, worker


async def test_a_scheduler_that_can_issue_nothing_sends_what_others_have_granted(new_process: NewProcess) -> None:
    api_keys, sending_keys = _asymmetric()
    deployment = Deployment(new_process, jwt_secret=None, signing_keys=api_keys)
    deployment.scheduler = new_process(jwt_secret=None, signing_keys=sending_keys)
    deployment.worker = new_process(jwt_secret=None, signing_keys=sending_keys)
    (message,) = await deployment.fire(await deployment.schedule())
    await deployment.worker.runs(message)


@pytest.fixture
def firing(new_process: NewProcess) -> Deployment:
    """A deployment whose scheduler has a key for schedules, and for nothing else."""
    public, private = (_key("scheduler", "RS256", "fire", private=own) for own in (False, True))
    api_keys, sending_keys = _asymmetric()
    deployment = Deployment(new_process, jwt_secret=None, signing_keys=[*api_keys, public])
    issuer = _key("api", "EdDSA", "issue", "send", private=False)
    worker = _key("worker", "ES256", "send", private=False)
    deployment.scheduler = new_process(jwt_secret=None, signing_keys=[issuer, worker, private])
    deployment.worker = new_process(jwt_secret=None, signing_keys=[*sending_keys, public])
    return deployment


async def test_a_scheduler_with_a_key_for_schedules_only_sends_them(firing: Deployment, audit: AuditTrail) -> None:
    (message,) = await firing.fire(await firing.schedule())
    (fired,) = (entry for entry in audit.take() if entry.event == "schedule_fired")
    assert fired.key_id == "scheduler"
    await firing.worker.runs(message)


async def test_a_key_for_schedules_only_that_becomes_another_one_is_recorded_as_that(
    firing: Deployment, new_process: NewProcess
) -> None:
    stored = await firing.schedule()
    begins = datetime.fromtimestamp(firing.api.clock.now, timezone.utc) + timedelta(hours=1)
    issuer, worker = (
        _key("api", "EdDSA", "issue", "send", private=False),
        _key("worker", "ES256", "send", private=False),
    )
    fires = [
        {**_key("next", "RS256", "fire", private=True), "not_before": begins},
        _key("scheduler", "RS256", "fire", private=True),
    ]
    firing.scheduler = new_process(jwt_secret=None, signing_keys=[issuer, worker, *fires])
    changes: list[tuple[str, str]] = []
    firing.scheduler.audit.on_change = lambda record: changes.append((record.rule, record.change))
    await firing.fire(stored)
    firing.scheduler.clock.now += 3600
    await firing.fire(stored)
    assert changes == [("fire", "scheduler -> next")]


async def test_a_key_for_schedules_only_sends_nothing_else_whoever_has_stolen_it(firing: Deployment) -> None:
    stored = await firing.schedule()
    grant, thief = stored.labels[PRINCIPAL_LABEL], firing.scheduler
    schedule_id = stored.schedule_id
    common = {"schedule": schedule_id}
    forged = {
        "another task": await _stolen(thief, grant, _labelled(thief.purge, schedule_id), [1, 2], **common),
        "other arguments": await _stolen(thief, grant, _labelled(thief.clean, schedule_id), [6], **common),
        "another schedule": await _stolen(thief, grant, _labelled(thief.clean, "other"), [1, 2], **common),
        "a child": await _stolen(thief, grant, thief.purge, [1], actors=("clean",), **common),
    }
    queued = await firing.api.genuine()
    principal = principal_of(read(queued))
    forged["a principal for no schedule"] = await _stolen(thief, principal, thief.clean, [1], **common)
    for message in forged.values():
        await firing.worker.refuses(message, "wrong_task", serves=False)
    await firing.worker.runs(queued)


async def test_a_key_for_schedules_only_makes_no_schedule(firing: Deployment, audit: AuditTrail) -> None:
    principal = principal_of(read(await firing.api.genuine()))
    forged = ScheduledTask(
        task_name="purge", labels={PRINCIPAL_LABEL: principal}, args=[[1]], kwargs={}, cron="* * * * *"
    )
    now = firing.scheduler.clock.now
    text, _ = firing.scheduler.security.schedules.sign(payload_of(forged), now, now + 60, fires=True)
    forged.labels[SIGNATURE_LABEL] = text
    firing.scheduler = firing.worker  # another scheduler, whose key can send all
    await firing.sends_nothing(forged, "wrong_task", audit)


async def test_a_key_for_schedules_only_moves_nothing_to_another_pipeline(firing: Deployment) -> None:
    with firing.api.security.acting_as(Principal("alice", ["processor", "reporter"]), pipeline="data"):
        await firing.api.loose.schedule_by_cron(firing.source, "* * * * *")
    stored = firing.store.only
    moved = _labelled(firing.scheduler.loose, stored.schedule_id).with_labels(pipeline="reports")
    message = await _stolen(firing.scheduler, stored.labels[PRINCIPAL_LABEL], moved, schedule=stored.schedule_id)
    await firing.worker.refuses(message, "wrong_task", serves=False)
    (message,) = await firing.fire(stored)
    await firing.worker.runs(message)


async def test_what_follows_from_a_schedule_is_done_for_the_pipeline_that_it_was_made_for(firing: Deployment) -> None:
    worker = firing.worker

    @worker.broker.task("clean", pipeline="data")
    async def clean(rows: list[int], scale: int = 1) -> None:
        await worker.loose.kiq()

    maker = Principal("alice", ["processor", "reporter"])
    with firing.api.security.acting_as(maker, pipeline="reports"):
        await firing.api.clean.schedule_by_cron(firing.source, "* * * * *", [1])
    stored = firing.store.only
    firing.scheduler.broker.local_task_registry.clear()  # a scheduler needs no tasks
    (message,) = await firing.fire(stored)
    await worker.broker.deliver(message)
    assert read(worker.broker.take()).labels["pipeline"] == "reports"

    task = _labelled(firing.scheduler.clean, stored.schedule_id)
    grant = stored.labels[PRINCIPAL_LABEL]
    for pipeline in (None, "other"):
        forged = await _stolen(firing.scheduler, grant, task, [1], schedule=stored.schedule_id, pipeline=pipeline)
        await worker.refuses(forged, "wrong_task", serves=False)


async def test_a_process_with_a_key_for_schedules_only_can_kick_nothing(firing: Deployment) -> None:
    labels = firing.api.security.labels_for(PROCESSOR)
    with pytest.raises(AuthenticationError) as refusal:
        await firing.scheduler.clean.kicker().with_labels(**labels).kiq([1])
    assert refusal.value.reason == "cannot_issue"


def _labelled(task: Any, schedule_id: str) -> Any:
    return task.kicker().with_labels(schedule_id=schedule_id)


@pytest.mark.parametrize("retries", [1, 3])
async def test_a_scheduled_task_that_fails_is_retried(new_process: NewProcess, retries: int) -> None:
    deployment = Deployment(new_process)
    worker = deployment.worker
    worker.broker.add_middlewares(SimpleRetryMiddleware())
    fail = _failing(deployment.api)
    _failing(worker)
    _failing(deployment.scheduler)
    with deployment.api.security.acting_as(PROCESSOR):
        kicker = fail.kicker().with_labels(max_retries=retries + 1)
        await kicker.schedule_by_cron(deployment.source, "* * * * *", "7")
    (message,) = await deployment.fire(deployment.store.only)
    await worker.broker.deliver(message)
    for _ in range(retries):
        await worker.broker.deliver(worker.broker.take())
    assert worker.ran == [("fail", 7)] * (retries + 1)


async def test_a_worker_that_can_issue_nothing_schedules_its_retries(new_process: NewProcess) -> None:
    api_keys, sending_keys = _asymmetric()
    deployment = Deployment(new_process, jwt_secret=None, signing_keys=api_keys)
    deployment.scheduler = new_process(jwt_secret=None, signing_keys=sending_keys)
    worker = deployment.worker = new_process(jwt_secret=None, signing_keys=sending_keys)
    fail = _failing(deployment.api)
    _failing(worker)
    _failing(deployment.scheduler)
    retry = await _retries(worker, deployment.store, await deployment.api.kick(fail, 7))
    (message,) = await deployment.fire(retry)
    await worker.broker.deliver(message)
    assert worker.ran == [("fail", 7), ("fail", 7)]


SERVICES = {"nightly": {"roles": ["processor"]}, "idle": {"roles": []}}


async def _due_labels(process: Process, service: str, **when: object) -> list[bytes]:
    @process.broker.task("cleanup", pipeline="data", schedule=[{**(when or {"cron": "* * * * *"}), "args": [7]}])
    async def cleanup(value: int) -> None:
        process.ran.append(("cleanup", value))

    source = ProtectedSchedules(LabelScheduleSource(process.broker), process.broker, service=service)
    await source.startup()
    (schedule,) = await source.get_schedules()
    await TaskiqScheduler(process.broker, [source]).on_ready(source, schedule)
    return process.broker.sent


async def test_schedules_in_code_run_as_a_service(new_process: NewProcess, audit: AuditTrail) -> None:
    process = new_process(services=SERVICES)
    (message,) = await _due_labels(process, "nightly")
    await process.broker.deliver(message)
    assert process.ran == [("cleanup", 7)]
    assert {entry.sub for entry in audit.take()} == {"service:nightly"}


async def test_schedules_in_code_run_as_a_service_also_with_a_key_that_sends_nothing_else(
    new_process: NewProcess,
) -> None:
    one, other = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    fires = {"kid": "scheduler", "alg": "EdDSA", "uses": ["issue", "fire"]}
    sends = {"kid": "worker", "alg": "EdDSA", "uses": ["send"]}
    scheduler_keys = [{**fires, "private_key": private_pem(one)}, {**sends, "public_key": public_pem(other)}]
    scheduler = new_process(services=SERVICES, signing_keys=scheduler_keys)
    worker_keys = [{**sends, "private_key": private_pem(other)}, {**fires, "public_key": public_pem(one)}]
    worker = new_process(signing_keys=worker_keys)

    @worker.broker.task("cleanup", pipeline="data")
    async def cleanup(value: int) -> None:
        worker.ran.append(("cleanup", value))

    (message,) = await _due_labels(scheduler, "nightly")
    await worker.runs(message)
    scheduler.broker.sent.clear()
    grant, schedule_id = principal_of(read(message)), str(read(message).labels["schedule_id"])
    task = _labelled(scheduler.clean, schedule_id)
    await worker.refuses(await _stolen(scheduler, grant, task, [1], schedule=schedule_id), "wrong_task", serves=False)


@pytest.mark.parametrize("when", [{"cron": "* * * * *"}, {"time": datetime(2026, 1, 1, tzinfo=timezone.utc)}])
async def test_a_service_that_may_not_run_a_schedule_in_code_sends_nothing(
    new_process: NewProcess, caplog: pytest.LogCaptureFixture, when: dict[str, object]
) -> None:
    assert await _due_labels(new_process(services=SERVICES), "idle", **when) == []
    assert "cannot be deleted" not in caplog.text  # what stands in code stays there


def test_what_cannot_be_protected_is_refused_at_once(new_process: NewProcess) -> None:
    process = new_process(services=SERVICES)
    broker = process.broker
    labels = LabelScheduleSource(broker)
    with pytest.raises(ConfigurationError, match="service"):
        ProtectedSchedules(labels, broker)
    with pytest.raises(ConfigurationError, match="service"):
        ProtectedSchedules(Store(), broker, service="nightly")
    with pytest.raises(ConfigurationError, match="services"):
        ProtectedSchedules(labels, broker, service="unknown")
    with pytest.raises(ConfigurationError, match="already"):
        ProtectedSchedules(ProtectedSchedules(Store(), broker), broker)
    with pytest.raises(ConfigurationError, match="SecurityMiddleware"):
        ProtectedSchedules(Store(), new_process(secured=False).broker)
    with pytest.raises(ConfigurationError, match="JSONSerializer"):
        ProtectedSchedules(ListRedisScheduleSource("redis://127.0.0.1"), broker)


async def test_where_security_is_off_schedules_are_as_without_it(new_process: NewProcess) -> None:
    process = new_process(security_enabled=False)
    store = Store()
    source = ProtectedSchedules(store, process.broker)
    await process.clean.schedule_by_cron(source, "* * * * *", [1])
    await TaskiqScheduler(process.broker, [source]).on_ready(source, store.only)
    await process.broker.deliver(process.broker.take())
    assert len(process.ran) == 1


async def test_in_monitor_mode_a_schedule_without_a_grant_is_recorded_and_sent(
    new_process: NewProcess, audit: AuditTrail
) -> None:
    deployment = Deployment(new_process, enforcement="monitor")
    await deployment.api.clean.schedule_by_cron(deployment.source, "* * * * *", [1])
    (message,) = await deployment.fire(deployment.store.only)
    await deployment.worker.broker.deliver(message)
    assert len(deployment.worker.ran) == 1
    assert "task_authz_shadow_deny" in {entry.event for entry in audit.take()}


def _signed_by_a_thief(deployment: Deployment, schedule: ScheduledTask, expires_at: float) -> ScheduledTask:
    """A schedule that somebody has signed who has stolen a key to send with."""
    text, _ = deployment.api.security.schedules.sign(payload_of(schedule), deployment.api.clock.now, expires_at)
    return schedule.model_copy(update={"labels": {**schedule.labels, SIGNATURE_LABEL: text}})


async def test_a_thief_with_a_key_to_send_with_cannot_use_a_grant_for_another_schedule(
    deployment: Deployment, audit: AuditTrail
) -> None:
    stored = await deployment.schedule()
    other = stored.model_copy(update={"schedule_id": "another", "task_name": "purge"})
    forged = _signed_by_a_thief(deployment, other, deployment.api.clock.now + 60)
    await deployment.sends_nothing(forged, "wrong_task", audit)


async def test_a_signature_ends_when_it_says_whatever_its_principal_says(
    deployment: Deployment, audit: AuditTrail
) -> None:
    stored = await deployment.schedule()
    briefly = _signed_by_a_thief(deployment, stored, deployment.api.clock.now + 60)
    assert len(await deployment.fire(briefly)) == 1
    deployment.api.clock.now += 60 + 10
    await deployment.sends_nothing(briefly, "expired", audit)
