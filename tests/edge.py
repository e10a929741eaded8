"""A secured application for the tests of the HTTP and WebSocket edge, and clients that may send it anything."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jwt
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from taskiq_flow_security import AuditLogger, FlowSecurity, TaskiqFlowConfig
from taskiq_flow_security.core.events import AuditEvent
from taskiq_flow_security.http import HTTPSecurityMiddleware, Rule
from taskiq_flow_security.http.asgi import App, Message

SECRET = "the-secret-of-the-edge-0123456789-abcdefgh"
VIEWER = "viewer-key-0123456789abcdef"
ADMIN = "admin-key-0123456789abcdef"
NOW = 1_800_000_000.0

PEER = ("203.0.113.9", 50_000)
"""A client on the internet, whom nobody trusts."""
PROXY = ("127.0.0.1", 50_000)
"""A reverse proxy on the same machine, trusted by default."""

API_KEYS = {
    VIEWER: {"role": "viewer", "pipelines": ["p1"], "permissions": ["read"], "subject": "viewer"},
    ADMIN: {"role": "admin", "pipelines": ["*"], "permissions": ["read", "execute", "admin"], "subject": "admin"},
}

Headers = Iterable[tuple[str | bytes, str | bytes]]


def key(api_key: str = VIEWER) -> list[tuple[str | bytes, str | bytes]]:
    return [("x-api-key", api_key)]


def bearer(**claims: object) -> list[tuple[str | bytes, str | bytes]]:
    return [("authorization", f"Bearer {token(**claims)}")]


def token(**claims: object) -> str:
    return jwt.encode({"sub": "carol", "roles": ["viewer"], "permissions": ["read"], "exp": NOW + 60, **claims}, SECRET)


class Clock:
    """A clock that a test sets."""

    def __init__(self, now: float = NOW) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Trail:
    """The audit events, in order."""

    def __init__(self) -> None:
        self.events: list[AuditEvent] = []

    def write(self, event: AuditEvent) -> None:
        self.events.append(event)

    def flush(self) -> None:
        pass

    @property
    def last(self) -> AuditEvent:
        return self.events[-1]


@dataclass
class Edge:
    """A Starlette application behind the middleware."""

    settings: dict[str, Any] = field(default_factory=dict)
    rules: list[Rule] = field(default_factory=list)
    routes: list[Any] | None = None
    clock: Clock = field(default_factory=Clock)
    trail: Trail = field(default_factory=Trail)
    reached: list[tuple[str, str]] = field(default_factory=list)
    """The requests and messages that got through: what, and in whose name."""

    def __post_init__(self) -> None:
        settings: dict[str, Any] = {"jwt_secret": SECRET, "api_keys": API_KEYS, **self.settings}
        audit = AuditLogger("tests.edge.audit", sinks=[self.trail])
        logging.getLogger("tests.edge.audit").propagate = False
        self.security = FlowSecurity(TaskiqFlowConfig(**settings), audit=audit, clock=self.clock)
        starlette = Starlette(routes=self.routes if self.routes is not None else self._guide_routes())
        starlette.add_middleware(HTTPSecurityMiddleware, security=self.security, rules=self.rules)
        self.app: App = starlette

    async def answer(self, request: Request) -> JSONResponse:
        subject = request.state.principal.subject
        self.reached.append((request.url.path, subject))
        return JSONResponse({"subject": subject, "parameters": request.path_params})

    async def converse(self, socket: WebSocket) -> None:
        """Accept, and tell of each message that arrives."""
        await socket.accept()
        while True:
            message = await socket.receive()
            if message["type"] == "websocket.disconnect":
                return
            content = message.get("text") if message.get("text") is not None else message.get("bytes")
            self.reached.append((str(content), socket.state.principal.subject))
            await socket.send_json({"type": "received"})

    def _guide_routes(self) -> list[Any]:
        return [
            Route("/whoami", self.answer),
            Route("/pipelines", self.answer),
            Route("/pipelines/{pipeline_id}/dag", self.answer),
            Route("/pipelines/{pipeline_id}/critical-path", self.answer),
            Route("/pipelines/{pipeline_id}/parallel-groups", self.answer),
            Route("/pipelines/{pipeline_id}/status", self.answer),
            Route("/pipelines/{pipeline_id}/execute", self.answer, methods=["POST"]),
            Route("/secret", self.answer, methods=["GET", "POST", "OPTIONS"]),
            WebSocketRoute("/ws", self.converse),
        ]

    async def get(self, path: str = "/pipelines", headers: Headers = (), **scope: Any) -> Answer:
        return await request(self.app, "GET", path, headers, **scope)

    async def post(self, path: str, headers: Headers = (), **scope: Any) -> Answer:
        return await request(self.app, "POST", path, headers, **scope)


class Answer(NamedTuple):
    """An answer to a request, or to a handshake."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def reason(self) -> str | None:
        """The code of a problem; ``None`` for what is none."""
        if self.headers.get("content-type") != "application/problem+json":
            return None
        return str(json.loads(self.body)["reason"])


