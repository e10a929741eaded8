"""Processes that share a Redis have the same policy within a second, and none that anybody else has made."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import Any

import pytest
from redis.asyncio import Redis
from taskiq.kicker import AsyncKicker

from taskiq_flow_security import (
    AuthenticationError,
    BackendUnavailableError,
    FlowSecurity,
    PolicyChange,
    PolicyConflictError,
    Revocation,
    SecurityMiddleware,
)
from taskiq_flow_security.live_policy import live
from taskiq_flow_security.live_policy.document import PolicyDocument, Revoked
from tests.integration.inmemory.harness import AuditTrail, Queue
from tests.integration.policy.helpers import ADA, ADMIN, allows, forked, key_of
from tests.integration.runs.processes import Deployment
from tests.integration.runs.proxy import Proxy
from tests.integration.waiting import until
from tests.services import REDIS_URL
from tests.unit.tokens.keys import OTHER_SECRET, PRIVATE, private_pem, public_pem

SECONDS = 1.0
"""In which a change has to be everywhere."""

EVERYTHING = PolicyChange(pipeline_acls={"data": {"execute": ["ops"]}}, roles={"ada": ["ops"]})


async def stands(deployment: Deployment, redis: Redis, policy: bytes | str | None, *denying: FlowSecurity) -> bool:
    """Whether this policy stands in the store; whatever does, these processes deny."""
    assert not any(allows(process) for process in denying)
    return bool(await redis.get(key_of(deployment)) == policy)


async def test_a_change_is_in_force_everywhere_within_a_second(deployment: Deployment) -> None:
    one, other = deployment.process(), deployment.process()
    assert allows(one)
    assert allows(other)
    await one.administration.revoke(ADMIN, Revocation(subject="ada"))
    assert not allows(one)
    await until(lambda: not allows(other), SECONDS)
    await other.administration.reinstate(ADMIN, Revocation(subject="ada"))
    assert allows(other)
    await until(lambda: allows(one), SECONDS)


async def test_who_starts_later_begins_with_what_is_in_force(deployment: Deployment) -> None:
    await deployment.process().administration.revoke(ADMIN, Revocation(subject="ada"))
    late = deployment.process()
    assert late.explain(ADA, pipeline="data").reason == "revoked"
    with pytest.raises(AuthenticationError):
        await deployment.process(api_keys={"k" * 32: {"role": "x", "subject": "ada"}}).authenticate(api_key="k" * 32)


async def test_changes_at_the_same_time_are_all_made(deployment: Deployment) -> None:
    processes = [deployment.process() for _ in range(30)]
    await asyncio.gather(
        *(
            process.administration.change(ADMIN, PolicyChange(roles={f"user-{number}": ["x"]}))
            for number, process in enumerate(processes)
        )
    )
    last = deployment.process()
    await last.live.catch_up()
    assert last.live.document.version == 30
    assert set(last.live.document.roles) == {f"user-{number}" for number in range(30)}


async def test_of_two_changes_to_one_version_one_is_made(deployment: Deployment) -> None:
    one, other = deployment.process(), deployment.process()
    made = await asyncio.gather(
        one.administration.change(ADMIN, PolicyChange(roles={"ada": ["a"]}), version=0),
        other.administration.change(ADMIN, PolicyChange(roles={"ada": ["b"]}), version=0),
        return_exceptions=True,
    )
    assert sorted(type(outcome).__name__ for outcome in made) == ["PolicyConflictError", "PolicyDocument"]
    assert any(isinstance(outcome, PolicyConflictError) for outcome in made)


@pytest.mark.usefixtures("often")
async def test_a_policy_that_is_deleted_is_put_back(deployment: Deployment, redis: Redis) -> None:
    one = deployment.process()
    await one.administration.revoke(ADMIN, Revocation(subject="ada"))
    kept = await redis.getdel(key_of(deployment))
    await until(lambda: stands(deployment, redis, kept))
    assert not allows(deployment.process())


@pytest.mark.usefixtures("often")
async def test_an_old_policy_that_is_brought_back_counts_nowhere_and_is_replaced(
    deployment: Deployment, redis: Redis
) -> None:
    one, other = deployment.process(), deployment.process()
    await one.administration.change(ADMIN, PolicyChange(roles={"bob": ["x"]}))
    old = await redis.get(key_of(deployment))
    assert isinstance(old, bytes)
    await one.administration.revoke(ADMIN, Revocation(subject="ada"))
    await until(lambda: not allows(other))
    newest = await redis.get(key_of(deployment))
    await redis.set(key_of(deployment), old)
    await until(lambda: stands(deployment, redis, newest, one, other))


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("how", ["appended to", "altered", "a list"])
async def test_what_is_not_the_policy_to_the_last_byte_is_replaced_and_can_be_changed(
    deployment: Deployment, redis: Redis, how: str
) -> None:
    one, key = deployment.process(), key_of(deployment)
    await one.administration.change(ADMIN, PolicyChange(roles={"bob": ["x"]}))
    newest = await redis.get(key)
    assert isinstance(newest, bytes)
    if how == "appended to":
        await redis.append(key, b" ")
    elif how == "altered":
        await redis.setrange(key, len(newest) - 1, b" ")
    else:
        await redis.delete(key)
        await redis.rpush(key, "x")
    assert (await one.administration.revoke(ADMIN, Revocation(subject="ada"))).version == 2
    assert not allows(deployment.process())


@pytest.mark.usefixtures("often")
async def test_what_either_of_two_policies_of_one_version_revokes_stays_revoked(
    deployment: Deployment, redis: Redis
) -> None:
    """Redis lets two be made where it fails over to a replica that has not seen the first; nor does one that was signed
    and lost a race, put there by whoever has seen it, get in force.
    """
    one = deployment.process()
    await one.administration.revoke(ADMIN, Revocation(subject="ada"))
    others = PolicyDocument(version=1, roles={"bob": ["x"]}, revoked=Revoked(subject={"eve": None}))
    await redis.set(key_of(deployment), one.live._stored._signer.sign(others, deployment.clock()))
    await until(lambda: one.live.document.version == 2)
    late = deployment.process()
    await late.live.catch_up()
    assert late.live.document.roles == {}
    assert set(late.live.document.revoked.subject) == {"ada", "eve"}


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("garbage", [b"", b"x", b"a.b.c\n{}", b"{}", b"x" * 5_000_000], ids=len)
async def test_what_nobody_has_signed_counts_nowhere_and_is_replaced(
    deployment: Deployment, redis: Redis, garbage: bytes
) -> None:
    one = deployment.process()
    await one.administration.revoke(ADMIN, Revocation(subject="ada"))
    newest = await redis.get(key_of(deployment))
    await redis.set(key_of(deployment), garbage)
    await until(lambda: stands(deployment, redis, newest, one))


async def test_what_could_be_no_policy_is_not_even_read(deployment: Deployment, redis: Redis) -> None:
    await redis.set(key_of(deployment), b"x" * 5_000_000)
    found = await deployment.process().live._stored._store.read()
    assert found == (b"long", b"")


async def test_who_finds_what_nobody_has_signed_denies_everything_until_it_is_put_right(
    deployment: Deployment, redis: Redis, often: None
) -> None:
    await redis.set(key_of(deployment), b"garbage")
    alone = deployment.process()
    assert alone.explain(ADA, pipeline="data").reason == "policy_stale"
    with pytest.raises(BackendUnavailableError):
        await alone.authenticate(api_key="whatever")
    await redis.delete(key_of(deployment))
    await until(lambda: allows(alone))


async def test_another_environments_policy_is_not_believed(deployment: Deployment, redis: Redis) -> None:
    elsewhere = Deployment()
    await elsewhere.process().administration.change(ADMIN, EVERYTHING)
    await redis.rename(key_of(elsewhere), key_of(deployment))
    assert deployment.process().explain(ADA, pipeline="data").reason == "policy_stale"


async def test_a_worker_that_can_only_send_can_change_nothing_whatever_it_writes(
    deployment: Deployment, redis: Redis
) -> None:
    issuing = {"kid": "api", "alg": "EdDSA", "uses": ["issue", "send"]}
    api_keys = [{**issuing, "private_key": private_pem(PRIVATE["EdDSA"])}]
    worker_keys = [
        {**issuing, "public_key": public_pem(PRIVATE["EdDSA"])},
        {"kid": "worker", "alg": "HS256", "uses": ["send"], "secret": OTHER_SECRET},
    ]
    worker = deployment.process(signing_keys=worker_keys)
    with pytest.raises(AuthenticationError) as refusal:
        await worker.administration.change(ADMIN, EVERYTHING)
    assert refusal.value.reason == "cannot_issue"
    api = deployment.process(signing_keys=api_keys)
    await api.administration.revoke(ADMIN, Revocation(subject="ada"))
    await until(lambda: not allows(worker), SECONDS)


async def test_a_process_keeps_the_last_policy_for_a_while_then_denies_and_goes_on_when_the_store_is_back(
    deployment: Deployment, proxy: Proxy, often: None
) -> None:
    security = deployment.process(url=proxy.url, policy_max_age=0.5)
    await security.administration.change(ADMIN, PolicyChange(roles={"bob": ["x"]}))
    await proxy.close()
    assert allows(security)
    await until(lambda: not allows(security))
    assert security.explain(ADA, pipeline="data").reason == "policy_stale"
    with pytest.raises(BackendUnavailableError):
        await security.administration.revoke(ADMIN, Revocation(subject="ada"))
    await proxy.open()
    await until(lambda: allows(security))
    assert security.live.document.roles == {"bob": ["x"]}


async def test_a_store_that_does_not_answer_is_one_that_is_away(
    deployment: Deployment, proxy: Proxy, often: None
) -> None:
    security = deployment.process(url=proxy.url, policy_max_age=0.5)
    await security.live.catch_up()
    proxy.freeze()
    await until(lambda: not allows(security))
    proxy.thaw()
    await until(lambda: allows(security))


async def test_who_starts_while_the_store_is_away_denies_until_it_is_there(
    deployment: Deployment, proxy: Proxy, often: None
) -> None:
    await proxy.close()
    security = deployment.process(url=proxy.url)
    await security.live.catch_up()
    assert not allows(security)
    await proxy.open()
    await until(lambda: allows(security))


async def test_who_decides_before_the_policy_is_known_lets_others_go_on_until_it_is(
    deployment: Deployment, proxy: Proxy, audit: AuditTrail
) -> None:
    """The proxy, in the same event loop, is one of them: nothing would come from the store if they had to wait."""
    ran: list[int] = []
    api, worker = Queue(), Queue()

    @worker.task(task_name="note")
    async def note(number: int) -> None:
        ran.append(number)

    worker.add_middlewares(SecurityMiddleware(deployment.process(url=proxy.url)))
    security = deployment.process(url=proxy.url)
    api.add_middlewares(SecurityMiddleware(security))
    with security.acting_as(ADA):
        await AsyncKicker[Any, Any]("note", api, {}).kiq(1)
    assert (await worker.deliver(api.take())).acks == 1
    assert ran == [1]
    assert not [entry for entry in audit.entries if entry.outcome == "deny"]


async def test_a_forked_process_looks_at_the_store_for_itself(deployment: Deployment) -> None:
    security = deployment.process()
    await security.live.catch_up()
    await deployment.process().administration.revoke(ADMIN, Revocation(subject="ada"))
    assert await forked(lambda: security.explain(ADA, pipeline="data").reason == "revoked") == 0
    security_again = deployment.process()
    assert not allows(security_again)


async def test_what_nobody_uses_any_more_stops_looking(deployment: Deployment, often: None) -> None:
    security = FlowSecurity(deployment.process(rate_limit_storage=REDIS_URL).config)
    before = set(live._tasks)
    with security.acting_as(ADA):  # as in the first request
        await security.live.catch_up()
        await security.runs.recent("data")
        assert security.rate_limits is not None
        await security.rate_limits.hit("1/minute", deployment.environment)
    (looking,) = live._tasks - before
    unused = weakref.ref(security.live)
    del security
    await until(lambda: gc.collect() >= 0 and unused() is None)  # while it looks, it is used
    await until(looking.done)
