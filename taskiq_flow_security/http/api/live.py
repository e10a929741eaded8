"""The WebSocket: the events of runs, as they happen, to whoever may read their pipeline."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from anyio import move_on_after
from pydantic import BaseModel, ValidationError
from starlette.websockets import WebSocket, WebSocketDisconnect

from taskiq_flow_security.core.principal import ANONYMOUS, Permission
from taskiq_flow_security.core.reasons import Reason
from taskiq_flow_security.http.api.endpoints import caller, refusal
from taskiq_flow_security.http.api.messages import (
    Connect,
    Connected,
    Error,
    Event,
    Subscribe,
    Subscribed,
    Unsubscribed,
    client_message,
)
from taskiq_flow_security.http.ending import end
from taskiq_flow_security.pipelines import Catalogue
from taskiq_flow_security.security import FlowSecurity

_logger = logging.getLogger(__name__)

SEND_SECONDS = 10.0
"""How long a client may take to receive a message. The events of a pipeline wait in a buffer of their own meanwhile."""
MAX_SUBSCRIPTIONS = 100

FORBIDDEN = 4403
INTERNAL_ERROR, TRY_AGAIN_LATER = 1011, 1013  # RFC 6455, section 7.4.1, and its registry


class Live:
    """Serves WebSocket connections."""

    def __init__(self, security: FlowSecurity, catalogue: Catalogue) -> None:
        self._security = security
        self._catalogue = catalogue

    async def serve(self, websocket: WebSocket) -> None:
        """Serve one connection to its end."""
        await websocket.accept()
        await _Connection(websocket, self._security, self._catalogue).serve()


class _Connection:
    def __init__(self, websocket: WebSocket, security: FlowSecurity, catalogue: Catalogue) -> None:
        self._websocket = websocket
        self._security = security
        self._catalogue = catalogue
        self._subscriptions: dict[str, asyncio.Task[None]] = {}
        self._sending = asyncio.Lock()
        self._closed = asyncio.Event()

    async def serve(self) -> None:
        """Serve until the client goes, or has to."""
        own = [asyncio.create_task(self._receive()), asyncio.create_task(self._closed.wait())]
        try:
            await asyncio.wait(own, return_when=asyncio.FIRST_COMPLETED)
        finally:
            tasks = [*own, *self._subscriptions.values()]
            await end(*tasks)

    async def _receive(self) -> None:
        async with self._ending():
            while (message := await self._websocket.receive())["type"] != "websocket.disconnect":
                await self._handle(message.get("text"))

    async def _handle(self, text: str | None) -> None:
        try:
            message = client_message.validate_json(text or "")
        except ValidationError:
            await self._send(Error(reason="invalid_message", detail="Send connect, subscribe or unsubscribe, as JSON."))
            return
        if isinstance(message, Connect):
            await self._send(Connected(subject=caller(self._websocket).subject))
        elif isinstance(message, Subscribe):
            await self._subscribe(message.pipeline_id)
        else:
            await self._unsubscribe(message.pipeline_id)

    async def _subscribe(self, pipeline_id: str) -> None:
        if reason := self._refusal(pipeline_id):
            await self._deny(pipeline_id, reason)
        elif self._catalogue.get(pipeline_id) is None:
            await self._send(Error(reason="not_found", detail="There is no such pipeline.", pipeline_id=pipeline_id))
        elif pipeline_id not in self._subscriptions and len(self._subscriptions) >= MAX_SUBSCRIPTIONS:
            await self._send(
                Error(
                    reason="too_many_subscriptions",
                    detail=f"One connection has up to {MAX_SUBSCRIPTIONS}; unsubscribe from others.",
                    pipeline_id=pipeline_id,
                )
            )
        elif pipeline_id in self._subscriptions:
            await self._send(Subscribed(pipeline_id=pipeline_id))
        else:
            self._subscriptions[pipeline_id] = asyncio.create_task(self._forward(pipeline_id))

    async def _unsubscribe(self, pipeline_id: str) -> None:
        subscription = self._subscriptions.pop(pipeline_id, None)
        if subscription is not None:
            await end(subscription)
        await self._send(Unsubscribed(pipeline_id=pipeline_id))

    async def _forward(self, pipeline_id: str) -> None:
        async with self._ending():
            await self._send_events(pipeline_id)

    @asynccontextmanager
    async def _ending(self) -> AsyncIterator[None]:
        """Let no error end a part of the connection only."""
        try:
            yield
        except WebSocketDisconnect:
            self._closed.set()
        except Exception:
            _logger.exception("A connection ends because of an unexpected error.")
            await self._close(INTERNAL_ERROR)

    async def _send_events(self, pipeline_id: str) -> None:
        async with self._security.run_events.subscribe(pipeline_id) as events:
            await self._send(Subscribed(pipeline_id=pipeline_id))
            async for event in events:
                if reason := self._refusal(event.pipeline_id):  # it may no longer
                    await self._deny(pipeline_id, reason)
                    return
                await self._send(Event(**event._asdict()))

    async def _deny(self, pipeline_id: str, reason: Reason) -> None:
        detail, code = "You may not read this pipeline.", FORBIDDEN
        if reason is Reason.POLICY_STALE:
            detail, code = "Nobody can tell now who may read it; try again later.", TRY_AGAIN_LATER
        await self._send(Error(reason=reason, detail=detail, pipeline_id=pipeline_id))
        await self._close(code)

    async def _send(self, message: BaseModel) -> None:
        async with self._sending:
            if self._closed.is_set():
                return
            with move_on_after(SEND_SECONDS) as sending:
                await self._websocket.send_text(message.model_dump_json())
            if sending.cancelled_caught:
                self._closed.set()  # who does not even read cannot be told why

    async def _close(self, code: int) -> None:
        if not self._closed.is_set():
            with suppress(RuntimeError), move_on_after(SEND_SECONDS):  # it is closed meanwhile, or does not read either
                await self._websocket.close(code)
            self._closed.set()

    def _refusal(self, pipeline_id: str) -> Reason | None:
        """Why the caller may not read a pipeline; ``None`` where it may."""
        principal = caller(self._websocket)  # who may have proved it since
        if principal is ANONYMOUS:  # the middleware lets nobody in unknown, but where the settings say so
            return None
        return refusal(self._security, principal, Permission.READ, pipeline_id)
