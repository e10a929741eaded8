"""WebSockets: who may connect, what they may ask for, and until when."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from taskiq_flow_security.core.principal import ANONYMOUS, Principal
from taskiq_flow_security.core.reasons import Reason
from taskiq_flow_security.denial import denial_in
from taskiq_flow_security.errors import AccessDeniedError, AuthenticationError
from taskiq_flow_security.http.answer import Answer
from taskiq_flow_security.http.asgi import App, Header, Receive, Scope, Send
from taskiq_flow_security.http.connection import Connection
from taskiq_flow_security.http.conversation import Conversation, refuse
from taskiq_flow_security.http.credentials import Credentials
from taskiq_flow_security.http.ending import end
from taskiq_flow_security.http.gate import Gate
from taskiq_flow_security.http.limits import WEBSOCKET_LOGIN
from taskiq_flow_security.http.rules import WEBSOCKET, Match, Rule
from taskiq_flow_security.http.visit import Visit

_CHECKED_EVERY = 0.5
"""Seconds after which a login that has ended, or was taken back, ends its connections."""

_UNPROVEN = 10
"""There is one place for who has proved nothing yet where there are so many for others."""

_LOGIN = Match(Rule(WEBSOCKET, "/", WEBSOCKET_LOGIN), None)


class WebSockets:
    """Guards the WebSockets of an application.

    Credentials come in the handshake's headers, or, as browsers cannot set those, in a first message
    ``{"type": "connect", "auth": "<API key or token>"}``, which is answered by ``{"type": "connected"}``. The
    application is not called before. Each message that names a ``pipeline_id`` is passed on only to who may read that
    pipeline. A connection ends when its login does. What is not JSON, and does not look like it, is passed on as it is.

    The handshake is accepted before a first message can come; the application's own ``websocket.accept`` is left out
    then, with the subprotocol and the headers that it may name.
    """

    def __init__(self, app: App, gate: Gate, hsts: Header | None) -> None:
        self._app = app
        self._gate = gate
        self._hsts = hsts
        number = gate.security.config.websocket_max_connections
        self._places = _Places(number)
        self._unproven = _Places(max(1, number // _UNPROVEN))

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        visit = self._gate.visit(scope)
        answer = Answer(send, self._hsts if visit.client.secure else None)
        connection = Connection(scope, receive, answer.send)
        try:
            await connection.receive()  # websocket.connect
            principal = await self._admit(visit, connection)
            if principal is None:
                return
            if connection.accepted and principal is not ANONYMOUS:
                await connection.greet(principal)
            await self._converse(scope, visit, principal, connection)
        finally:
            self._places.leave(connection)

    async def _admit(self, visit: Visit, connection: Connection) -> Principal | None:
        """In whose name the connection is made; ``None`` for nobody, and it is closed."""
        try:
            return await self._authenticate(visit, connection)
        except Exception as error:  # noqa: BLE001 (whatever it is, the connection is refused)
            refused = await refuse(self._gate, visit, connection, error)
            return None if refused else visit.principal or ANONYMOUS

    async def _authenticate(self, visit: Visit, connection: Connection) -> Principal:
        gate, config = self._gate, self._gate.security.config
        gate.require_usable(visit)
        _require_origin(visit, config.websocket_origins)
        public = gate.require_rule(visit).rule.public
        given = None if public else await gate.credentials(visit)
        if given is None and (public or not config.websocket_require_auth):
            self._places.take(connection)
            await gate.count(visit)
            return gate.welcome(visit)
        principal = await gate.identify(visit, given or await self._ask(visit, connection))
        self._places.take(connection)
        await gate.count(visit)
        gate.authorize(visit, principal)
        return principal

    async def _ask(self, visit: Visit, connection: Connection) -> Credentials:
        """The credentials of a client that has sent none in its handshake. Raises as `Connection.first_message`.

        Whoever is asked is counted by address here, by a limit of its own: the limit of the caller comes later.
        """
        self._unproven.take(connection)
        try:
            await self._gate.count(replace(visit, match=_LOGIN))
            return await connection.first_message(self._gate.security.config.websocket_auth_timeout)
        finally:
            self._unproven.leave(connection)

    async def _converse(self, scope: Scope, visit: Visit, principal: Principal, connection: Connection) -> None:
        conversation = Conversation(self._gate, scope, visit, principal, connection)
        with self._gate.entered(scope, visit, principal):
            app = asyncio.ensure_future(self._app(scope, conversation.receive, connection.send))
        watch = asyncio.ensure_future(self._login_ends(conversation))
        try:
            await asyncio.wait({app, watch}, return_when=asyncio.FIRST_COMPLETED)
            if not app.done() and await refuse(self._gate, visit, connection, _ended(watch)):
                return
            await app
        except Exception as error:
            denial = denial_in(error)
            if denial is None:
                raise
            await connection.refuse(denial)  # of the application: as over HTTP, it is the answer
        finally:
            await end(app, watch)

    async def _login_ends(self, conversation: Conversation) -> Reason:
        """Wait until the login behind a conversation is over, and say why."""
        authorization = self._gate.security.authorization
        # Asked again and again, as what ends a login may be decided elsewhere.
        while (reason := authorization.login_ended(conversation.principal)) is None:  # noqa: ASYNC110 (nobody tells us)
            await asyncio.sleep(_CHECKED_EVERY)
        return reason


class _Places:
    """Places for so many connections."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._taken: set[Connection] = set()

    def take(self, connection: Connection) -> None:
        """Give a connection a place. Raises `AccessDeniedError` if there is none left."""
        if len(self._taken) >= self._number:
            raise AccessDeniedError(Reason.TOO_MANY_CONNECTIONS, "Too many connections are open; try again later.")
        self._taken.add(connection)

    def leave(self, connection: Connection) -> None:
        """Free the place of a connection, if it has one."""
        self._taken.discard(connection)


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
