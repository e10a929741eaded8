"""What an application receives of a WebSocket: the messages that who has sent them may send."""

from __future__ import annotations

from dataclasses import replace

from taskiq_flow_security import acting
from taskiq_flow_security.acting import Acting
from taskiq_flow_security.core.principal import ANONYMOUS, Permission, Principal
from taskiq_flow_security.errors import AccessDeniedError
from taskiq_flow_security.http.asgi import Message, Scope
from taskiq_flow_security.http.connection import Connection
from taskiq_flow_security.http.credentials import from_text
from taskiq_flow_security.http.gate import Gate
from taskiq_flow_security.http.limits import WEBSOCKET_SUBSCRIBE
from taskiq_flow_security.http.messages import MAX_FIRST_MESSAGE, auth_of, pipelines_of, require_size
from taskiq_flow_security.http.rules import WEBSOCKET, Match, Rule
from taskiq_flow_security.http.visit import Visit

_SUBSCRIBE = Rule(WEBSOCKET, "/{pipeline_id}", WEBSOCKET_SUBSCRIBE, Permission.READ, "{pipeline_id}")


class Conversation:
    """The messages of one connection, from when it is admitted to its end.

    Where nobody has to prove who they are, whoever does so all the same is held to that from then on.
    """

    def __init__(self, gate: Gate, scope: Scope, visit: Visit, principal: Principal, connection: Connection) -> None:
        self.principal = principal
        self._gate = gate
        self._scope = scope
        self._handshake = visit
        self._visit = replace(visit, match=Match(_SUBSCRIBE, None))
        self._connection = connection
        self._connected = False

    async def receive(self) -> Message:
        """The next message that the principal may send; the one before the first says that it is connected."""
        if not self._connected:
            self._connected = True
            return {"type": "websocket.connect"}
        while True:
            message = await self._connection.receive()
            if message["type"] != "websocket.receive":
                return message
            auth = self._auth_of(message)
            if (auth is None or not await self._log_in(auth)) and await self._may_send(message):
                return message
            # Where it was refused, what comes next is that the connection is closed.

    def _auth_of(self, message: Message) -> str | None:
        """The credentials in a message of somebody who is not known, and might be."""
        match = self._handshake.match
        if self.principal is not ANONYMOUS or match is None or match.rule.public:
            return None
        try:
            require_size(message, MAX_FIRST_MESSAGE)
        except AccessDeniedError:
            return None
        return auth_of(message.get("text"))

    async def _log_in(self, auth: str) -> bool:
        """Go on as whoever this proves; if nobody, the connection is ended. ``False`` where that is only monitored."""
        gate, visit = self._gate, self._handshake
        try:
            principal = await gate.identify(visit, from_text(auth))
            await gate.count(visit)
            gate.authorize(visit, principal)
        except Exception as error:  # noqa: BLE001 (whatever it is, nobody is proved)
            return await refuse(gate, visit, self._connection, error)
        self.principal = self._scope["state"]["principal"] = principal
        self._visit = replace(self._visit, principal=principal)
        acting.become(Acting(principal, visit.txn, gate.security))  # for an application that receives in its own task
        await self._connection.greet(principal)
        return True

    async def _may_send(self, message: Message) -> bool:
        """Whether a message may be passed on; if not, the connection has been ended."""
        gate, visit, pipeline = self._gate, self._visit, None
        try:
            require_size(message, gate.security.config.websocket_max_message_size)
            pipelines = [] if self.principal is ANONYMOUS else pipelines_of(message)  # who may read each of them
            if pipelines:
                await gate.count(visit)
            for pipeline in pipelines:
                visit = replace(self._visit, match=Match(_SUBSCRIBE, pipeline))
                gate.authorize(visit, self.principal)
        except Exception as error:  # noqa: BLE001 (whatever it is, the message is not passed on)
            return not await refuse(gate, visit, self._connection, error, pipeline)
        return True


async def refuse(
    gate: Gate, visit: Visit, connection: Connection, error: Exception, pipeline: str | None = None
) -> bool:
    """Record a refusal and end the connection with it, unless refusals are only monitored; whether it was ended."""
    refusal = gate.refuse(visit, error)
    if refusal is not None:
        await connection.refuse(refusal, pipeline)
    return refusal is not None
