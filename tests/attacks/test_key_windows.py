"""A key whose time ends signs nothing that may be read only after that, where another key would do."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

from tests.integration.inmemory.fixtures import NewProcess
from tests.integration.inmemory.harness import SECRET, STRANGER_SECRET, Clock

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
