"""Each decision is one event on each side; `txn` joins what was done for one request, `jti` the sides of a message."""

from __future__ import annotations

import pytest

from taskiq_flow_security import AccessDeniedError, AuthenticationError, RateLimitExceededError, guard
from tests.attacks.forging import header_of, read, signature_of, write
from tests.integration.inmemory.fixtures import NewProcess
from tests.integration.inmemory.harness import PROCESSOR, VIEWER, Clock, Process

KEY = "the-key-of-the-processor"
API_KEYS = {KEY: {"role": "processor", "pipelines": ["data"], "permissions": ["execute"]}}


async def test_an_allowed_task_is_one_event_on_each_side_joined_by_txn_and_jti(process: Process) -> None:
    message = await process.genuine()
    await process.broker.deliver(message)
    sent, run = process.audit.take()
    assert [sent.event, run.event] == ["task_enqueued", "task_authz_allow"]
    for entry in (sent, run):
        assert (entry.outcome, entry.reason, entry.rule) == ("allow", "acl", "pipeline_acls.data.execute")
    assert sent.txn
    assert sent.txn == run.txn
    assert sent.jti == run.jti == header_of(signature_of(read(message)))["jti"]
    assert sent.key_id == run.key_id == header_of(signature_of(read(message)))["kid"]
    for entry in (sent, run):
        assert (entry.sub, entry.roles, entry.pipeline) == ("alice", ["processor"], "data")
        assert (entry.permission, entry.task, entry.task_id) == ("execute", "clean", read(message).task_id)


async def test_a_login_and_all_that_is_done_after_it_are_one_transaction(new_process: NewProcess) -> None:
    process = new_process(api_keys=API_KEYS)

    @process.broker.task("parent", pipeline="data")
    async def parent() -> None:
        await process.clean.kiq([1])
        await process.clean.kiq([2])

    principal = await process.security.authenticate(api_key=KEY)
    await process.broker.deliver(await process.kick(parent, principal=principal))
    for data in process.broker.sent:
        await process.broker.deliver(data)
    entries = process.audit.take()
    assert [entry.event for entry in entries] == [
        "authn_login_success",
        "task_enqueued",
        "task_authz_allow",
        "task_delegated",
        "task_delegated",
        "task_authz_allow",
        "task_authz_allow",
    ]
    assert len({entry.txn for entry in entries}) == 1
    assert len({entry.jti for entry in entries if entry.jti}) == 3


async def test_two_logins_are_two_transactions(new_process: NewProcess) -> None:
    process = new_process(api_keys=API_KEYS)
    for _ in range(2):
        await process.security.authenticate(api_key=KEY)
    first, second = process.audit.take()
    assert first.txn != second.txn


@pytest.mark.parametrize("credentials", [{"api_key": "x"}, {"bearer": "x"}, {}, {"api_key": KEY, "bearer": "x"}])
async def test_a_failed_login_is_one_event(new_process: NewProcess, credentials: dict[str, str]) -> None:
    process = new_process(api_keys=API_KEYS)
    with pytest.raises(AuthenticationError) as refusal:
        await process.security.authenticate(**credentials)
    (entry,) = process.audit.take()
    assert (entry.event, entry.outcome, entry.reason) == ("authn_login_fail", "deny", refusal.value.reason)


async def test_a_denied_kick_is_one_event_and_names_its_rule(process: Process) -> None:
    with pytest.raises(AccessDeniedError):
        await process.kick(process.clean, [1], principal=VIEWER)
    (entry,) = process.audit.take()
    assert (entry.event, entry.outcome, entry.reason) == ("task_authz_deny", "deny", "acl")
    assert (entry.rule, entry.sub, entry.task) == ("pipeline_acls.data.execute", "bob", "clean")
    assert entry.txn


async def test_a_kick_without_a_principal_is_one_event(process: Process) -> None:
    with pytest.raises(AuthenticationError):
        await process.clean.kiq([1])
    (entry,) = process.audit.take()
    assert (entry.event, entry.outcome, entry.reason) == ("task_authz_deny", "deny", "no_principal")


async def test_a_kick_beyond_the_rate_limit_is_one_event(process: Process) -> None:
    @process.broker.task("rare", pipeline="data")
    @guard(rate_limit="1/hour")
    async def rare() -> None: ...

    await process.kick(rare)
    process.audit.take()
    with pytest.raises(RateLimitExceededError):
        await process.kick(rare)
    (entry,) = process.audit.take()
    assert (entry.event, entry.outcome, entry.reason) == ("excess_rate_limit_exceeded", "deny", "rate_limit")


async def test_a_message_that_the_worker_denies_is_one_event_joined_to_its_kick(
    process: Process, new_process: NewProcess
) -> None:
    api = new_process(pipeline_acls={"data": {"execute": ["viewer"]}})
    await process.broker.deliver(await api.kick(api.clean, [1], principal=VIEWER))
    sent, denied = process.audit.take()
    assert (sent.event, denied.event, denied.reason) == ("task_enqueued", "task_authz_deny", "acl")
    assert (sent.txn, sent.jti) == (denied.txn, denied.jti)
    assert denied.sub == "bob"


@pytest.mark.parametrize(
    ("change", "event", "reason"),
    [
        ({"labels": {}, "labels_types": None}, "task_signature_fail", "unsigned"),
        ({"args": [[9]]}, "task_signature_fail", "bad_signature"),
    ],
    ids=["unsigned", "altered"],
)
async def test_a_forged_message_is_one_event_that_names_nobody(
    process: Process, change: dict[str, object], event: str, reason: str
) -> None:
    message = read(await process.genuine()).model_copy(update=change)
    process.audit.take()
    await process.broker.deliver(write(message))
    (entry,) = process.audit.take()
    assert (entry.event, entry.outcome, entry.reason) == (event, "deny", reason)
    assert (entry.sub, entry.roles, entry.jti) == (None, [], None)
    assert entry.task_id == message.task_id


async def test_an_expired_message_is_one_event(process: Process) -> None:
    message = await process.genuine()
    process.clock.now += 100_000
    process.audit.take()
    await process.broker.deliver(message)
    (entry,) = process.audit.take()
    assert (entry.event, entry.outcome, entry.reason) == ("task_token_expired", "deny", "expired")


async def test_an_unreadable_message_is_one_event(process: Process) -> None:
    await process.broker.deliver(b"not a message")
    (entry,) = process.audit.take()
    assert (entry.event, entry.outcome, entry.reason) == ("input_validation_fail", "deny", "unreadable")


async def test_a_start_is_one_event(process: Process) -> None:
    await process.broker.startup()
    (entry,) = process.audit.take()
    assert (entry.event, entry.outcome) == ("sys_startup", "allow")


async def test_explain_records_nothing(process: Process) -> None:
    for principal in (PROCESSOR, VIEWER):
        process.security.explain(principal, pipeline="data")
    assert process.audit.take() == []


async def test_the_event_of_a_message_that_comes_too_late_says_whose_it_was(process: Process, clock: Clock) -> None:
    message = await process.genuine()
    [sent] = process.audit.take()
    clock.now += 100_000
    await process.broker.deliver(message)
    [refused] = process.audit.take()
    assert refused.event == "task_token_expired"
    assert refused.sub == sent.sub == "alice"
    assert (refused.txn, refused.jti) == (sent.txn, sent.jti)
