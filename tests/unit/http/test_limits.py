"""The most special limit counts, and each caller is counted alone."""

from __future__ import annotations

from typing import Any

import pytest

from taskiq_flow_security import (
    FlowSecurity,
    PolicyChange,
    Principal,
    RateLimitExceededError,
    TaskiqFlowConfig,
)
from taskiq_flow_security.http.clients import Client
from taskiq_flow_security.http.limits import DEFAULTS, EndpointLimits, FailedLogins
from taskiq_flow_security.http.rules import guide_rules
from taskiq_flow_security.rate_limits import RateLimits
from tests.edge import ADMIN, API_KEYS, NOW, SECRET, VIEWER

HERE = Client("198.51.100.7", secure=True)
THERE = Client("198.51.100.8", secure=True)
ENDPOINTS = frozenset(rule.endpoint for rule in guide_rules())


def made(**settings: Any) -> tuple[EndpointLimits, FlowSecurity]:
    security = FlowSecurity(TaskiqFlowConfig(jwt_secret=SECRET, **{"api_keys": API_KEYS, **settings}))
    limits = EndpointLimits(security.config, RateLimits("memory://"), security.api_keys, security.live, ENDPOINTS)
    return limits, security


async def allowed(limits: EndpointLimits, endpoint: str, principal: Principal | None, client: Client = HERE) -> int:
    """How many requests pass."""
    for number in range(1000):
        try:
            await limits.count(endpoint, principal, client)
        except RateLimitExceededError:
            return number
    raise AssertionError("there is no limit")


def key_with(rate_limits: dict[str, str]) -> dict[str, Any]:
    return {**API_KEYS, VIEWER: {**API_KEYS[VIEWER], "rate_limits": rate_limits}}


PRECEDENCE: list[dict[str, Any]] = [
    {"api_keys": key_with({"get_dag": "1/minute"})},
    {"role_rate_limits": {"viewer": {"get_dag": "2/minute"}}},
    {"rate_limits": {"get_dag": "3/minute"}},
    {"rate_limit_default": "4/minute"},
]


@pytest.mark.parametrize(("first", "expected"), [(0, 1), (1, 2), (2, 3), (3, 120)])
async def test_key_goes_before_role_before_settings_before_built_in(first: int, expected: int) -> None:
    settings = {name: value for setting in PRECEDENCE[first:] for name, value in setting.items()}
    limits, security = made(**settings)
    principal = await security.authenticate(api_key=VIEWER)
    assert await allowed(limits, "get_dag", principal) == expected


async def test_an_endpoint_without_a_limit_has_the_default_one() -> None:
    limits, _ = made(rate_limit_default="4/minute")
    assert await allowed(limits, "whoami", None) == 4
    assert await allowed(limits, "unknown", None) == 4


@pytest.mark.parametrize(("endpoint", "limit"), DEFAULTS.items())
async def test_the_limits_of_the_guide_hold(endpoint: str, limit: str) -> None:
    limits, _ = made()
    assert await allowed(limits, endpoint, None) == int(limit.partition("/")[0])


async def test_the_most_generous_of_several_roles_counts() -> None:
    limits, _ = made(
        role_rate_limits={
            "slow": {"get_dag": "1/minute"},
            "fast": {"get_dag": "10/minute;5/minute"},
            "hourly": {"get_dag": "60/hour"},
        }
    )
    assert await allowed(limits, "get_dag", Principal("x", ["slow", "fast", "hourly", "other"])) == 5
    assert await allowed(limits, "get_dag", Principal("y", ["slow", "other"])) == 1
    assert await allowed(limits, "get_dag", Principal("z", ["other"])) == 120


async def test_principals_are_counted_wherever_they_come_from_and_others_by_their_client() -> None:
    limits, _ = made(rate_limits={"get_dag": "3/minute"})
    assert await allowed(limits, "get_dag", Principal("x"), HERE) == 3
    assert await allowed(limits, "get_dag", Principal("x"), THERE) == 0
    assert await allowed(limits, "get_dag", Principal("y"), HERE) == 3
    assert await allowed(limits, "get_dag", Principal(HERE.address), THERE) == 3
    assert await allowed(limits, "get_dag", None, HERE) == 3
    assert await allowed(limits, "get_dag", None, THERE) == 3


async def test_an_ipv6_client_does_not_get_around_a_limit_by_another_address() -> None:
    limits, _ = made(rate_limits={"get_dag": "3/minute"})
    assert await allowed(limits, "get_dag", None, Client("2001:db8::1", secure=True)) == 3
    assert await allowed(limits, "get_dag", None, Client("2001:db8::ffff", secure=True)) == 0


@pytest.mark.parametrize(
    "settings",
    [
        {"rate_limits": {"get_dags": "1/minute"}},
        {"role_rate_limits": {"viewer": {"get_dags": "1/minute"}}},
        {"api_keys": key_with({"get_dags": "1/minute"})},
    ],
)
def test_a_limit_for_an_endpoint_that_there_is_not_is_logged(
    settings: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    made(**settings)
    assert "no rule of this application has the endpoint get_dags;" in caplog.text
    assert VIEWER not in caplog.text
    assert ADMIN not in caplog.text


def test_a_limit_for_an_endpoint_that_there_is_is_not_worth_a_word(caplog: pytest.LogCaptureFixture) -> None:
    made(rate_limits={"get_dag": "1/minute", "whoami": "1/minute", "websocket_subscribe": "1/minute"})
    assert caplog.text == ""


async def test_who_failed_too_often_is_shut_out_until_the_window_has_passed() -> None:
    failed = FailedLogins(
        TaskiqFlowConfig(jwt_secret=SECRET, rate_limit_failed_logins="3/minute"), RateLimits("memory://")
    )
    for _ in range(3):
        failed.check(HERE, NOW)
        await failed.count(HERE, NOW)
    failed.check(HERE, NOW)
    with pytest.raises(RateLimitExceededError):
        await failed.count(HERE, NOW)
    with pytest.raises(RateLimitExceededError) as refusal:
        failed.check(HERE, NOW + 10)
    assert 49 <= refusal.value.retry_after <= 50
    failed.check(THERE, NOW)
    failed.check(HERE, NOW + 61)


async def test_what_is_remembered_of_addresses_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskiq_flow_security.http.limits._REMEMBERED", 100)
    failed = FailedLogins(
        TaskiqFlowConfig(jwt_secret=SECRET, rate_limit_failed_logins="1/minute"), RateLimits("memory://")
    )
    for number in range(300):
        client = Client(f"10.0.{number >> 8}.{number & 255}", secure=True)
        await failed.count(client, NOW)
        with pytest.raises(RateLimitExceededError):
            await failed.count(client, NOW)
    assert len(failed._shut_out) == 100


async def test_limits_can_be_changed_while_everything_runs() -> None:
    limits, security = made(rate_limits={"get_dag": "2/hour"})
    admin = Principal("root", permissions=["admin"])
    somebody = Principal("ada", ["viewer"])
    assert await allowed(limits, "get_dag", somebody) == 2
    change = PolicyChange(rate_limits={"get_dag": "5/hour"}, role_rate_limits={"viewer": {"get_status": "1/hour"}})
    await security.administration.change(admin, change)
    assert await allowed(limits, "get_dag", Principal("bob")) == 5
    assert await allowed(limits, "get_status", somebody) == 1
    back = PolicyChange(rate_limits={"get_dag": None}, role_rate_limits={"viewer": None})
    await security.administration.change(admin, back)
    assert await allowed(limits, "get_dag", Principal("eve")) == 2
    assert await allowed(limits, "get_status", Principal("eve", ["viewer"])) == 30
