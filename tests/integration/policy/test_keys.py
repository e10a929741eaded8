"""The keys that sign the policy can change, while everything runs and afterwards."""

from __future__ import annotations

import asyncio
from datetime import datetime, timezone

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from redis.asyncio import Redis

from taskiq_flow_security import BackendUnavailableError, PolicyChange, Revocation
from taskiq_flow_security.live_policy.document import PolicyDocument
from taskiq_flow_security.tokens import jws
from tests.integration.inmemory.harness import SECRET
from tests.integration.policy.helpers import ADMIN, allows, key_of
from tests.integration.runs.processes import Deployment
from tests.integration.waiting import until
from tests.unit.tokens.keys import OTHER_SECRET, PRIVATE, private_pem, public_pem

pytestmark = pytest.mark.usefixtures("often")

DAY = 86_400.0


def key(kid: str, **window: float) -> dict[str, object]:
    secret = {"old": SECRET, "new": OTHER_SECRET}[kid]
    moments = {name: datetime.fromtimestamp(moment, timezone.utc) for name, moment in window.items()}
    return {"kid": kid, "alg": "HS256", "uses": ["issue", "send"], "secret": secret, **moments}


async def test_who_has_the_new_key_only_reads_what_was_changed_with_the_old_one(
    deployment: Deployment, redis: Redis
) -> None:
    old = deployment.process(signing_keys=[key("old")])
    await old.administration.revoke(ADMIN, Revocation(subject="ada"))
    before = await redis.get(key_of(deployment))
    both = deployment.process(signing_keys=[key("new"), key("old")])
    await both.live.catch_up()
    assert await redis.get(key_of(deployment)) != before
    new = deployment.process(signing_keys=[key("new")])
    assert new.explain(ADMIN, pipeline="data").allowed
    assert not allows(new)
    assert new.live.document.version == 1


async def test_a_policy_is_signed_anew_before_its_key_ends(deployment: Deployment) -> None:
    now = deployment.clock.now
    keys = [key("old", not_after=now + 1.5 * DAY), key("new", not_before=now + DAY)]
    running = deployment.process(signing_keys=keys)
    await running.administration.revoke(ADMIN, Revocation(subject="ada"))
    deployment.clock.now += DAY
    await until(lambda: b'"new"' in _header(running.live._stored._signed))
    deployment.clock.now += DAY
    late = deployment.process(signing_keys=keys)
    assert late.explain(ADMIN, pipeline="data").allowed
    assert not allows(late)


async def test_a_key_that_is_reinstated_splits_no_policy(deployment: Deployment) -> None:
    one, other = (deployment.process(signing_keys=[key("old"), key("new")]) for _ in range(2))
    await other.live.catch_up()
    await one.administration.revoke(ADMIN, Revocation(signing_key="old"))
    await until(lambda: other.live.document.version == 1)
    await one.administration.reinstate(ADMIN, Revocation(signing_key="old"))
    await one.administration.revoke(ADMIN, Revocation(subject="ada"))
    await until(lambda: other.live.document.version == 3 and not allows(other))
    await other.administration.reinstate(ADMIN, Revocation(subject="ada"))
    await until(lambda: one.live.document.version == 4 and allows(one))
    assert one.principals.issue(ADMIN, "txn", deployment.clock.now, deployment.clock.now + 60).kid == "old"
    late = deployment.process(signing_keys=[key("old"), key("new")])
    await late.live.catch_up()
    assert late.live.document == one.live.document


async def test_a_policy_whose_key_has_ended_is_signed_anew_by_who_still_knows_it(deployment: Deployment) -> None:
    now = deployment.clock.now
    keys = [key("old", not_after=now + 60), key("new", not_before=now + 60)]
    running = deployment.process(signing_keys=keys, clock_leeway=0)
    await running.administration.revoke(ADMIN, Revocation(subject="ada"))
    deployment.clock.now += 60
    late = deployment.process(signing_keys=keys, clock_leeway=0)
    await until(lambda: late.explain(ADMIN, pipeline="data").allowed)
    assert not allows(late)


async def test_two_processes_that_prefer_different_keys_do_not_sign_in_turn_for_ever(
    deployment: Deployment, redis: Redis
) -> None:
    processes = [deployment.process(signing_keys=[key(first), key(second)]) for first, second in (_BOTH, _BOTH[::-1])]
    await processes[0].administration.revoke(ADMIN, Revocation(subject="ada"))
    await processes[1].live.catch_up()
    changes, before = 0, await redis.get(key_of(deployment))
    for _ in range(100):
        await asyncio.sleep(0.01)
        found = await redis.get(key_of(deployment))
        changes, before = changes + (found != before), found
    assert changes <= 2
    assert not any(map(allows, processes))


_BOTH = ("old", "new")


async def test_who_only_verifies_signs_nothing_anew(deployment: Deployment, redis: Redis) -> None:
    signing = {"alg": "EdDSA", "uses": ["issue", "send"]}
    first, second = PRIVATE["EdDSA"], Ed25519PrivateKey.generate()
    api = deployment.process(signing_keys=[{"kid": "old", **signing, "private_key": private_pem(first)}])
    await api.administration.revoke(ADMIN, Revocation(subject="ada"))
    before = await redis.get(key_of(deployment))
    worker = deployment.process(
        signing_keys=[
            {"kid": "new", **signing, "public_key": public_pem(second)},
            {"kid": "old", **signing, "public_key": public_pem(first)},
            {"kid": "worker", "alg": "HS256", "uses": ["send"], "secret": OTHER_SECRET},
        ]
    )
    await worker.live.catch_up()
    await asyncio.sleep(0.2)
    assert not allows(worker)
    assert await redis.get(key_of(deployment)) == before


@pytest.mark.parametrize("why", ["key", "settings"])
async def test_who_cannot_read_a_newer_policy_leaves_it_there_and_denies_after_a_while(
    deployment: Deployment, redis: Redis, why: str
) -> None:
    behind = deployment.process(signing_keys=[key("old")], policy_max_age=0.5)
    await behind.administration.change(ADMIN, PolicyChange(roles={"bob": ["x"]}))
    readable = await redis.get(key_of(deployment))
    assert isinstance(readable, bytes)
    if why == "key":
        ahead = deployment.process(signing_keys=[key("new"), key("old")])
        newer = PolicyDocument(version=2)
    else:
        ahead, newer = behind, _NewerProgram(version=2, what_comes_later=True)
    signed = ahead.live._stored._signer.sign(newer, deployment.clock())
    await redis.set(key_of(deployment), signed)
    await asyncio.sleep(0.2)
    assert allows(behind)
    with pytest.raises(BackendUnavailableError):
        await behind.administration.revoke(ADMIN, Revocation(subject="ada"))
    await until(lambda: not allows(behind))
    assert behind.explain(ADMIN, pipeline="data").reason == "policy_stale"
    assert await redis.get(key_of(deployment)) == signed
    await redis.set(key_of(deployment), readable)
    await until(lambda: allows(behind))


class _NewerProgram(PolicyDocument):
    """A policy of a program that has more settings."""

    what_comes_later: bool = False


def _header(signed: bytes | None) -> bytes:
    assert signed is not None
    return jws.decode_any(signed.partition(b".")[0])
