"""What the router and the endpoints raise, as answers."""

from __future__ import annotations

import logging
from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from taskiq.exceptions import SendTaskError

from taskiq_flow_security.core.reasons import Reason
from taskiq_flow_security.errors import BackendUnavailableError, FlowSecurityError
from taskiq_flow_security.http.problems import INVALID_INPUT, Problem, problem_of

_logger = logging.getLogger(__name__)

_REASONS = {
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "body_too_large",
    415: "unsupported_media_type",
    422: INVALID_INPUT,
}
"""The codes of what is no decision about the caller, by the status that says it."""


class _ProblemResponse(Response):
    def __init__(self, problem: Problem) -> None:
        super().__init__(status_code=problem.status.value)
        self._problem = problem

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._problem.send(send)


async def on_http_exception(request: Request, error: Exception) -> Response:
    """The answer to what Starlette's router and the endpoints raise."""
    assert isinstance(error, HTTPException)
    reason = _REASONS.get(error.status_code, Reason.INVALID_REQUEST)
    return _ProblemResponse(Problem(HTTPStatus(error.status_code), reason, error.detail, dict(error.headers or {})))


async def on_security_error(request: Request, error: Exception) -> Response:
    """The answer to what the endpoints, and what they call, raise of this package's errors."""
    assert isinstance(error, FlowSecurityError)
    if request.scope["type"] == "websocket":
        raise error  # whose end is the middleware's to write
    return _ProblemResponse(problem_of(error))


async def on_unexpected_error(request: Request, error: Exception) -> Response:
    """The answer to what nobody has thought of. The server logs it."""
    detail = "An unexpected error; the server's log has it."
    return _ProblemResponse(Problem(HTTPStatus.INTERNAL_SERVER_ERROR, Reason.INTERNAL_ERROR, detail))


def cause_of(error: SendTaskError) -> FlowSecurityError:
    """What TaskIQ has wrapped while it sent a message: an error of this package, or the broker is away."""
    cause = error.__cause__
    if isinstance(cause, FlowSecurityError):
        return cause
    _logger.error("The broker does not take messages. Has it been started?", exc_info=error)
    return BackendUnavailableError("The broker cannot be reached; try again later.")
