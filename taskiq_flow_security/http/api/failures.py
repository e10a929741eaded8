"""Exceptions as answers: problem details (RFC 9457), which say what the caller can do and nothing about the server."""

from __future__ import annotations

import math
from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from taskiq.exceptions import SendTaskError

from taskiq_flow_security.errors import (
    AccessDeniedError,
    AuthenticationError,
    BackendUnavailableError,
    FlowSecurityError,
    RateLimitExceededError,
    UnsignableMessageError,
)
from taskiq_flow_security.http.api.models import Problem

RETRY_SECONDS = 5
"""After which a client may try again where something is away."""


def problem(
    status: int, detail: str, *, reason: str | None = None, headers: dict[str, str] | None = None
) -> Response:
    """A problem as an answer."""
    body = Problem(title=HTTPStatus(status).phrase, status=status, detail=detail, reason=reason)
    return Response(
        body.model_dump_json(exclude_none=True),
        status,
        {"cache-control": "no-store", **(headers or {})},
        media_type="application/problem+json",
    )


async def on_http_exception(request: Request, error: Exception) -> Response:
    """What the router and the endpoints raise."""
    assert isinstance(error, HTTPException)
    return problem(error.status_code, error.detail, headers=dict(error.headers or {}))


async def on_security_error(request: Request, error: Exception) -> Response:
    """What a kick or a store raises."""
    if isinstance(error, AuthenticationError):
        challenge = {"www-authenticate": 'Bearer error="invalid_token"'}  # RFC 6750, section 3
        return problem(401, str(error), reason=error.reason, headers=challenge)
    if isinstance(error, AccessDeniedError):
        return problem(403, str(error), reason=error.reason)
    if isinstance(error, RateLimitExceededError):
        retry_after = {"retry-after": str(math.ceil(error.retry_after))}
        return problem(429, str(error), reason=error.reason, headers=retry_after)
    if isinstance(error, BackendUnavailableError):
        return _unavailable(error.reason)
    if isinstance(error, UnsignableMessageError):
        return problem(422, "The arguments hold a value that cannot be sent.")
    raise error


async def on_send_error(request: Request, error: Exception) -> Response:
    """What TaskIQ makes of everything that fails while a message is sent."""
    cause = error.__cause__
    if isinstance(cause, FlowSecurityError):
        return await on_security_error(request, cause)
    return _unavailable("broker_unavailable")


HANDLERS = {
    HTTPException: on_http_exception,
    FlowSecurityError: on_security_error,
    SendTaskError: on_send_error,
}


async def on_unexpected_error(request: Request, error: Exception) -> Response:
    """What nobody has thought of. The server logs it."""
    return problem(500, "An unexpected error; the server's log has it.")


def _unavailable(reason: str) -> Response:
    detail = "Something that is needed for this is away; try again later."
    return problem(503, detail, reason=reason, headers={"retry-after": str(RETRY_SECONDS)})
