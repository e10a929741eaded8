"""One WebSocket: how far it is, and how it is ended at that point."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from pydantic_core import to_json

from taskiq_flow_security.core.principal import Principal
from taskiq_flow_security.core.reasons import Reason
from taskiq_flow_security.errors import AuthenticationError, FlowSecurityError, RateLimitExceededError
from taskiq_flow_security.http.asgi import Message, Receive, Scope, Send
from taskiq_flow_security.http.credentials import Credentials, from_text
from taskiq_flow_security.http.messages import MAX_FIRST_MESSAGE, auth_of, require_size
from taskiq_flow_security.http.problems import problem_of

_CODES: dict[str, int] = {
    Reason.TOO_MANY_CONNECTIONS: 1013,
    Reason.BACKEND_UNAVAILABLE: 1013,
    Reason.POLICY_STALE: 1013,
    Reason.INTERNAL_ERROR: 1011,
    Reason.MISCONFIGURED: 1011,
    Reason.CANNOT_ISSUE: 1011,
    Reason.MESSAGE_TOO_BIG: 1009,
    Reason.UNREADABLE_MESSAGE: 4400,
}
"""Codes of RFC 6455 section 7.4.1 and its registry; those from 4000 on are for applications, here like HTTP's."""


class Connection:
    """The server's side of a WebSocket."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._can_answer = "websocket.http.response" in scope.get("extensions", {})
        self._receive = receive
        self._send = send
        self._unread: Message | None = None
        self.accepted = False
        self.closed = False

    async def receive(self) -> Message:
        """The next message of the client; a disconnection once the connection is closed."""
        if self._unread is not None:
            message, self._unread = self._unread, None
            return message
        if self.closed:
            return {"type": "websocket.disconnect", "code": 1006}
        message = await self._receive()
        self.closed = self.closed or message["type"] == "websocket.disconnect"
        return message

    async def send(self, message: Message) -> None:
        """Pass a message of the application on to the client.

        Raises `ConnectionResetError` for what comes after the end, as servers do (ASGI, "Send: error conditions"), so
        that an application which only writes ends too.
        """
        if self.closed and message["type"] == "websocket.send":
            raise ConnectionResetError("The connection is closed.")
        await self._pass_on(message)

    async def _pass_on(self, message: Message) -> None:
        """Pass a message on to the client, if it still makes sense."""
        kind = message["type"]
        if self.closed or (self.accepted and kind == "websocket.accept"):
            return
        self.accepted = self.accepted or kind == "websocket.accept"
        self.closed = kind == "websocket.close" or (
            kind == "websocket.http.response.body" and not message.get("more_body", False)
        )
        await self._send(message)

    async def send_json(self, content: dict[str, str]) -> None:
        """Send a message of our own."""
        await self._pass_on({"type": "websocket.send", "text": to_json(content).decode()})

    async def greet(self, principal: Principal) -> None:
        """Tell the client who it is known as, where it has proved that in a message."""
        await self.send_json({"type": "connected", "subject": principal.subject})

    async def first_message(self, seconds: float) -> Credentials:
        """Accept the connection and wait for the credentials in its first message.

        Raises `AccessDeniedError` if it is too big, and `AuthenticationError` if it is something else, or does not come
        in time. What came can be received again then.
        """
        await self._pass_on({"type": "websocket.accept"})
        with suppress(asyncio.TimeoutError):
            self._unread = message = await asyncio.wait_for(self.receive(), seconds)
            require_size(message, MAX_FIRST_MESSAGE)
            auth = auth_of(message.get("text"))
            if auth is not None:
                self._unread = None
                return from_text(auth)
        raise AuthenticationError(
            Reason.NO_CREDENTIALS, 'Send {"type": "connect", "auth": "<API key or token>"} first, and soon.'
        )

    async def refuse(self, error: FlowSecurityError, pipeline_id: str | None = None) -> None:
        """End the connection with what the error says: as an HTTP answer before it was accepted, where that is possible
        (ASGI extension ``websocket.http.response``), else as a message and a code.

        `pipeline_id`: the pipeline that was refused, if it was one.
        """
        if self.closed:
            return
        problem = problem_of(error)
        if not self.accepted and self._can_answer:
            self.closed = True
            await problem.send(self._send, "websocket.http.response")
            return
        if self.accepted:
            named = {} if pipeline_id is None else {"pipeline_id": pipeline_id}
            await self.send_json({"type": "error", "reason": problem.reason, "detail": problem.detail, **named})
        await self._pass_on({"type": "websocket.close", "code": _code(error), "reason": problem.reason})


def _code(error: FlowSecurityError) -> int:
    code = _CODES.get(error.reason)
    if code is not None:
        return code
    if isinstance(error, AuthenticationError):
        return 4401
    return 4429 if isinstance(error, RateLimitExceededError) else 4403
