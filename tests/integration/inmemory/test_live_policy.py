"""What is changed or revoked at run time counts at once, also for what is queued."""

from __future__ import annotations

import hashlib
import logging
from time import monotonic
from typing import Any

import jwt
import pytest
from taskiq import SimpleRetryMiddleware, TaskiqMessage, TaskiqMiddleware, TaskiqResult
from taskiq.kicker import AsyncKicker

from taskiq_flow_security import (
    AccessDeniedError,
    AuthenticationError,
    BackendUnavailableError,
    ConfigurationError,
    PolicyChange,
    PolicyConflictError,
    Principal,
    RateLimitExceededError,
    Revocation,
)
from tests.integration.inmemory.fixtures import NewProcess
from tests.integration.inmemory.harness import PROCESSOR, SECRET, VIEWER, AuditTrail, Clock, Process
from tests.unit.tokens.keys import OTHER_SECRET

ADMIN = Principal("root", permissions=["admin"])
API_KEY = "the-key-of-a-processor-0123456789"
KEYS = {API_KEY: {"role": "processor", "permissions": ["execute"], "subject": "robot"}}


def bearer(clock: Clock, **claims: object) -> str:
    default = {"sub": "carol", "roles": ["processor"], "exp": clock.now + 600, "iat": clock.now, "jti": "login-1"}
    return jwt.encode({**default, **claims}, SECRET)


async def test_an_acl_that_is_narrowed_counts_for_what_is_queued(process: Process) -> None:
    queued = await process.genuine()
    policy = await process.security.administration.change(
        ADMIN, PolicyChange(pipeline_acls={"data": {"execute": ["nobody"]}})
    )
    assert policy.version == 1
    outcome = await process.broker.deliver(queued)
    assert (outcome.reason, process.ran) == ("acl", [])
    with pytest.raises(AccessDeniedError):
        await process.kick(process.clean, [1])
    await process.security.administration.change(ADMIN, PolicyChange(pipeline_acls={"data": None}))
    await process.serves()


async def test_roles_that_are_changed_count_at_the_next_login_and_for_who_is_logged_in(process: Process) -> None:
    administration = process.security.administration
    with pytest.raises(AccessDeniedError):
        await process.kick(process.clean, [1], principal=VIEWER)
    await administration.change(ADMIN, PolicyChange(roles={"carol": ["viewer"], "alice": []}))
    carol = await process.security.authenticate(bearer=bearer(process.clock))
    assert carol.roles == {"viewer"}
    with pytest.raises(AccessDeniedError):
        await process.kick(process.clean, [1], principal=PROCESSOR)
    await administration.change(ADMIN, PolicyChange(roles={"carol": ["processor"]}))
    carol = await process.security.authenticate(bearer=bearer(process.clock, roles=["viewer"]))
    await process.runs(await process.kick(process.clean, [1], principal=carol))


async def test_more_roles_do_not_raise_what_was_issued_with_less(process: Process) -> None:
    await process.security.administration.change(ADMIN, PolicyChange(roles={"bob": ["processor"]}))
    with pytest.raises(AccessDeniedError):  # who logged in as a viewer; a new login has the new roles
        await process.kick(process.clean, [1], principal=VIEWER)


@pytest.mark.parametrize(
    "revocation",
    [
        Revocation(subject="carol"),
        Revocation(token="login-1"),
        Revocation(issued_before=1_800_000_060.0),
    ],
    ids=str,
)
async def test_a_revoked_login_can_neither_kick_nor_log_in_and_what_it_has_queued_is_refused(
    process: Process, revocation: Revocation
) -> None:
    token = bearer(process.clock)
    carol = await process.security.authenticate(bearer=token)
    queued = await process.kick(process.clean, [1], principal=carol)
    labels = process.security.labels_for(carol)
    process.clock.now += 30
    await process.security.administration.revoke(ADMIN, revocation)
    await process.refuses_authentic(queued, "revoked")
    with pytest.raises(AccessDeniedError) as denied:
        await process.kick(process.clean, [1], principal=carol)
    assert denied.value.reason == "revoked"
    with pytest.raises((AccessDeniedError, AuthenticationError), match="revoked"):
        await process.clean.kicker().with_labels(**labels).kiq([1])
    with pytest.raises(AuthenticationError) as unauthenticated:
        await process.security.authenticate(bearer=token)
    assert unauthenticated.value.reason == "revoked"
    assert process.security.authorization.login_ended(carol) == "revoked"
    assert not process.security.explain(carol, pipeline="data")
    await process.security.administration.reinstate(ADMIN, revocation)
    await process.runs(await process.kick(process.clean, [1], principal=carol))


