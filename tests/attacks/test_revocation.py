"""Queued work is decided about by what the worker is configured with when it arrives."""

from __future__ import annotations

import hashlib
from datetime import datetime, timezone
from typing import Any

import pytest

from taskiq_flow_security import AccessDeniedError, AuthenticationError
from tests.integration.inmemory.fixtures import NewProcess
from tests.integration.inmemory.harness import PROCESSOR, VIEWER, Clock, Process

KEY = "the-key-of-the-processor"
ENTRY: dict[str, Any] = {"role": "processor", "pipelines": ["data"], "permissions": ["read", "execute"]}


async def _kicked_with_the_key(api: Process) -> bytes:
    principal = await api.security.authenticate(api_key=KEY)
    return await api.kick(api.clean, [1], principal=principal)


@pytest.fixture
async def queued(new_process: NewProcess) -> bytes:
    """A message that was kicked with an API key while all was well."""
    return await _kicked_with_the_key(new_process(api_keys={KEY: ENTRY, "another-key": ENTRY}))


async def test_a_key_that_the_worker_knows_too_runs_its_task(new_process: NewProcess, queued: bytes) -> None:
    await new_process(api_keys={KEY: ENTRY}).runs(queued)


async def test_a_worker_that_lists_no_keys_leaves_them_to_the_api(process: Process, queued: bytes) -> None:
    await process.runs(queued)


async def test_work_of_a_removed_key_is_refused(new_process: NewProcess, queued: bytes) -> None:
    worker = new_process(api_keys={"another-key": ENTRY})
    await worker.refuses(queued, "api_key_removed", AccessDeniedError)


async def test_work_of_the_last_key_that_was_removed_is_refused_too(new_process: NewProcess, queued: bytes) -> None:
    worker = new_process(api_keys={})
    await worker.refuses(queued, "api_key_removed", AccessDeniedError)


async def test_work_of_a_removed_key_is_refused_though_another_has_the_same_rights_and_subject(
    new_process: NewProcess,
) -> None:
    entry = ENTRY | {"subject": "alice"}
    queued = await _kicked_with_the_key(new_process(api_keys={KEY: entry}))
    worker = new_process(api_keys={"another-key": entry})
    await worker.refuses(queued, "api_key_removed", AccessDeniedError)


async def test_a_key_in_plain_text_and_its_hash_are_the_same_key(new_process: NewProcess, queued: bytes) -> None:
    hashed = f"sha256:{hashlib.sha256(KEY.encode()).hexdigest()}"
    await new_process(api_keys={hashed: ENTRY}).runs(queued)


async def test_the_hash_of_a_key_is_no_key(new_process: NewProcess) -> None:
    hashed = f"sha256:{hashlib.sha256(KEY.encode()).hexdigest()}"
    security = new_process(api_keys={hashed: ENTRY}).security
    for presented in (hashed, hashed.removeprefix("sha256:")):
        with pytest.raises(AuthenticationError) as refusal:
            await security.authenticate(api_key=presented)
        assert refusal.value.reason == "unknown_api_key"


async def test_work_of_a_key_that_has_expired_in_the_queue_is_refused(
    new_process: NewProcess, queued: bytes, clock: Clock
) -> None:
    end = datetime.fromtimestamp(clock.now + 60, timezone.utc)
    settings: dict[str, Any] = {"api_keys": {KEY: ENTRY | {"expires_at": end.isoformat()}}}
    await new_process(**settings).runs(queued)
    clock.now += 60
    await new_process(**settings).refuses(queued, "api_key_expired", AccessDeniedError)


NARROWED: dict[str, tuple[dict[str, Any], str]] = {
    "other pipelines": ({"pipelines": ["reports"]}, "whitelist"),
    "fewer permissions": ({"permissions": ["read"]}, "permission"),
    "no permissions": ({"permissions": []}, "permission"),
    "another role": ({"role": "viewer"}, "acl"),
}


@pytest.mark.parametrize(("change", "reason"), NARROWED.values(), ids=NARROWED)
async def test_work_of_a_key_that_was_narrowed_is_refused(
    new_process: NewProcess, queued: bytes, change: dict[str, Any], reason: str
) -> None:
    await new_process(api_keys={KEY: ENTRY | change}).refuses(queued, reason, AccessDeniedError)


@pytest.mark.parametrize(
    "change", [{"pipelines": ["*"]}, {"permissions": ["admin"]}, {"role": "reporter", "pipelines": []}], ids=str
)
async def test_a_key_that_was_widened_gives_queued_work_no_more_than_it_was_kicked_with(
    new_process: NewProcess, change: dict[str, Any]
) -> None:
    api = new_process(api_keys={KEY: ENTRY}, pipeline_acls={})
    principal = await api.security.authenticate(api_key=KEY)
    worker = new_process(api_keys={KEY: ENTRY | change})
    for pipeline, task in (("reports", None), (None, "loose")):
        decision = worker.security.explain(principal, pipeline=pipeline, task=task)
        assert not decision.allowed


async def test_work_is_refused_when_its_acl_was_narrowed(process: Process, new_process: NewProcess) -> None:
    queued = await process.genuine()
    worker = new_process(pipeline_acls={"data": {"execute": ["administrator"]}})
    worker.sender = new_process()
    outcome = await worker.broker.deliver(queued)
    assert worker.ran == []
    assert outcome.acks == 1
    assert outcome.reason == "acl"


@pytest.mark.parametrize("acls", [{}, {"data": {}}, {"data": {"read": ["processor"]}}, {"data": {"execute": []}}])
async def test_work_is_refused_when_its_acl_is_gone(
    process: Process, new_process: NewProcess, acls: dict[str, Any]
) -> None:
    queued = await process.genuine()
    worker = new_process(pipeline_acls=acls)
    outcome = await worker.broker.deliver(queued)
    assert worker.ran == []
    assert isinstance(outcome.error, AccessDeniedError)


async def test_work_is_refused_when_an_acl_for_its_task_was_added(process: Process, new_process: NewProcess) -> None:
    queued = await process.genuine()
    worker = new_process(task_acls={"clean": {"execute": ["administrator"]}})
    outcome = await worker.broker.deliver(queued)
    assert worker.ran == []
    assert outcome.reason == "acl"


async def test_a_sender_that_asks_for_more_than_the_worker_grants_is_refused(
    process: Process, new_process: NewProcess
) -> None:
    api = new_process(pipeline_acls={"data": {"execute": ["viewer"]}})
    await process.refuses(await api.kick(api.clean, [1], principal=VIEWER), "acl", AccessDeniedError)


async def test_a_sender_that_is_only_monitored_is_refused_by_a_worker_that_is_not(
    process: Process, new_process: NewProcess
) -> None:
    api = new_process(enforcement="monitor")
    await process.refuses(await api.kick(api.clean, [1], principal=VIEWER), "acl", AccessDeniedError)


async def test_a_sender_with_security_off_is_refused_by_a_worker_with_it_on(
    process: Process, new_process: NewProcess
) -> None:
    api = new_process(security_enabled=False)
    await process.refuses(await api.kick(api.clean, [1], principal=PROCESSOR), "unsigned")


async def test_an_anonymous_kick_of_a_monitored_sender_is_refused_by_a_worker_that_enforces(
    process: Process, new_process: NewProcess
) -> None:
    api = new_process(enforcement="monitor")
    await api.clean.kiq([1])
    await process.refuses(api.broker.take(), "unsigned")
