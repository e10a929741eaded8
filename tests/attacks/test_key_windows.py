"""A key whose time ends signs nothing that may be read only after that, where another key would do."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

from tests.attacks.forging import principal_of, read
from tests.integration.inmemory.fixtures import NewProcess
from tests.integration.inmemory.harness import PROCESSOR, SECRET, STRANGER_SECRET, Clock

HOUR = 3600


async def test_a_message_that_waits_longer_than_a_key_lasts_is_signed_with_one_that_lasts(
    new_process: NewProcess, clock: Clock
) -> None:
    ends = datetime.fromtimestamp(clock.now, timezone.utc) + timedelta(hours=1)
    common = {"alg": "HS256", "uses": ["issue", "send"]}
    keys = [
        {"kid": "old", "secret": SECRET, "not_after": ends, **common},
        {"kid": "new", "secret": STRANGER_SECRET, **common},
    ]
    process = new_process(jwt_secret=None, signing_keys=keys)
    data = await process.genuine()
    clock.now += 2 * HOUR
    await process.runs(data)


async def test_a_key_that_begins_to_sign_is_recorded_once_for_each_use(new_process: NewProcess, clock: Clock) -> None:
    begins = datetime.fromtimestamp(clock.now, timezone.utc) + timedelta(hours=1)
    common = {"alg": "HS256", "uses": ["issue", "send"]}
    keys = [
        {"kid": "new", "secret": STRANGER_SECRET, "not_before": begins, **common},
        {"kid": "old", "secret": SECRET, **common},
    ]
    process = new_process(jwt_secret=None, signing_keys=keys)
    changes: list[tuple[str, str]] = []
    process.audit.on_change = lambda record: changes.append((record.event, f"{record.rule}: {record.change}"))
    await process.genuine()
    assert changes == []
    clock.now += HOUR
    for _ in range(2):
        await process.runs(await process.genuine())
    assert changes == [("key_rotated", "issue: old -> new"), ("key_rotated", "send: old -> new")]


async def test_who_acts_for_long_is_issued_a_new_principal_before_its_key_is_over(
    new_process: NewProcess, clock: Clock
) -> None:
    now = datetime.fromtimestamp(clock.now, timezone.utc)
    common = {"alg": "HS256", "uses": ["issue", "send"]}
    keys = [
        {"kid": "old", "secret": SECRET, "not_after": now + timedelta(hours=2), **common},
        {"kid": "new", "secret": STRANGER_SECRET, "not_before": now + timedelta(hours=1), **common},
    ]
    process = new_process(jwt_secret=None, signing_keys=keys)
    sent = []
    with process.security.acting_as(PROCESSOR):
        for _ in range(4):
            await process.clean.kiq([1])
            sent.append(process.broker.take())
            clock.now += HOUR
            await process.broker.deliver(sent[-1])
    assert len(process.ran) == 4
    texts = [principal_of(read(message)) for message in sent]
    assert texts[0] != texts[1] == texts[2] == texts[3]
