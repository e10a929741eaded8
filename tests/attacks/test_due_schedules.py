"""What becomes of a schedule that is due: nobody waits for what is denied, and nobody else acts as its maker."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import pytest
from taskiq import ScheduledTask, TaskiqScheduler
from taskiq.exceptions import SendTaskError
from taskiq.message import BrokerMessage

from taskiq_flow_security import (
    AccessDeniedError,
    AuthenticationError,
    FlowSecurityError,
    PolicyChange,
    Principal,
    ProtectedSchedules,
    RateLimitExceededError,
    Revocation,
    current_principal,
)
from taskiq_flow_security.core.policy import Decision
from taskiq_flow_security.core.reasons import Reason
from taskiq_flow_security.tokens.message_signature import SIGNATURE_LABEL
from taskiq_flow_security.tokens.principal_token import PRINCIPAL_LABEL
from tests.attacks.test_schedules import ADMIN, Deployment, _failing, _retries
from tests.integration.inmemory.fixtures import NewProcess
from tests.integration.inmemory.harness import PROCESSOR, AuditTrail, Clock

OTHER = Principal("carol", roles=["processor"])


@pytest.fixture
def deployment(new_process: NewProcess) -> Deployment:
    return Deployment(new_process)


async def _retry(deployment: Deployment) -> ScheduledTask:
    """What is stored for a task that somebody waits for to run again."""
    fail = _failing(deployment.api)
    _failing(deployment.worker)
    _failing(deployment.scheduler)
    return await _retries(deployment.worker, deployment.store, await deployment.api.kick(fail, 7))


def _answers(deployment: Deployment) -> dict[str, BaseException | None]:
    """What the scheduler has told those who wait, by task id."""
    return {task_id: result.error for task_id, result in deployment.scheduler.broker.result_backend.results.items()}


async def _nobody_acts(deployment: Deployment, schedule: ScheduledTask) -> None:
    """Check that who has made a schedule does not act here, whatever is kicked."""
    for labels in ({}, {"schedule_id": schedule.schedule_id}):
        with pytest.raises(AuthenticationError) as denied:
            await deployment.scheduler.clean.kicker().with_labels(**labels).kiq([1])
        assert denied.value.reason == "no_principal"


async def _deny(deployment: Deployment, how: str) -> None:
    administration = deployment.scheduler.security.administration
    if how == "subject revoked":
        await administration.revoke(ADMIN, Revocation(subject="alice"))
    elif how == "policy narrowed":
        await administration.change(ADMIN, PolicyChange(pipeline_acls={"data": {}}))
    elif how == "all revoked":
        deployment.scheduler.clock.now += 5
        await administration.revoke(ADMIN, Revocation(issued_before=deployment.scheduler.clock.now))
    else:
        deployment.scheduler.clock.now += 86_400 + 10


@pytest.mark.parametrize(
    ("how", "error", "reason"),
    [
        ("subject revoked", AccessDeniedError, "revoked"),
        ("policy narrowed", AccessDeniedError, "acl"),
        ("all revoked", AuthenticationError, "revoked"),
        ("grant ended", AuthenticationError, "expired"),
    ],
)
async def test_who_waits_for_a_retry_is_told_that_it_is_denied_when_it_is_due(
    deployment: Deployment, audit: AuditTrail, how: str, error: type[FlowSecurityError], reason: str
) -> None:
    retry = await _retry(deployment)
    await _deny(deployment, how)
    await deployment.sends_nothing(retry, reason, audit)
    assert retry.task_id is not None
    answer = _answers(deployment)[retry.task_id]
    assert type(answer) is error
    assert answer.args[0] == reason
    assert deployment.store.texts == {}


async def test_a_retry_that_is_revoked_leaves_the_principal_of_its_task_as_it_is(
    deployment: Deployment, audit: AuditTrail
) -> None:
    retry = await _retry(deployment)
    (created,) = (entry for entry in audit.take() if entry.event == "schedule_created")
    principal = deployment.api.security.principals.verify(retry.labels[PRINCIPAL_LABEL], deployment.api.clock.now)
    assert created.jti != principal.jti
    await deployment.scheduler.security.administration.revoke(ADMIN, Revocation(token=created.jti))
    await deployment.sends_nothing(retry, "revoked", audit)


@pytest.mark.parametrize("how", ["subject revoked", "policy narrowed", "grant ended"])
async def test_what_is_due_once_and_is_denied_is_not_denied_again_for_ever(
    deployment: Deployment, audit: AuditTrail, how: str
) -> None:
    stored = await deployment.schedule(due=datetime.fromtimestamp(deployment.api.clock.now, timezone.utc))
    await _deny(deployment, how)
    assert await deployment.fire(stored) == []
    assert deployment.store.texts == {}
    assert _answers(deployment) == {}  # nobody has the id of a task that was never sent
    await _nobody_acts(deployment, stored)


async def test_what_is_due_again_and_again_stays_when_it_is_denied(deployment: Deployment) -> None:
    with deployment.api.security.acting_as(PROCESSOR):
        kicker = deployment.api.clean.kicker().with_task_id("chosen")
        await kicker.schedule_by_cron(deployment.source, "* * * * *", [1])
    stored = deployment.store.only
    await _deny(deployment, "policy narrowed")
    assert await deployment.fire(stored) == []
    assert list(_answers(deployment)) == ["chosen"]
    await deployment.scheduler.security.administration.change(ADMIN, PolicyChange(pipeline_acls={"data": None}))
    assert len(await deployment.fire(deployment.store.only)) == 1


@pytest.mark.parametrize("what", ["altered", "unsigned", "of another schedule"])
async def test_what_is_not_authentic_is_neither_answered_nor_deleted(
    deployment: Deployment, audit: AuditTrail, what: str
) -> None:
    retry = await _retry(deployment)
    await _deny(deployment, "subject revoked")
    labels = {name: value for name, value in retry.labels.items() if name != SIGNATURE_LABEL}
    changes: dict[str, dict[str, Any]] = {
        "altered": {"args": [8]},
        "unsigned": {"labels": labels},
        "of another schedule": {"schedule_id": "another"},
    }
    before = dict(deployment.store.texts)
    forged = retry.model_copy(update=changes[what])
    await deployment.sends_nothing(forged, "unsigned" if what == "unsigned" else "bad_signature", audit)
    assert _answers(deployment) == {}
    assert deployment.store.texts == before


@pytest.mark.parametrize("why", ["stale", "unexpected", "clock"])
async def test_a_denial_that_may_pass_ends_nothing(
    deployment: Deployment, new_process: NewProcess, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    retry = await _retry(deployment)
    before = dict(deployment.store.texts)

    def decide(*_: object) -> Decision:
        if why == "unexpected":
            raise RuntimeError
        return Decision(False, Reason.POLICY_STALE, "policy_max_age")

    if why == "clock":
        deployment.scheduler = new_process(clock=Clock(deployment.api.clock.now - 60))
        _failing(deployment.scheduler)
    else:
        monkeypatch.setattr(deployment.scheduler.security.authorization, "decide", decide)
    assert await deployment.fire(retry) == []
    assert _answers(deployment) == {}
    assert deployment.store.texts == before
    monkeypatch.undo()
    deployment.scheduler.clock.now = deployment.api.clock.now
    assert len(await deployment.fire(retry)) == 1


async def test_what_is_due_counts_once_against_a_limit_and_waits_where_that_is_used_up(
    new_process: NewProcess, audit: AuditTrail
) -> None:
    deployment = Deployment(new_process, principal_rate_limit="1/minute")
    due = datetime.fromtimestamp(deployment.api.clock.now, timezone.utc)
    stored = await deployment.schedule(due=due)
    assert len(await deployment.fire(stored)) == 1
    with pytest.raises(RateLimitExceededError):
        await deployment.fire(stored)
    assert _answers(deployment) == {}
    assert deployment.store.only == stored
    await _nobody_acts(deployment, stored)
    with pytest.raises(RateLimitExceededError):
        await deployment.schedule()


async def test_a_retry_through_a_schedule_does_not_count_again(new_process: NewProcess) -> None:
    deployment = Deployment(new_process, principal_rate_limit="1/hour")
    retry = await _retry(deployment)
    for _ in range(2):
        assert len(await deployment.fire(retry)) == 1


async def test_to_make_a_schedule_uses_up_no_limit_of_what_it_sends(new_process: NewProcess) -> None:
    deployment = Deployment(new_process, principal_rate_limit="1/minute")
    deployment.scheduler.security.rate_limits = deployment.api.security.rate_limits  # as in one storage for both
    stored = await deployment.schedule()
    assert len(await deployment.fire(stored)) == 1
    for again in (deployment.fire(stored), deployment.schedule(), deployment.api.genuine()):
        with pytest.raises(RateLimitExceededError):
            await again


async def test_a_source_that_cannot_delete_sends_no_more_for_that(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    retry = await _retry(deployment)
    await _deny(deployment, "subject revoked")
    monkeypatch.delattr(type(deployment.store), "delete_schedule")
    assert await deployment.fire(retry) == []
    assert list(_answers(deployment)) == [retry.task_id]


async def test_in_monitor_mode_a_denial_is_recorded_once_and_ends_nothing(
    new_process: NewProcess, audit: AuditTrail
) -> None:
    deployment = Deployment(new_process, enforcement="monitor")
    stored = await deployment.schedule()
    await _deny(deployment, "policy narrowed")
    audit.take()
    assert len(await deployment.fire(stored)) == 1
    denied = [(entry.event, entry.sub, entry.reason) for entry in audit.take() if entry.outcome == "deny"]
    assert denied == [("task_authz_shadow_deny", "alice", "acl")]


async def _unreachable(_: BrokerMessage) -> None:
    raise ConnectionError


@pytest.mark.parametrize("fails", [False, True])
async def test_who_calls_the_scheduler_acts_as_before_and_never_as_who_has_scheduled(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    stored = await deployment.schedule()
    scheduler = deployment.scheduler
    source = ProtectedSchedules(deployment.store, scheduler.broker)
    if fails:
        monkeypatch.setattr(scheduler.broker, "kick", _unreachable)

    async def fire() -> None:
        on_ready = TaskiqScheduler(scheduler.broker, [source]).on_ready(source, stored.model_copy(deep=True))
        if not fails:
            await on_ready
            return
        with pytest.raises(SendTaskError):
            await on_ready

    await fire()
    await _nobody_acts(deployment, stored)
    with scheduler.security.acting_as(OTHER):
        await fire()
        assert current_principal() == OTHER
    monkeypatch.undo()


async def test_another_kick_before_that_of_the_schedule_is_not_in_its_name(deployment: Deployment) -> None:
    stored = await deployment.schedule()
    scheduler = deployment.scheduler
    source = ProtectedSchedules(deployment.store, scheduler.broker)
    await source.pre_send(stored)
    with pytest.raises(AuthenticationError, match="Nobody"):
        await scheduler.purge.kiq([1])
    with pytest.raises(AuthenticationError, match="Nobody"):
        await scheduler.purge.kicker().with_labels(schedule_id="another").kiq([1])
