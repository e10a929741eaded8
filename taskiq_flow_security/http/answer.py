"""What is answered to a request, or to a handshake that is denied."""

from __future__ import annotations

from collections.abc import Awaitable

from taskiq_flow_security.http.asgi import Header, Message, Send

_HSTS = b"strict-transport-security"

_STARTS = frozenset({"http.response.start", "websocket.http.response.start"})


def hsts(max_age: int) -> Header | None:
    """The header by which browsers come by HTTPS only, for so many seconds (RFC 6797)."""
    return (_HSTS, f"max-age={max_age}; includeSubDomains".encode()) if max_age else None


class Answer:
    """An answer: whether it has begun, with this header put on it, unless it has one of its own."""

    __slots__ = ("_hsts", "_send", "started")

    def __init__(self, send: Send, hsts: Header | None) -> None:
        self._send = send
        self._hsts = hsts
        self.started = False

    def send(self, message: Message) -> Awaitable[None]:
        """Pass a message on to the server."""
        if not self.started and message["type"] in _STARTS:
            self.started = True
            if self._hsts is not None:
                message = _with_hsts(message, self._hsts)
        return self._send(message)


def _with_hsts(message: Message, hsts: Header) -> Message:
    headers = list(message.get("headers", ()))  # which may be an iterator
    if _HSTS not in [name.lower() for name, _ in headers]:
        headers.append(hsts)
    return {**message, "headers": headers}