async def test_after_everything_was_revoked_who_logs_in_anew_goes_on(process: Process) -> None:
    queued = await process.genuine()
    process.clock.now += 30
    await process.security.administration.revoke(ADMIN, Revocation(issued_before=process.clock.now))
    await process.refuses_authentic(queued, "revoked")
    await process.serves()
    carol = await process.security.authenticate(bearer=bearer(process.clock))
    await process.runs(await process.kick(process.clean, [1], principal=carol))


async def test_what_is_issued_in_the_second_in_which_all_was_revoked_is_told_apart(process: Process) -> None:
    process.clock.now += 0.5
    queued = await process.genuine()
    process.clock.now += 0.001
    started = monotonic()
    await process.security.administration.revoke(ADMIN, Revocation(issued_before=process.clock.now))
    assert monotonic() - started >= 0.499  # when other issuers, which know whole seconds only, are in the next one
    await process.refuses_authentic(queued, "revoked")
    await process.serves()
    carol = await process.security.authenticate(bearer=bearer(process.clock, iat=int(process.clock.now) + 1))
    await process.kick(process.clean, [1], principal=carol)


async def test_nobody_is_locked_out_by_a_moment_that_is_still_to_come(process: Process) -> None:
    await process.security.administration.revoke(ADMIN, Revocation(issued_before=process.clock.now + 1e6))
    process.clock.now += 1
    await process.serves()


async def test_who_acts_for_long_is_issued_a_new_principal_after_the_old_one_was_revoked(process: Process) -> None:
    with process.security.acting_as(PROCESSOR):
        await process.clean.kiq([1])
        old = process.broker.take()
        process.clock.now += 30
        await process.security.administration.revoke(ADMIN, Revocation(issued_before=process.clock.now))
        await process.clean.kiq([1])
        await process.runs(process.broker.take())
    await process.refuses_authentic(old, "revoked")


async def test_a_revoked_api_key_is_refused_and_what_it_has_queued_too(new_process: NewProcess) -> None:
    process = new_process(api_keys=KEYS)
    robot = await process.security.authenticate(api_key=API_KEY)
    queued = await process.kick(process.clean, [1], principal=robot)
    assert robot.api_key_id is not None
    await process.security.administration.revoke(ADMIN, Revocation(api_key=robot.api_key_id))
    with pytest.raises(AuthenticationError) as unauthenticated:
        await process.security.authenticate(api_key=API_KEY)
    assert unauthenticated.value.reason == "api_key_revoked"
    await process.refuses_authentic(queued, "revoked")


@pytest.mark.parametrize("key", [API_KEY, "0123456789abcdef"], ids=["a key", "a key that looks like an id"])
@pytest.mark.parametrize("hashed", [False, True], ids=["plain", "hashed"])
async def test_an_api_key_that_is_revoked_by_itself_is_revoked_and_kept_nowhere(
    new_process: NewProcess, key: str, hashed: bool
) -> None:
    named = f"sha256:{hashlib.sha256(key.encode()).hexdigest()}" if hashed else key
    process = new_process(api_keys={key: KEYS[API_KEY]})
    changes: list[logging.LogRecord] = []
    process.audit.on_change = changes.append
    administration = process.security.administration
    await administration.revoke(ADMIN, Revocation(api_key=named))
    with pytest.raises(AuthenticationError, match="api_key_revoked"):
        await process.security.authenticate(api_key=key)
    kept = f"{process.security.live.document!r} {[record.__dict__ for record in changes]}"
    assert process.security.live.document.revoked.api_key
    assert changes
    assert key not in kept
    assert named not in kept
    await administration.reinstate(ADMIN, Revocation(api_key=named))
    await process.security.authenticate(api_key=key)
    await administration.revoke(ADMIN, Revocation(api_key=named, until=process.clock.now + 60))
    assert list(process.security.live.document.revoked.api_key.values()) == [process.clock.now + 60]


async def test_to_revoke_an_api_key_that_this_process_does_not_have_is_logged(
    new_process: NewProcess, caplog: pytest.LogCaptureFixture
) -> None:
    administration = new_process(api_keys=KEYS).security.administration
    await administration.revoke(ADMIN, Revocation(api_key=API_KEY))
    assert "No API key of this process" not in caplog.text
    await administration.revoke(ADMIN, Revocation(api_key="0123456789abcdef"))
    assert "No API key of this process has the id that was revoked" in caplog.text
    caplog.clear()
    with pytest.raises(AccessDeniedError):
        await administration.revoke(PROCESSOR, Revocation(api_key="0123456789abcdef"))
    assert "No API key of this process" not in caplog.text


