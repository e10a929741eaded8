"""Errors are the same on the other side of a result backend."""

from __future__ import annotations

import json
import pickle

import pytest
from taskiq import TaskiqResult

from taskiq_flow_security import (
    AccessDeniedError,
    AuthenticationError,
    BackendUnavailableError,
    ConfigurationError,
    FlowSecurityError,
    PolicyConflictError,
    RateLimitExceededError,
    ResultVerificationError,
    UnsignableMessageError,
)
from taskiq_flow_security.core.reasons import Reason

ERRORS: list[FlowSecurityError] = [
    AuthenticationError("unsigned", "Why."),
    AuthenticationError("expired"),
    AccessDeniedError("acl", "Why."),
    ResultVerificationError("unsigned", "Why."),
    RateLimitExceededError(1.5, "The limit is 1 per 1 minute."),
    RateLimitExceededError(1.5, "The limit is 1 per 1 minute.", "1 per 1 minute", "get_dag"),
    BackendUnavailableError("Away."),
    ConfigurationError("Wrong."),
    UnsignableMessageError("No JSON."),
]


def by_pickle(error: FlowSecurityError) -> BaseException | None:
    result: TaskiqResult[None] = TaskiqResult(is_err=True, return_value=None, execution_time=0, error=error)
    loaded: TaskiqResult[None] = pickle.loads(pickle.dumps(result))
    return TaskiqResult[None].model_validate(loaded.model_dump()).error


def by_json(error: FlowSecurityError) -> BaseException | None:
    result: TaskiqResult[None] = TaskiqResult(is_err=True, return_value=None, execution_time=0, error=error)
    return TaskiqResult[None].model_validate(json.loads(json.dumps(result.model_dump(mode="json")))).error


@pytest.mark.parametrize("way", [by_pickle, by_json])
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_arrives_as_what_it_is(error: FlowSecurityError, way: object) -> None:
    assert callable(way)
    arrived = way(error)
    assert type(arrived) is type(error)
    assert arrived.args == error.args
    assert str(arrived) == str(error)
    assert arrived.reason == error.reason
    assert getattr(arrived, "retry_after", None) == getattr(error, "retry_after", None)


def test_an_error_says_why_and_what_to_do() -> None:
    assert str(AuthenticationError("unsigned", "Nobody asks.")) == "Nobody asks. (reason: unsigned)"
    assert str(RateLimitExceededError(59.6)) == "The rate limit is exceeded. Try again in 60 s."


def test_who_has_to_wait_for_a_moment_is_not_told_to_try_again_at_once() -> None:
    assert str(RateLimitExceededError(0.3)).endswith("Try again in 1 s.")


@pytest.mark.parametrize("error", [*ERRORS, PolicyConflictError(3)], ids=lambda error: type(error).__name__)
def test_the_reason_of_every_error_is_one_that_is_listed(error: FlowSecurityError) -> None:
    assert Reason(error.reason) is not Reason.INTERNAL_ERROR
