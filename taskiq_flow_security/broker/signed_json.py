"""Messages that travel as the very bytes that were signed.

TaskIQ's own formats are plain JSON, and so is what is signed. There the signature is put first among the labels: cut
out again, it leaves what was signed, so that a receiver can verify a message before anything is parsed.
"""

from __future__ import annotations

from taskiq.abc.formatter import TaskiqFormatter
from taskiq.formatters.json_formatter import JSONFormatter
from taskiq.formatters.proxy_formatter import ProxyFormatter
from taskiq.serializers import JSONSerializer

from taskiq_flow_security.tokens.message_signature import SIGNATURE_LABEL

# Within a JSON string each of these quotation marks would be escaped, so that no name or argument can look like this.
_LABELS = b'"labels":{'
_BEFORE = _LABELS + f'"{SIGNATURE_LABEL}":"'.encode()
_AFTER = b'",'


def is_sent_by(formatter: TaskiqFormatter) -> bool:
    """Whether a formatter sends plain JSON, so that any JSON of the same message may be sent in its place."""
    if type(formatter) is ProxyFormatter:  # TaskIQ's default; a subclass may do something else
        return type(formatter.broker.serializer) is JSONSerializer
    return type(formatter) is JSONFormatter


def join(payload: bytes, signature: str) -> bytes:
    """The bytes to send for a payload, which has one label at least: the principal."""
    head, _, tail = payload.partition(_LABELS)
    return b"".join((head, _BEFORE, signature.encode(), _AFTER, tail))


def split(data: bytes) -> tuple[str, bytes] | None:
    """The inverse of `join`: the signature and the payload. ``None`` for all that it has not made."""
    head, before, rest = data.partition(_BEFORE)
    signature, after, tail = rest.partition(_AFTER)
    if not (before and after and signature.isascii()):
        return None
    return signature.decode(), b"".join((head, _LABELS, tail))
