"""WebSockets: who may connect, what they may ask for, and until when."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from dataclasses import replace

from pydantic_core import from_json, to_json

from taskiq_flow_security.core.principal import ANONYMOUS, Permission, Principal
from taskiq_flow_security.core.reasons import Reason
from taskiq_flow_security.errors import (
    AccessDeniedError,
    AuthenticationError,
    FlowSecurityError,
    RateLimitExceededError,
)
from taskiq_flow_security.http.asgi import App, Message, Receive, Scope, Send
from taskiq_flow_security.http.credentials import Credentials, from_text
from taskiq_flow_security.http.gate import Gate, Visit
from taskiq_flow_security.http.problems import problem_of
from taskiq_flow_security.http.rules import WEBSOCKET, Match, Rule

_CHECKED_EVERY = 0.5
"""Seconds after which a login that has ended, or was taken back, ends its connections."""

_SUBSCRIBE = Rule(WEBSOCKET, "/{pipeline_id}", "websocket_subscribe", Permission.READ, "{pipeline_id}")

_BEFORE_JSON = " \t\r\n\0\ufeff\xef\xbb\xbf\xfe\xff"

_CODES = {
    Reason.TOO_MANY_CONNECTIONS: 1013,
    Reason.BACKEND_UNAVAILABLE: 1013,
    Reason.INTERNAL_ERROR: 1011,
    Reason.UNREADABLE_MESSAGE: 4400,
}
"""Codes of RFC 6455 section 7.4.1 and its registry; those from 4000 on are for applications, here like HTTP's."""


class WebSockets:
    """Guards the WebSockets of an application.

    Credentials come in the handshake's headers, or, as browsers cannot set those, in a first message
    ``{"type": "connect", "auth": "<API key or token>"}``, which is answered by ``{"type": "connected"}``. The
    application is not called before. Each message that names a ``pipeline_id`` is passed on only to who may read that
    pipeline. A connection ends when its login does. What is not JSON, and does not look like it, is passed on as it is.

    The handshake is accepted before a first message can come; the application's own ``websocket.accept`` is left out
    then, with the subprotocol and the headers that it may name.
    """

    def __init__(self, app: App, gate: Gate) -> None:
        self._app = app
        self._gate = gate
        self._open = 0

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        visit = self._gate.visit(scope)
        connection = Connection(scope, receive, send)
        self._open += 1
        try:
            await connection.receive()  # websocket.connect
            principal = await self._admit(visit, connection)
            if principal is not None:
                await self._converse(scope, visit, principal, connection)
        finally:
            self._open -= 1

    async def _admit(self, visit: Visit, connection: Connection) -> Principal | None:
        """In whose name the connection is made; ``None`` for nobody, and it is closed."""
        try:
            return await self._authenticate(visit, connection)
        except Exception as error:  # noqa: BLE001 (whatever it is, the connection is refused)
            return None if await self._refuse(visit, connection, error) else visit.principal or ANONYMOUS

    async def _authenticate(self, visit: Visit, connection: Connection) -> Principal:
        gate, config = self._gate, self._gate.security.config
        if self._open > config.websocket_max_connections:
            raise AccessDeniedError(Reason.TOO_MANY_CONNECTIONS, "Too many connections are open; try again later.")
        gate.require_https(visit)
        _require_origin(visit, config.websocket_origins)
        if gate.require_rule(visit).rule.public:
            await gate.count(visit)
            return gate.welcome(visit)
        given = await gate.credentials(visit)
        if given is not None:
            principal = await gate.identify(visit, given)
            await gate.count(visit)
        elif config.websocket_require_auth:
            principal = await gate.identify(visit, await connection.first_message(config.websocket_auth_timeout))
            await connection.send_json({"type": "connected", "subject": principal.subject})
        else:
            return gate.welcome(visit)
        gate.authorize(visit, principal)
        return principal

    async def _converse(self, scope: Scope, visit: Visit, principal: Principal, connection: Connection) -> None:
        guarded = _Guarded(self._gate, visit, principal, connection)
        with self._gate.entered(scope, visit, principal):
            app = asyncio.ensure_future(self._app(scope, guarded.receive, connection.send))
        watch = asyncio.ensure_future(self._login_ends(principal))
        try:
            await asyncio.wait({app, watch}, return_when=asyncio.FIRST_COMPLETED)
            if not app.done() and await self._refuse(visit, connection, _ended(watch)):
                return
            await app
        except FlowSecurityError as error:  # of the application: as over HTTP, it is the answer
            await connection.refuse(error, visit.endpoint)
        finally:
            for task in (app, watch):
                task.cancel()
            await asyncio.gather(app, watch, return_exceptions=True)

    async def _login_ends(self, principal: Principal) -> Reason:
        """Wait until the login behind a principal is over, and say why."""
        # Asked again and again, as what ends a login may be decided elsewhere.
        while (reason := self._gate.security.login_ended(principal)) is None:  # noqa: ASYNC110 (nobody tells us)
            await asyncio.sleep(_CHECKED_EVERY)
        return reason

    async def _refuse(self, visit: Visit, connection: Connection, error: Exception) -> bool:
        refusal = self._gate.refuse(visit, error)
        if refusal is not None:
            await connection.refuse(refusal, visit.endpoint)
        return refusal is not None


