"""Refusals as HTTP answers: problem details (RFC 9457)."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import NamedTuple

from limits import RateLimitItem, parse
from pydantic_core import to_json

from taskiq_flow_security.core.reasons import Reason
from taskiq_flow_security.errors import (
    AccessDeniedError,
    AuthenticationError,
    BackendUnavailableError,
    FlowSecurityError,
    PolicyConflictError,
    RateLimitExceededError,
    UnsignableMessageError,
)
from taskiq_flow_security.http.asgi import Send

_logger = logging.getLogger(__name__)

INVALID_INPUT = "invalid_input"

_NAME = re.compile(r"[A-Za-z0-9_.:-]+")
"""What stands in a header as it is."""

_REALM = 'realm="taskiq-flow"'

_BAD_REQUEST = frozenset({Reason.SEVERAL_CREDENTIALS, Reason.CREDENTIALS_IN_QUERY})
_MISSING = frozenset({Reason.NO_CREDENTIALS, Reason.NO_PRINCIPAL, Reason.BEARER_NOT_ACCEPTED, Reason.UNKNOWN_SCHEME})
_REFUSED_KEYS = frozenset(
    {Reason.UNKNOWN_API_KEY, Reason.API_KEY_EXPIRED, Reason.API_KEY_REMOVED, Reason.API_KEY_REVOKED}
)


class Problem(NamedTuple):
    """One answer that is not what was asked for."""

    status: HTTPStatus
    reason: str
    """A stable code: one of `taskiq_flow_security.core.reasons.Reason`, or of those that `api.failures` has for what is
    no decision about the caller.
    """
    detail: str
    headers: Mapping[str, str] = {}

    def body(self) -> bytes:
        """The problem as JSON."""
        return to_json(
            {
                "type": "about:blank",
                "title": self.status.phrase,
                "status": self.status.value,
                "detail": self.detail,
                "reason": self.reason,
            }
        )

    async def send(self, send: Send, kind: str = "http.response") -> None:
        """Answer with it. `kind` is ``websocket.http.response`` for a handshake that is denied."""
        body = self.body()
        given = {
            "content-type": "application/problem+json",
            "content-length": str(len(body)),
            "cache-control": "no-store",
            **self.headers,
        }
        headers = [(name.encode(), value.encode("latin-1")) for name, value in given.items()]
        await send({"type": f"{kind}.start", "status": self.status.value, "headers": headers})
        await send({"type": f"{kind}.body", "body": body})


def problem_of(error: FlowSecurityError) -> Problem:
    """The answer that says an error; what only the log may say is logged."""
    if isinstance(error, AuthenticationError):
        return _unauthenticated(error)
    if isinstance(error, AccessDeniedError):
        return _denied(error)
    if isinstance(error, RateLimitExceededError):
        return _too_many(error)
    if isinstance(error, PolicyConflictError):
        return Problem(HTTPStatus.PRECONDITION_FAILED, error.reason, str(error))
    if isinstance(error, BackendUnavailableError):
        return Problem(HTTPStatus.SERVICE_UNAVAILABLE, error.reason, str(error), {"retry-after": "1"})
    if isinstance(error, UnsignableMessageError):
        return Problem(HTTPStatus.UNPROCESSABLE_ENTITY, INVALID_INPUT, str(error))
    return _misconfigured(error)


def _misconfigured(error: FlowSecurityError) -> Problem:
    _logger.error("A request cannot be answered as the server is set up.", exc_info=error)
    return Problem(
        HTTPStatus.INTERNAL_SERVER_ERROR, Reason.INTERNAL_ERROR, "The server is not set up for this; its log says why."
    )


def _unauthenticated(error: AuthenticationError) -> Problem:
    detail = str(error.args[1])
    if error.reason == Reason.CANNOT_ISSUE:  # which is nobody's fault who asks
        return _misconfigured(error)
    if error.reason in _BAD_REQUEST:
        challenge = f'Bearer {_REALM}, error="invalid_request"'
        return Problem(HTTPStatus.BAD_REQUEST, error.reason, detail, {"www-authenticate": challenge})
    if error.reason in _MISSING:  # RFC 6750 section 3.1: no error code where no token counts
        return Problem(HTTPStatus.UNAUTHORIZED, error.reason, detail, {"www-authenticate": f"Bearer {_REALM}"})
    if error.reason in _REFUSED_KEYS:
        return Problem(HTTPStatus.FORBIDDEN, error.reason, detail)
    challenge = f'Bearer {_REALM}, error="invalid_token"'
    return Problem(HTTPStatus.UNAUTHORIZED, error.reason, detail, {"www-authenticate": challenge})


def _denied(error: AccessDeniedError) -> Problem:
    if error.reason == Reason.INTERNAL_ERROR:
        return Problem(HTTPStatus.INTERNAL_SERVER_ERROR, error.reason, str(error.args[1]))
    if error.reason in (Reason.TOO_MANY_CONNECTIONS, Reason.POLICY_STALE):
        return Problem(HTTPStatus.SERVICE_UNAVAILABLE, error.reason, str(error.args[1]), {"retry-after": "1"})
    headers = {}
    if error.reason not in (Reason.HTTPS_REQUIRED, Reason.NO_RULE, Reason.ORIGIN):
        headers["www-authenticate"] = f'Bearer {_REALM}, error="insufficient_scope"'
    return Problem(HTTPStatus.FORBIDDEN, error.reason, str(error.args[1]), headers)


def _too_many(error: RateLimitExceededError) -> Problem:
    """429 with ``RateLimit`` and ``RateLimit-Policy`` (draft-ietf-httpapi-ratelimit-headers-10)."""
    seconds = max(1, math.ceil(error.retry_after))
    headers = {"retry-after": str(seconds)}
    item = _limit(error.limit)
    if item is not None:
        name = error.name if _NAME.fullmatch(error.name or "") else "default"
        headers["ratelimit-policy"] = f'"{name}";q={item.amount};w={item.get_expiry()}'
        headers["ratelimit"] = f'"{name}";r=0;t={seconds}'
    return Problem(HTTPStatus.TOO_MANY_REQUESTS, error.reason, str(error), headers)


def _limit(limit: str | None) -> RateLimitItem | None:
    try:
        return None if limit is None else parse(limit)
    except ValueError:
        return None  # an application's own words