async def test_a_message_is_revoked_by_the_id_that_the_audit_log_shows(process: Process, audit: AuditTrail) -> None:
    queued = await process.genuine()
    (enqueued,) = [entry for entry in audit.take() if entry.event == "task_enqueued"]
    assert enqueued.jti is not None
    await process.security.administration.revoke(ADMIN, Revocation(token=enqueued.jti))
    await process.refuses_authentic(queued, "revoked")
    await process.serves()


def two_keys() -> list[dict[str, object]]:
    return [
        {"kid": "old", "alg": "HS256", "uses": ["issue", "send"], "secret": SECRET},
        {"kid": "new", "alg": "HS256", "uses": ["issue", "send"], "secret": OTHER_SECRET},
    ]


async def test_a_revoked_signing_key_neither_signs_nor_is_believed(new_process: NewProcess, audit: AuditTrail) -> None:
    process = new_process(signing_keys=two_keys())
    queued = await process.genuine()
    await process.security.administration.revoke(ADMIN, Revocation(signing_key="old"))
    await process.refuses(queued, "revoked")
    audit.take()
    await process.runs(await process.genuine())
    await process.genuine()
    assert {entry.key_id for entry in audit.take() if entry.event == "task_enqueued"} == {"new"}


async def test_who_acts_for_long_is_issued_a_new_principal_after_its_key_was_revoked(new_process: NewProcess) -> None:
    process = new_process(signing_keys=two_keys())
    with process.security.acting_as(PROCESSOR):
        await process.clean.kiq([1])
        process.broker.take()
        await process.security.administration.revoke(ADMIN, Revocation(signing_key="old"))
        await process.clean.kiq([1])
        await process.runs(process.broker.take())


async def test_the_last_signing_key_cannot_be_revoked(process: Process) -> None:
    (kid,) = {key.kid for key in process.security.principals._keyring._keys}
    with pytest.raises(ConfigurationError, match="signing_keys"):
        await process.security.administration.revoke(ADMIN, Revocation(signing_key=kid))
    assert process.security.live.document.version == 0
    await process.serves()


async def test_only_who_carries_admin_changes_anything(process: Process, audit: AuditTrail) -> None:
    administration = process.security.administration
    for nobody in (
        PROCESSOR,
        Principal("eve", ["admin"]),
        Principal("eve", permissions=["execute", "read"]),
        Principal("eve", permissions=["admin"], pipelines=["data"]),
        ADMIN.restrict(pipelines=["data"]),
        ADMIN.restrict(permissions=["execute"]),
    ):
        audit.take()
        with pytest.raises(AccessDeniedError):
            await administration.change(nobody, PolicyChange(roles={"eve": ["processor"]}))
        with pytest.raises(AccessDeniedError):
            await administration.revoke(nobody, Revocation(subject="root"))
        with pytest.raises(AccessDeniedError):
            await administration.policy(nobody)
        assert [(entry.event, entry.outcome) for entry in audit.take()] == [("authz_fail", "deny")] * 3
    assert (await administration.policy(ADMIN)).version == 0


async def test_an_administrator_whose_login_has_ended_changes_nothing(process: Process, audit: AuditTrail) -> None:
    ended = Principal("root", permissions=["admin"], expires_at=process.clock.now - 10)
    audit.take()
    with pytest.raises(AuthenticationError) as refusal:
        await process.security.administration.revoke(ended, Revocation(subject="alice"))
    assert refusal.value.reason == "expired"
    assert [(entry.event, entry.outcome, entry.reason) for entry in audit.take()] == [("authz_fail", "deny", "expired")]
    await process.serves()


async def test_the_limit_of_each_principal_is_changed_while_everything_runs(process: Process) -> None:
    administration = process.security.administration
    await administration.change(ADMIN, PolicyChange(principal_rate_limit="1/hour"))
    await process.kick(process.clean, [1])
    with pytest.raises(RateLimitExceededError):
        await process.kick(process.clean, [1])
    await administration.change(ADMIN, PolicyChange(principal_rate_limit=None))
    await process.kick(process.clean, [1])


