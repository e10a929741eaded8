"""What WebSocket clients send: it is looked into, but only where it is small enough."""

from __future__ import annotations

import json

from pydantic_core import from_json

from taskiq_flow_security.core.reasons import Reason
from taskiq_flow_security.errors import AccessDeniedError
from taskiq_flow_security.http.asgi import Message

MAX_FIRST_MESSAGE = 16 * 1024
"""Bytes of the message by which somebody logs in, at most: an API key or a token of 8 KiB fits in."""

MAX_PIPELINES = 20
"""How many pipelines one message may name: each is decided about, and recorded."""

_BEFORE_JSON = " \t\r\n\0\ufeff\xef\xbb\xbf\xfe\xff"


def require_size(message: Message, most: int) -> None:
    """Raise `AccessDeniedError` for a message of more than so many bytes."""
    text, data = message.get("text") or "", message.get("bytes") or b""
    if max(len(text), len(data)) > most or (not text.isascii() and len(text.encode("utf-8", "surrogatepass")) > most):
        raise AccessDeniedError(Reason.MESSAGE_TOO_BIG, f"A message may be {most} bytes long here.")


def auth_of(text: object) -> str | None:
    """The credentials in a message, if it is one to log in with."""
    try:
        content = from_json(text) if isinstance(text, str) else None
    except ValueError:
        return None
    if not isinstance(content, dict) or content.get("type") != "connect":
        return None
    auth = content.get("auth")
    return auth if isinstance(auth, str) else None


def pipelines_of(message: Message) -> list[str]:
    """The pipelines that a message names, each once. Raises `AccessDeniedError` as `pipelines_in`, or for too many."""
    pipelines = list(dict.fromkeys(pipelines_in(message.get("text")) + pipelines_in(message.get("bytes"))))
    if len(pipelines) > MAX_PIPELINES:
        raise AccessDeniedError(Reason.MESSAGE_TOO_BIG, f"A message may name {MAX_PIPELINES} pipelines.")
    return pipelines


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
    if len(pipelines) != len(named) or not _is_text("".join(pipelines)):
        raise _unreadable()
    return pipelines


def _is_text(name: str) -> bool:
    """Whether it can be sent back: Python's parser lets lone surrogates pass."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _looks_like_json(content: str | bytes) -> bool:
    """Whether some parser might find an object or an array after spaces, a byte order mark, or the zeros of UTF-16."""
    text = content if isinstance(content, str) else content.decode("latin-1")
    return text.lstrip(_BEFORE_JSON)[:1] in ("{", "[")


def _unreadable() -> AccessDeniedError:
    return AccessDeniedError(Reason.UNREADABLE_MESSAGE, "The message is not JSON that can be read.")
