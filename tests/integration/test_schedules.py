"""Schedules in Redis, sent by the real ``taskiq scheduler`` and run by a real worker, for who has made them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from redis.asyncio import Redis

from taskiq_flow_security import AccessDeniedError, Principal
from tests.integration import ledger, scheduler_app
from tests.integration.client import Client
from tests.integration.conftest import NewTransport, StartWorker
from tests.integration.settings import PROCESSOR, VIEWER, worker_variables
from tests.integration.transports import Transport
from tests.integration.worker_app import clean, purge
from tests.integration.workers import ROOT
from tests.services import REDIS_URL

SECONDS = 30
SERVICES = {"nightly": {"roles": ["processor"]}}


@contextmanager
def scheduling(transport: Transport, log: Path, marker: str) -> Iterator[None]:
    """A ``taskiq scheduler`` for as long as the block."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TASKIQ_FLOW_")}
    own = {"TASKIQ_FLOW_SERVICES": json.dumps(SERVICES), "SCHEDULED_IN_CODE": marker}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "taskiq", "scheduler", "--update-interval", "1"),
                "tests.integration.scheduler_app:scheduler",
            ],
            cwd=ROOT,
            env={**inherited, **transport.environment(), **worker_variables(), **own},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


async def ran(marker: str, times: int = 1) -> None:
    """Wait until a task has run so often."""

    async def wait() -> None:
        while ledger.runs(marker) < times:  # noqa: ASYNC110 (a scheduler tells nobody)
            await asyncio.sleep(0.05)

    await asyncio.wait_for(wait(), SECONDS)


@pytest.mark.timeout(120)
async def test_what_is_scheduled_runs_for_who_has_scheduled_it_and_what_is_forged_does_not(
    new_transport: NewTransport, start_worker: StartWorker, tmp_path: Path
) -> None:
    transport = new_transport("redis-stream")
    start_worker(transport)
    log = tmp_path / "scheduler.log"
    async with Client(transport) as client, Redis.from_url(REDIS_URL, socket_timeout=None) as redis:
        broker = client.broker
        stored = scheduler_app.sources(transport, broker)
        soon = datetime.now(timezone.utc) + timedelta(seconds=1)
        expected: list[str] = []
        for source in stored.values():
            kicker = clean.kicker().with_broker(broker)
            for how in ("by_time", "by_interval", "by_cron"):
                marker = client.new_marker()
                expected.append(marker)
                with client.security.acting_as(PROCESSOR):
                    if how == "by_time":
                        await kicker.schedule_by_time(source, soon, marker, [1])
                    elif how == "by_interval":
                        await kicker.schedule_by_interval(source, 3600, marker, [1])
                    else:
                        await kicker.schedule_by_cron(source, "* * * * *", marker, [1])
        denied_at_the_worker, forged, garbage = (client.new_marker() for _ in range(3))
        with client.security.acting_as(PROCESSOR):
            # The configuration of the scheduler and the workers is narrower than that of the caller.
            await purge.kicker().with_broker(broker).schedule_by_interval(stored["list"], 3600, denied_at_the_worker)
            created = await clean.kicker().with_broker(broker).schedule_by_interval(stored["list"], 3600, garbage, [1])
        with client.security.acting_as(VIEWER), pytest.raises(AccessDeniedError):
            await clean.kicker().with_broker(broker).schedule_by_interval(stored["list"], 3600, forged, [1])
        key = f"{transport.name}-list:data:{created.schedule_id}"
        altered = json.loads(await redis.get(key) or b"{}")
        altered["args"] = [forged, [1]]
        await redis.set(key, json.dumps(altered))
        in_code = client.new_marker()
        with scheduling(transport, log, in_code):
            for marker in (*expected, in_code):
                await ran(marker)
    try:
        assert [ledger.runs(marker) for marker in (denied_at_the_worker, forged, garbage)] == [0, 0, 0]
        events = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
        fired = {event["sub"] for event in events if event["event"] == "schedule_fired"}
        assert fired == {"alice", "service:nightly"}
        refused = {(event["event"], event["reason"]) for event in events if event["outcome"] == "deny"}
        assert refused == {("task_signature_fail", "bad_signature"), ("task_authz_deny", "acl")}
    except AssertionError:
        print(log.read_text())
        raise


async def test_who_schedules_is_decided_about_before_anything_is_stored(new_transport: NewTransport) -> None:
    transport = new_transport("redis-list")
    async with Client(transport) as client:
        source = scheduler_app.sources(transport, client.broker)["list"]
        with client.security.acting_as(Principal("eve", roles=["viewer"])), pytest.raises(AccessDeniedError):
            await clean.kicker().with_broker(client.broker).schedule_by_cron(source, "* * * * *", "x", [1])
        assert await source.get_schedules() == []