class Connection:
    """One WebSocket: how far it is, and how it is refused at that point."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._can_answer = "websocket.http.response" in scope.get("extensions", {})
        self._receive = receive
        self._send = send
        self._accepted = False
        self._unread: Message | None = None
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
        """Pass a message on to the client, if it still makes sense."""
        kind = message["type"]
        if self.closed or (self._accepted and kind == "websocket.accept"):
            return
        self._accepted = self._accepted or kind == "websocket.accept"
        self.closed = kind == "websocket.close" or (
            kind == "websocket.http.response.body" and not message.get("more_body", False)
        )
        await self._send(message)

    async def send_json(self, content: dict[str, str]) -> None:
        """Send a message of our own."""
        await self.send({"type": "websocket.send", "text": to_json(content).decode()})

    async def first_message(self, seconds: float) -> Credentials:
        """Accept the connection and wait for the credentials in its first message.

        Raises `AuthenticationError` if something else comes, which can be received again, or nothing in time.
        """
        await self.send({"type": "websocket.accept"})
        with suppress(asyncio.TimeoutError):
            message = await asyncio.wait_for(self.receive(), seconds)
            auth = _auth_of(message.get("text"))
            if auth is not None:
                return from_text(auth)
            self._unread = message
        raise AuthenticationError(
            Reason.NO_CREDENTIALS, 'Send {"type": "connect", "auth": "<API key or token>"} first, and soon.'
        )

    async def refuse(self, error: FlowSecurityError, endpoint: str) -> None:
        """End the connection with what the error says: as an HTTP answer before it was accepted, where that is possible
        (ASGI extension ``websocket.http.response``), else as a message and a code.
        """
        if self.closed:
            return
        problem = problem_of(error, endpoint)
        if not self._accepted and self._can_answer:
            self.closed = True
            await problem.send(self._send, "websocket.http.response")
            return
        if self._accepted:
            await self.send_json({"type": "error", "reason": problem.reason, "detail": problem.detail})
        await self.send({"type": "websocket.close", "code": _code(error), "reason": problem.reason})


class _Guarded:
    """What an application receives of a connection."""

    def __init__(self, gate: Gate, visit: Visit, principal: Principal, connection: Connection) -> None:
        self._gate = gate
        self._visit = visit
        self._principal = principal
        self._connection = connection
        self._connected = False

    async def receive(self) -> Message:
        """The next message that the principal may send; the one before the first says that it is connected."""
        if not self._connected:
            self._connected = True
            return {"type": "websocket.connect"}
        message = await self._connection.receive()
        if message["type"] == "websocket.receive" and self._principal is not ANONYMOUS:
            visit = self._visit
            try:
                for pipeline in pipelines_in(message.get("text")) + pipelines_in(message.get("bytes")):
                    visit = replace(self._visit, match=Match(_SUBSCRIBE, pipeline))
                    self._gate.authorize(visit, self._principal)
            except Exception as error:  # noqa: BLE001 (whatever it is, the message is not passed on)
                refusal = self._gate.refuse(visit, error)
                if refusal is not None:
                    await self._connection.refuse(refusal, visit.endpoint)
                    return await self._connection.receive()
        return message


def _require_origin(visit: Visit, allowed: list[str]) -> None:
    """Raise `AccessDeniedError` for the page of a site that may not connect in its visitors' names (RFC 6454)."""
    origins = visit.headers.get(b"origin")
    if origins is None:
        return  # not a browser
    hosts = visit.headers.get(b"host", [])
    scheme = "https" if visit.client.secure else "http"
    own = f"{scheme}://{hosts[0].decode('latin-1').lower()}" if len(hosts) == 1 else None
    origin = origins[0].decode("latin-1").lower()
    if len(origins) != 1 or origin not in {own, *allowed}:
        raise AccessDeniedError(Reason.ORIGIN, "Pages of this origin may not connect; name it in websocket_origins.")


def _ended(watch: asyncio.Future[Reason]) -> Exception:
    """Why a connection ends whose login was watched."""
    error = watch.exception()
    if isinstance(error, Exception):
        return error
    return AuthenticationError(watch.result(), "The login has ended; authenticate again.")


def _auth_of(text: object) -> str | None:
    try:
        content = from_json(text) if isinstance(text, str) else None
    except ValueError:
        return None
    if not isinstance(content, dict) or content.get("type") != "connect":
        return None
    auth = content.get("auth")
    return auth if isinstance(auth, str) else None


def pipelines_in(content: str | bytes | None) -> list[str]:
    """The pipelines that a message names, wherever in it, and each time where it names one twice.

    Raises `AccessDeniedError` for what looks like JSON and cannot be read here, but might be elsewhere.
    """
    named: list[object] = []

    def look(pairs: list[tuple[str, object]]) -> None:
        named.extend(value for name, value in pairs if name == "pipeline_id")

    # The standard library's parser is the one that most applications use, and the most lenient one.
    try:
        json.loads(content or "null", object_pairs_hook=look)
    except (ValueError, RecursionError):
        if _looks_like_json(content or ""):
            raise _unreadable() from None
    pipelines = [name for name in named if isinstance(name, str)]
    if len(pipelines) != len(named):
        raise _unreadable()
    return pipelines


def _looks_like_json(content: str | bytes) -> bool:
    """Whether some parser might find an object or an array after spaces, a byte order mark, or the zeros of UTF-16."""
    text = content if isinstance(content, str) else content.decode("latin-1")
    return text.lstrip(_BEFORE_JSON)[:1] in ("{", "[")


def _unreadable() -> AccessDeniedError:
    return AccessDeniedError(Reason.UNREADABLE_MESSAGE, "The message is not JSON that can be read.")


def _code(error: FlowSecurityError) -> int:
    code = _CODES.get(getattr(error, "reason", Reason.INTERNAL_ERROR))
    if code is not None:
        return code
    if isinstance(error, AuthenticationError):
        return 4401
    return 4429 if isinstance(error, RateLimitExceededError) else 4403
