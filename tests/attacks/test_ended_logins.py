"""A login that has ended, or should never have had no end, lets nobody in any more."""

from __future__ import annotations

import hashlib
import hmac
import time
from contextlib import nullcontext

import jwt
import pytest

from taskiq_flow_security import AuthenticationError, FlowSecurity, Principal
from tests.attacks.forging import encode
from tests.integration.inmemory.fixtures import NewProcess
from tests.integration.inmemory.harness import SECRET, Clock, Process, config


async def test_who_acts_when_their_login_ends_kicks_nothing_more(process: Process, clock: Clock) -> None:
    alice = Principal("alice", roles=["processor"], expires_at=clock.now + 60)
    with process.security.acting_as(alice):
        await process.clean.kiq([1])
        process.broker.take()
        clock.now += 3600
        with pytest.raises(AuthenticationError) as refusal:
            await process.clean.kiq([1])
    assert refusal.value.reason == "expired"


@pytest.mark.parametrize(("passed", "over"), [(69, False), (70, True)])
async def test_a_login_is_over_for_everybody_at_the_same_moment(
    process: Process, clock: Clock, passed: int, over: bool
) -> None:
    token = jwt.encode({"sub": "alice", "roles": ["processor"], "exp": int(clock.now) + 60}, SECRET, "HS256")
    alice = await process.security.authenticate(bearer=token)
    clock.now += passed
    assert process.security.authorization.login_ended(alice) == ("expired" if over else None)
    assert process.security.explain(alice, pipeline="data").reason == ("expired" if over else "acl")
    for attempt in (process.security.authenticate(bearer=token), process.kick(process.clean, [1], principal=alice)):
        with pytest.raises(AuthenticationError) if over else nullcontext():
            await attempt


def test_where_security_is_off_a_login_that_is_over_may_do_everything(new_process: NewProcess, clock: Clock) -> None:
    alice = Principal("alice", expires_at=clock.now - 3600)
    assert new_process(security_enabled=False).security.explain(alice, pipeline="data").reason == "security_disabled"


async def test_a_clock_that_a_test_puts_in_the_place_of_the_systems_is_believed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    security = FlowSecurity(config())
    token = jwt.encode({"sub": "alice", "roles": ["processor"], "exp": int(time.time()) + 60}, SECRET, "HS256")
    await security.authenticate(bearer=token)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3600)
    with pytest.raises(AuthenticationError, match="expired"):
        await security.authenticate(bearer=token)


@pytest.mark.parametrize("moment", ["Infinity", "1e999"])
async def test_a_bearer_token_that_expires_at_infinity_is_one_that_never_expires(process: Process, moment: str) -> None:
    claims = f'{{"sub": "alice", "roles": ["processor"], "exp": {moment}}}'
    signed = f"{encode({'alg': 'HS256', 'typ': 'JWT'})}.{encode(claims.encode())}"
    signature = encode(hmac.new(SECRET.encode(), signed.encode(), hashlib.sha256).digest())
    with pytest.raises(AuthenticationError):
        await process.security.authenticate(bearer=f"{signed}.{signature}")
