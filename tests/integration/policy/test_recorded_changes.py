"""No change is in force that is not recorded, whatever happens while it is made."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path

import pytest
import pytest_asyncio

from taskiq_flow_security import BackendUnavailableError, FlowSecurity, PolicyChange, Revocation
from taskiq_flow_security.live_policy import live
from tests.integration.inmemory.harness import AuditTrail
from tests.integration.policy.helpers import ADMIN, allows, forked
from tests.integration.runs.processes import Deployment
from tests.integration.runs.proxy import Proxy
from tests.integration.waiting import until

REVOKED = ("authn_token_revoked", "INFO", 'version 2: null -> "for ever"')


@pytest.fixture
def changes(audit: AuditTrail) -> list[tuple[str, str, str]]:
    """The event, level and text of each change that is recorded."""
    recorded: list[tuple[str, str, str]] = []
    audit.on_change = lambda record: recorded.append((record.event, record.levelname, record.change))
    return recorded


@pytest_asyncio.fixture
async def other(deployment: Deployment, changes: list[tuple[str, str, str]]) -> FlowSecurity:
    """A process that sees what others change, after the first version."""
    other = deployment.process()
    await other.administration.change(ADMIN, PolicyChange(roles={"bob": ["x"]}))
    changes.clear()
    return other


async def test_a_change_whose_answer_is_lost_is_made_and_recorded_once(
    deployment: Deployment, proxy: Proxy, other: FlowSecurity, changes: list[tuple[str, str, str]]
) -> None:
    one = deployment.process(url=proxy.url)
    store = one.live._stored._store
    replace = store.replace

    async def lost(mark: bytes, new: bytes) -> bool:
        store.replace = replace  # type: ignore[method-assign]
        proxy.drop_answers()
        try:
            return await replace(mark, new)
        finally:
            proxy.thaw()

    store.replace = lost  # type: ignore[method-assign]
    assert (await one.administration.revoke(ADMIN, Revocation(subject="ada"))).version == 2
    assert not allows(one)
    await until(lambda: not allows(other))
    assert changes == [REVOKED]


async def test_a_change_of_which_nobody_can_tell_whether_it_was_made_is_recorded(
    deployment: Deployment, proxy: Proxy, other: FlowSecurity, changes: list[tuple[str, str, str]]
) -> None:
    one = deployment.process(url=proxy.url)
    store = one.live._stored._store
    replace = store.replace

    async def lost(mark: bytes, new: bytes) -> bool:
        proxy.drop_answers()
        return await replace(mark, new)

    store.replace = lost  # type: ignore[method-assign]
    with pytest.raises(BackendUnavailableError):
        await one.administration.revoke(ADMIN, Revocation(subject="ada"))
    proxy.thaw()
    await until(lambda: not allows(other))
    await until(lambda: not allows(one))
    assert changes == [REVOKED]


async def test_a_change_for_which_nobody_waits_any_more_is_made_and_recorded(
    deployment: Deployment,
    other: FlowSecurity,
    changes: list[tuple[str, str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(live, "INTERVAL", 60)  # so that nobody comes across it
    one = deployment.process()
    store = one.live._stored._store
    replace = store.replace

    async def slow(mark: bytes, new: bytes) -> bool:
        made = await replace(mark, new)
        await asyncio.sleep(0.2)
        return made

    store.replace = slow  # type: ignore[method-assign]
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(one.administration.revoke(ADMIN, Revocation(subject="ada")), 0.1)
    await until(lambda: not allows(one))
    assert not allows(deployment.process())
    assert changes == [REVOKED]


async def test_a_change_after_which_the_process_is_killed_is_in_the_audit_file(
    deployment: Deployment, other: FlowSecurity, tmp_path: Path
) -> None:
    file = tmp_path / "audit.jsonl"

    def change() -> bool:
        one = deployment.process(audit_file=file)
        store = one.live._stored._store
        replace = store.replace

        async def last(mark: bytes, new: bytes) -> bool:
            await replace(mark, new)
            os.kill(os.getpid(), signal.SIGKILL)
            return True

        store.replace = last  # type: ignore[method-assign]
        asyncio.run(one.administration.revoke(ADMIN, Revocation(subject="ada")))  # does not come back
        return False

    assert await forked(change) == -signal.SIGKILL
    await until(lambda: not allows(other))
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["change"] for line in lines if "change" in line] == ['version 2: null -> "for ever"']


async def test_a_change_that_was_recorded_and_not_made_is_recorded_as_that(
    deployment: Deployment, other: FlowSecurity, changes: list[tuple[str, str, str]]
) -> None:
    one = deployment.process()
    store = one.live._stored._store
    replace = store.replace

    async def late(mark: bytes, new: bytes) -> bool:
        store.replace = replace  # type: ignore[method-assign]
        await other.administration.change(ADMIN, PolicyChange(roles={"eve": ["x"]}))
        return await replace(mark, new)

    store.replace = late  # type: ignore[method-assign]
    assert (await one.administration.revoke(ADMIN, Revocation(subject="ada"))).version == 3
    assert changes == [
        REVOKED,
        ("authz_change", "INFO", 'version 2: null -> ["x"]'),
        ("authn_token_revoked", "WARNING", 'version 2: null -> "for ever"'),
        ("authn_token_revoked", "INFO", 'version 3: null -> "for ever"'),
    ]


async def test_a_change_that_cannot_be_recorded_is_not_made(
    deployment: Deployment, other: FlowSecurity, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = deployment.process()

    def fail(_event: object) -> None:
        raise OSError

    monkeypatch.setattr(one.audit, "record", fail)
    with pytest.raises(OSError):  # noqa: PT011 (this one)
        await one.administration.revoke(ADMIN, Revocation(subject="ada"))
    await asyncio.sleep(0.5)
    assert allows(one)
    assert allows(other)
