"""Limits are counted for each who and what, and where they cannot be counted, they deny."""

from __future__ import annotations

import pytest

from taskiq_flow_security.errors import BackendUnavailableError, ConfigurationError, RateLimitExceededError
from taskiq_flow_security.rate_limits import RateLimits


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


async def test_a_store_that_is_away_denies() -> None:
    limits = RateLimits("redis://127.0.0.1:1")
    with pytest.raises(BackendUnavailableError):
        await limits.hit("1/hour", "task", "alice")


@pytest.mark.parametrize("url", ["nonsense://", "", "memory"])
def test_a_store_that_does_not_exist_is_a_configuration_error(url: str) -> None:
    with pytest.raises(ConfigurationError, match="rate_limit_storage"):
        RateLimits(url)