async def test_each_thing_that_is_changed_is_an_event_that_says_from_what_to_what(process: Process) -> None:
    changes: list[tuple[str, str, str]] = []
    process.audit.on_change = lambda record: changes.append((record.event, record.rule, record.change))
    administration = process.security.administration
    await administration.change(ADMIN, PolicyChange(pipeline_acls={"data": {"execute": ["ops"]}}, roles={"ada": ["x"]}))
    await administration.change(ADMIN, PolicyChange(pipeline_acls={"data": {"execute": ["dev"]}}))
    await administration.revoke(ADMIN, Revocation(subject="mallory"))
    await administration.reinstate(ADMIN, Revocation(subject="mallory"))
    await administration.change(ADMIN, PolicyChange(principal_rate_limit="9/hour"))
    assert changes == [
        ("authz_change", "pipeline_acls.data", 'version 1: null -> {"execute":["ops"]}'),
        ("authz_change", "roles.ada", 'version 1: null -> ["x"]'),
        ("authz_change", "pipeline_acls.data", 'version 2: {"execute":["ops"]} -> {"execute":["dev"]}'),
        ("authn_token_revoked", "revoked.subject.mallory", 'version 3: null -> "for ever"'),
        ("authz_change", "revoked.subject.mallory", 'version 4: "for ever" -> null'),
        ("authz_change", "principal_rate_limit", 'version 5: null -> "9/hour"'),
    ]


async def test_a_change_is_made_to_the_version_that_it_was_meant_for_or_not_at_all(process: Process) -> None:
    administration = process.security.administration
    await administration.change(ADMIN, PolicyChange(roles={"ada": ["x"]}), version=0)
    with pytest.raises(PolicyConflictError) as conflict:
        await administration.change(ADMIN, PolicyChange(roles={"ada": ["y"]}), version=0)
    assert conflict.value.version == 1
    assert (await administration.policy(ADMIN)).roles == {"ada": ["x"]}


async def test_a_change_of_which_one_part_is_wrong_changes_nothing(process: Process) -> None:
    change = PolicyChange(roles={"alice": []}, pipeline_acls={"task:clean": {"execute": ["x"]}})
    with pytest.raises(ConfigurationError, match="task_acls"):
        await process.security.administration.change(ADMIN, change)
    await process.serves()


async def test_decisions_name_the_policy_that_made_them(process: Process) -> None:
    before = process.security.policy.hash
    await process.security.administration.change(ADMIN, PolicyChange(pipeline_acls={"data": {"execute": ["ops"]}}))
    assert process.security.policy.hash != before


async def test_who_kicks_while_nobody_knows_the_policy_is_told_that_it_may_pass(process: Process) -> None:
    process.security.live.stale = True
    process.security.live.catch_up = _nothing_is_known  # type: ignore[method-assign]  # no store is asked
    process.security.live.caught_up = lambda: False  # type: ignore[method-assign]  # as above
    with process.security.acting_as(PROCESSOR), pytest.raises(BackendUnavailableError):
        await process.clean.kiq([1])
    assert process.broker.sent == []


async def test_what_a_hook_kicks_while_nobody_knows_the_policy_is_decided_about_later(new_process: NewProcess) -> None:
    process = new_process(after=(SimpleRetryMiddleware(default_retry_label=True),))

    @process.broker.task("fails", pipeline="data")
    async def fails() -> None:
        process.ran.append(("fails", None))
        if len(process.ran) == 1:
            process.security.live.stale = True
            raise LookupError

    live = process.security.live
    caught_up, live.caught_up = live.caught_up, lambda: False  # type: ignore[method-assign]  # no store is asked
    live.catch_up = _nothing_is_known  # type: ignore[method-assign]  # as above
    await process.broker.deliver(await process.kick(fails))
    live.stale, live.caught_up = False, caught_up  # type: ignore[method-assign]  # as above
    assert (await process.broker.deliver(process.broker.take())).result.is_err is False
    assert len(process.ran) == 2


class _NextStep(TaskiqMiddleware):
    async def post_save(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:
        if message.task_name == "clean":
            await AsyncKicker[Any, Any]("echo", self.broker, {}).kiq(1)


async def test_what_a_hook_kicks_while_nobody_knows_the_policy_is_not_counted_either(new_process: NewProcess) -> None:
    process = new_process(before=(_NextStep(),), task_rate_limits={"echo": "1/hour"})
    live = process.security.live
    await process.kick(process.echo, 0)
    first = await process.genuine()
    caught_up, live.caught_up = live.caught_up, lambda: False  # type: ignore[method-assign]  # no store is asked
    live.catch_up = _nothing_is_known  # type: ignore[method-assign]  # as above

    @process.broker.task("clean", pipeline="data")
    async def clean(rows: list[int], scale: int = 1) -> None:
        live.stale = True

    await process.broker.deliver(first)
    live.stale, live.caught_up = False, caught_up  # type: ignore[method-assign]  # as above
    await process.broker.deliver(process.broker.take())
    assert process.ran == [("echo", 1)]


async def _nothing_is_known() -> None:
    """A store that is away."""