def _scope(kind: str, path: str, headers: Headers, scope: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": kind,
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "path": path,
        "raw_path": path.encode("utf-8", "surrogatepass"),
        "root_path": "",
        "query_string": b"",
        "client": PEER,
        "server": ("edge.example", 443),
        "headers": [(_bytes(name), _bytes(value)) for name, value in headers],
        **scope,
    }


def _bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode("latin-1")


async def request(app: App, method: str, path: str, headers: Headers = (), **scope: Any) -> Answer:
    """Send a request with any scope, over HTTPS unless it says otherwise."""
    sent: list[Message] = []

    requests: list[Message] = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> Message:
        if not requests:
            await asyncio.Event().wait()  # the client stays, and sends nothing more
        return requests.pop()

    async def send(message: Message) -> None:
        sent.append(message)

    await app(_scope("http", path, headers, {"method": method, "scheme": "https", **scope}), receive, send)
    return _answer(sent, "http.response")


def _answer(sent: list[Message], kind: str) -> Answer:
    start = next(message for message in sent if message["type"] == f"{kind}.start")
    body = b"".join(message.get("body", b"") for message in sent if message["type"] == f"{kind}.body")
    return Answer(start["status"], {name.decode(): value.decode() for name, value in start["headers"]}, body)


class Socket:
    """The client's side of a WebSocket."""

    def __init__(self) -> None:
        self.to_app: asyncio.Queue[Message] = asyncio.Queue()
        self.sent: list[Message] = []
        self._news = asyncio.Event()

    async def take(self, message: Message) -> None:
        """What the application sends."""
        self.sent.append(message)
        self._news.set()

    async def until(self, *kinds: str) -> Message:
        """The next message of one of these types, ``websocket.`` left out."""
        while True:
            for index, message in enumerate(self.sent):
                if message["type"].removeprefix("websocket.") in kinds:
                    del self.sent[: index + 1]
                    return message
            self._news.clear()
            await asyncio.wait_for(self._news.wait(), 10)

    async def accepted(self) -> None:
        await self.until("accept")

    async def receive(self) -> dict[str, Any]:
        """The next message, which is JSON."""
        content: dict[str, Any] = json.loads((await self.until("send"))["text"])
        return content

    async def close_code(self) -> int:
        return int((await self.until("close"))["code"])

    async def denial(self) -> Answer:
        """The HTTP answer that denied the handshake."""
        start = await self.until("http.response.start")
        return _answer([start, await self.until("http.response.body")], "websocket.http.response")

    def send(self, content: object) -> None:
        """Send bytes, text, or anything else as JSON."""
        if isinstance(content, bytes):
            self.to_app.put_nowait({"type": "websocket.receive", "bytes": content})
        else:
            text = content if isinstance(content, str) else json.dumps(content)
            self.to_app.put_nowait({"type": "websocket.receive", "text": text})

    def subscribe(self, pipeline: object) -> None:
        self.send({"type": "subscribe", "pipeline_id": pipeline})


@asynccontextmanager
async def connect(app: App, headers: Headers = (), path: str = "/ws", **scope: Any) -> AsyncIterator[Socket]:
    """Connect with any scope, over WSS unless it says otherwise; disconnect in the end."""
    socket = Socket()
    socket.to_app.put_nowait({"type": "websocket.connect"})
    extensions: dict[str, Any] = {"extensions": {"websocket.http.response": {}}}
    full = _scope("websocket", path, headers, {"scheme": "wss", "subprotocols": [], **extensions, **scope})
    running = asyncio.ensure_future(app(full, socket.to_app.get, socket.take))
    try:
        yield socket
        socket.to_app.put_nowait({"type": "websocket.disconnect", "code": 1000})
        await asyncio.wait_for(running, 10)
    finally:
        running.cancel()


@contextmanager
def logs(level: int = logging.DEBUG) -> Iterator[list[str]]:
    """Everything that is logged inside the block, with tracebacks, as text."""
    lines: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(logging.Formatter().format(record) + repr(record.__dict__))

    handler, root = Handler(), logging.getLogger()
    previous = root.level
    root.addHandler(handler)
    root.setLevel(level)
    try:
        yield lines
    finally:
        root.removeHandler(handler)
        root.setLevel(previous)
