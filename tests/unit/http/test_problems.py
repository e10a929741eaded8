"""Each error has an answer that standard clients understand."""

from __future__ import annotations

import json

import pytest

from taskiq_flow_security import (
    AccessDeniedError,
    AuthenticationError,
    BackendUnavailableError,
    ConfigurationError,
    FlowSecurityError,
    RateLimitExceededError,
    UnsignableMessageError,
)
from taskiq_flow_security.core.reasons import Reason
from taskiq_flow_security.http.asgi import Message
from taskiq_flow_security.http.problems import problem_of
from tests.edge import logs


@pytest.mark.parametrize(
    ("error", "status", "challenge"),
    [
        # RFC 6750 section 3.1: no error code where no token was sent.
        (AuthenticationError(Reason.NO_CREDENTIALS), 401, 'Bearer realm="taskiq-flow"'),
        (AuthenticationError(Reason.BEARER_NOT_ACCEPTED), 401, 'Bearer realm="taskiq-flow"'),
        (AuthenticationError(Reason.EXPIRED), 401, 'Bearer realm="taskiq-flow", error="invalid_token"'),
        (AuthenticationError(Reason.BAD_SIGNATURE), 401, 'Bearer realm="taskiq-flow", error="invalid_token"'),
        (AuthenticationError("anything"), 401, 'Bearer realm="taskiq-flow", error="invalid_token"'),
        (AuthenticationError(Reason.SEVERAL_CREDENTIALS), 400, 'Bearer realm="taskiq-flow", error="invalid_request"'),
        (AuthenticationError(Reason.CREDENTIALS_IN_QUERY), 400, 'Bearer realm="taskiq-flow", error="invalid_request"'),
        (AuthenticationError(Reason.UNKNOWN_API_KEY), 403, None),
        (AuthenticationError(Reason.API_KEY_EXPIRED), 403, None),
        (AccessDeniedError(Reason.WHITELIST), 403, 'Bearer realm="taskiq-flow", error="insufficient_scope"'),
        (AccessDeniedError(Reason.HTTPS_REQUIRED), 403, None),
        (AccessDeniedError(Reason.NO_RULE), 403, None),
        (AccessDeniedError(Reason.ORIGIN), 403, None),
        (AccessDeniedError(Reason.INTERNAL_ERROR), 500, None),
        (AccessDeniedError(Reason.TOO_MANY_CONNECTIONS), 503, None),
        (RateLimitExceededError(3.0), 429, None),
        (BackendUnavailableError("away"), 503, None),
        (UnsignableMessageError("No JSON."), 422, None),
        (ConfigurationError("jwt_secret: secret"), 500, None),
        (FlowSecurityError(), 500, None),
        (AuthenticationError(Reason.CANNOT_ISSUE, "This process has no key to issue with."), 500, None),
    ],
)
def test_status_and_challenge(error: FlowSecurityError, status: int, challenge: str | None) -> None:
    problem = problem_of(error)
    assert problem.status == status
    assert problem.headers.get("www-authenticate") == challenge


async def test_the_body_is_problem_details_of_rfc_9457() -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    await problem_of(AccessDeniedError(Reason.WHITELIST, "No é.")).send(send)
    start, body = sent
    headers = dict(start["headers"])
    assert headers[b"content-type"] == b"application/problem+json"
    assert headers[b"content-length"] == str(len(body["body"])).encode()
    assert headers[b"cache-control"] == b"no-store"
    assert json.loads(body["body"]) == {
        "type": "about:blank",
        "title": "Forbidden",
        "status": 403,
        "detail": "No é.",
        "reason": "whitelist",
    }


def test_a_limit_is_told_as_the_draft_on_ratelimit_headers_says() -> None:
    error = RateLimitExceededError(12.2, "The limit is 10 per 2 minute.", "10 per 2 minute", "execute_pipeline")
    assert problem_of(error).headers == {
        "retry-after": "13",
        "ratelimit-policy": '"execute_pipeline";q=10;w=120',
        "ratelimit": '"execute_pipeline";r=0;t=13',
    }


@pytest.mark.parametrize("name", [None, "", 'a"b', "a\r\nx: y", "\u0142"])
def test_a_name_that_no_header_can_carry_is_left_out(name: str | None) -> None:
    error = RateLimitExceededError(1.0, "Too often.", "1 per 1 minute", name)
    assert problem_of(error).headers["ratelimit"] == '"default";r=0;t=1'


@pytest.mark.parametrize("limit", [None, "nonsense"])
def test_a_limit_that_nobody_can_read_is_left_out(limit: str | None) -> None:
    assert problem_of(RateLimitExceededError(0.0, "Too often.", limit)).headers == {"retry-after": "1"}


def test_what_is_wrong_with_the_configuration_is_not_told_but_logged() -> None:
    with logs() as lines:
        assert "jwt_secret" not in problem_of(ConfigurationError("jwt_secret: missing")).detail
    (line,) = lines
    assert "jwt_secret: missing" in line


def test_what_says_itself_is_not_logged() -> None:
    with logs() as lines:
        problem_of(AccessDeniedError(Reason.WHITELIST))
        problem_of(UnsignableMessageError("No JSON."))
    assert lines == []
