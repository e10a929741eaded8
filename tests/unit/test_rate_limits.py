"""Limits are counted for each who and what, and where they cannot be counted, they deny."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskiq_flow_security.errors import BackendUnavailableError, ConfigurationError, RateLimitExceededError
from taskiq_flow_security.rate_limits import Hit, MemoryWindows, RateLimits
from tests.services import REDIS_URL, require


async def test_a_limit_holds_for_each_identity_alone() -> None:
    limits = RateLimits("memory://")
    await limits.hit("1/hour", "task", "alice")
    await limits.hit("1/hour", "task", "bob")
    with pytest.raises(RateLimitExceededError) as refusal:
        await limits.hit("1/hour", "task", "alice")
    assert 0 < refusal.value.retry_after <= 3600


async def test_each_of_several_limits_holds() -> None:
    limits = RateLimits("memory://")
    for _ in range(2):
        await limits.hit("10/minute;2/hour", "task", "alice")
    with pytest.raises(RateLimitExceededError, match="2 per 1 hour"):
        await limits.hit("10/minute;2/hour", "task", "alice")


@pytest.mark.parametrize("storage", ["memory://", REDIS_URL])
@pytest.mark.parametrize("limit", ["5/hour;1/minute", "1/minute;5/hour"])
async def test_what_one_limit_denies_counts_against_no_other(storage: str, limit: str) -> None:
    if storage == REDIS_URL:
        require("redis")
    limits, who = RateLimits(storage), uuid4().hex
    await limits.hit(limit, "task", who)
    for _ in range(10):
        with pytest.raises(RateLimitExceededError, match="1 per 1 minute") as refusal:
            await limits.hit(limit, "task", who)
        assert 0 < refusal.value.retry_after <= 60
    for _ in range(4):  # that the hour has left, counted alone
        await limits.hit("5/hour", "task", who)
    with pytest.raises(RateLimitExceededError, match="5 per 1 hour"):
        await limits.hit("5/hour", "task", who)


async def test_who_is_denied_by_several_limits_is_told_when_all_allow_it() -> None:
    limits = RateLimits("memory://")
    uses = [Hit("1/minute", ("all", "alice")), Hit("1/hour", ("task", "alice")), Hit("9/hour", ("pipeline", "alice"))]
    await limits.hit_all(uses)
    for order in (uses, uses[::-1]):
        with pytest.raises(RateLimitExceededError, match="1 per 1 hour") as refusal:
            await limits.hit_all(order)
        assert 60 < refusal.value.retry_after <= 3600


@pytest.mark.parametrize("storage", ["memory://", REDIS_URL])
async def test_no_identity_counts_for_another_that_is_written_alike(storage: str) -> None:
    if storage == REDIS_URL:
        require("redis")
    limits, who = RateLimits(storage), uuid4().hex
    for identifiers in (("a", "b/c"), ("a/b", "c"), ("a", "b", "c"), ("a%2Fb", "c"), ("\ud800", "c")):
        await limits.hit("1/hour", who, *identifiers)
        with pytest.raises(RateLimitExceededError):
            await limits.hit("1/hour", who, *identifiers)


async def test_a_store_that_is_away_denies() -> None:
    limits = RateLimits("redis://127.0.0.1:1")
    with pytest.raises(BackendUnavailableError):
        await limits.hit("1/hour", "task", "alice")


@pytest.mark.parametrize("url", ["nonsense://", "", "memory"])
def test_a_store_that_does_not_exist_is_a_configuration_error(url: str) -> None:
    with pytest.raises(ConfigurationError, match="rate_limit_storage"):
        RateLimits(url)


async def test_a_store_that_does_not_answer_denies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskiq_flow_security.rate_limits._TIMEOUT", 0.05)

    async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(never, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()
        limits = RateLimits(f"redis://{host}:{port}")
        with pytest.raises(BackendUnavailableError):
            await limits.hit("1/hour", "task", "alice")


@pytest.mark.parametrize("limit", ["3/second", "3/minute"])
async def test_a_window_moves(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    now, length = 1_000_000.0, 1 if limit == "3/second" else 60
    monkeypatch.setattr("time.time", lambda: now)
    limits = RateLimits("memory://")
    for step in (0.0, 0.25, 0.5):
        now = 1_000_000.0 + step * length
        await limits.hit(limit, "alice")
    with pytest.raises(RateLimitExceededError) as refusal:
        await limits.hit(limit, "alice")
    assert refusal.value.retry_after == pytest.approx(0.5 * length)
    now = 1_000_000.0 + 1.1 * length
    await limits.hit(limit, "alice")
    with pytest.raises(RateLimitExceededError):
        await limits.hit(limit, "alice")


def test_in_memory_many_identities_are_forgotten_when_their_window_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_000_000.0
    monkeypatch.setattr("time.time", lambda: now)
    windows = MemoryWindows()
    for number in range(1000):
        windows.hit(10, 60, (str(number),))
    now += 61
    for _ in range(1000):
        assert windows.hit(1000, 60, ("alice",)) is None
    assert windows.remembered == 1


def test_in_memory_identities_are_bounded_and_the_ones_longest_unseen_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskiq_flow_security.rate_limits._REMEMBERED", 100)
    windows = MemoryWindows()
    for number in range(1000):
        windows.hit(1, 60, (str(number),))
        assert windows.hit(10_000, 60, ("alice",)) is None
    assert windows.remembered == 100
    assert windows.hit(1, 60, ("999",)) is not None
    assert windows.hit(1, 60, ("0",)) is None


async def test_a_limit_of_nothing_denies_and_harms_nobody_else() -> None:
    limits = RateLimits("memory://")
    for _ in range(3):
        with pytest.raises(RateLimitExceededError):
            await limits.hit("0/minute", "alice")
        await limits.hit("10/minute", "bob")


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 2)), max_size=60), st.integers(1, 5))
def test_in_memory_no_window_ever_has_more_uses_than_the_limit_and_none_is_denied_too_early(
    uses: list[tuple[str, float]], limit: int
) -> None:
    windows, now, accepted = MemoryWindows(), 1_000_000.0, dict[str, list[float]](a=[], b=[])
    for who, pause in uses:
        now += pause
        recent = [moment for moment in accepted[who] if moment > now - 3]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("time.time", lambda now=now: now)
            retry_after = windows.hit(limit, 3, (who,))
        if len(recent) < limit:
            assert retry_after is None
            accepted[who].append(now)
        else:
            assert retry_after == recent[0] - (now - 3)
