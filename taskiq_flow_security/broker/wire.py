"""What is signed: a message as it travels.

The payload is the JSON of the whole message, every label with its type included, without the signature itself. The
receiver computes it from what it has read, whatever serializer or formatter carried it, and goes on with what the
*payload* says: what runs is what was signed, even where a format knows types that JSON does not.
"""

from __future__ import annotations

import re
from typing import Any, TypedDict, cast

from pydantic_core import from_json, to_json
from taskiq.labels import LabelType, parse_label, prepare_label
from taskiq.message import TaskiqMessage

from taskiq_flow_security.core.reasons import Reason
from taskiq_flow_security.errors import AuthenticationError, UnsignableMessageError
from taskiq_flow_security.tokens.message_signature import SIGNATURE_LABEL
from taskiq_flow_security.tokens.principal_token import PRINCIPAL_LABEL

PIPELINE_LABEL = "pipeline"
QUEUE_TTL_LABEL = "queue_ttl"
DELAY_LABEL = "delay"
SCHEDULE_LABEL = "schedule_id"
"""What TaskIQ's scheduler adds to the labels of what it sends (0.13)."""


class WireMessage(TypedDict):
    """A message as plain JSON values, in the order in which they are signed."""

    task_id: str
    task_name: str
    labels: dict[str, Any]
    labels_types: dict[str, int] | None
    args: list[Any]
    kwargs: dict[str, Any]


_TEXT = LabelType.STR.value
"""The type of a label that is text."""

_MAX_DEPTH = 200
"""pydantic-core reads JSON up to this depth."""

_MAX_DIGITS = 4300
"""Python reads integers of up to so many digits, and so does pydantic-core."""

_MAX_BITS = int(_MAX_DIGITS * 3.3219)
_ENDLESS = re.compile(rb"\d{%d}" % (_MAX_DIGITS + 1))

_SAID_AGAIN = 16 * 2**20
"""How many characters any message may hold, however short it is."""


def to_wire(message: TaskiqMessage) -> WireMessage:
    """The message as plain JSON values. Raises `UnsignableMessageError` for a value that JSON cannot hold."""
    try:
        # As TaskIQ's own formats do: dumped in any other way, some models have other names and values.
        return cast("WireMessage", prepared(message).model_dump(mode="json"))
    except ValueError as error:
        raise unsignable(error) from None


def signed_payload(data: WireMessage) -> bytes:
    """The bytes to sign for a message about to be sent, its principal already in place."""
    try:
        payload = to_json(data)
        # The labels, which are the longer part, are text, unless a middleware has put something else there.
        check_readable(payload, payload.find(b'"args":') if holds_text(data["labels"]) else 0)
    except ValueError as error:
        raise unsignable(error) from None
    return payload


def holds_text(labels: dict[str, Any]) -> bool:
    """Whether all labels are text, and nothing that is equal to it."""
    return {str}.issuperset(map(type, labels.values()))


def check_readable(payload: bytes, start: int = 0) -> None:
    """Raise `ValueError` for what the receiver could not read once it has verified it.

    Before `start`, it is known to be flat.
    """
    if len(payload) >= start + _MAX_DEPTH and payload.count(b"[", start) + payload.count(b"{", start) >= _MAX_DEPTH:
        from_json(payload)
    if len(payload) > _MAX_DIGITS and _ENDLESS.search(payload):
        from_json(payload)


def received_payload(message: TaskiqMessage, size: int) -> bytes:
    """The bytes that must have been signed for this message of `size` bytes, its signature taken off already."""
    try:
        _check_extent(message, size)
        return to_json(
            WireMessage(
                task_id=message.task_id,
                task_name=message.task_name,
                labels=message.labels,
                labels_types=message.labels_types,
                args=message.args,
                kwargs=message.kwargs,
            )
        )
    except (ValueError, RecursionError):
        raise AuthenticationError(Reason.MALFORMED, "The message holds values that nobody can sign.") from None


def may_say(size: int) -> int:
    """How many characters a message of so many bytes may hold.

    CBOR names a text that comes again by its number, so that a message may say far more than it is long. A forged one
    would say terabytes.
    """
    return _SAID_AGAIN + 8 * size


def check_repeats(payload: bytes, sent: bytes) -> None:
    """Raise `UnsignableMessageError` where no receiver of these bytes would believe that they say so much."""
    if len(payload) > may_say(len(sent)):
        raise UnsignableMessageError(
            f"The message cannot be signed: its texts repeat so often that it says {len(payload)} characters in "
            f"{len(sent)} bytes; send less at once, or as JSON."
        )


def _check_extent(message: TaskiqMessage, size: int) -> None:
    """Raise `ValueError` for what would take more time or memory to be signed than a message of this size may."""
    left = may_say(size)
    waiting: list[object] = [message.labels, message.labels_types, message.args, message.kwargs]
    seen: set[int] = set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, (str, bytes)):
            left -= len(value)
        elif isinstance(value, int):
            if (bits := value.bit_length()) > _MAX_BITS:  # to print it takes time that grows as the square of that
                raise ValueError("a number without an end")
            left -= bits // 3
        elif isinstance(value, (dict, list, tuple, set, frozenset)):
            if not value:
                continue  # there is one empty tuple only
            if id(value) in seen:
                raise ValueError("a value that is there twice, or within itself, as in nothing that was sent")
            seen.add(id(value))
            waiting.extend(value)
            if isinstance(value, dict):
                waiting.extend(value.values())
        elif not (value is None or isinstance(value, float)):
            left -= len(to_json(value))
        if left < 0:
            raise ValueError("much more than the message is long")


def restore(message: TaskiqMessage, payload: bytes) -> None:
    """Make the message say what its verified payload says."""
    data = from_json(payload)
    message.labels = data["labels"]
    message.args = data["args"]
    message.kwargs = data["kwargs"]


def drop_unreadable_labels(message: TaskiqMessage) -> None:
    """Take out of a message that is to run anyway what would have TaskIQ drop it, and log it as it came."""
    for name in unreadable_labels(message):
        del message.labels[name]


def unreadable_labels(message: TaskiqMessage) -> list[str]:
    """The labels that are not of the type they claim, for which TaskIQ would drop the message."""
    unreadable = []
    for name, label_type in (message.labels_types or {}).items():
        if label_type != _TEXT and name in message.labels:
            try:
                parse_label(message.labels[name], label_type)
            except Exception:  # noqa: BLE001 (as TaskIQ's receiver does)
                unreadable.append(name)
    return unreadable


def take_credentials(message: TaskiqMessage) -> object:
    """Take principal and signature off a message, so that nobody else sees them; the principal, if it had one."""
    message.labels.pop(SIGNATURE_LABEL, None)
    return message.labels.pop(PRINCIPAL_LABEL, None)


def read_label(message: TaskiqMessage, name: str) -> object:
    """The value of a label, whether TaskIQ has parsed it yet or not."""
    value = message.labels.get(name)
    if isinstance(value, str) and message.labels_types is not None:
        label_type = message.labels_types.get(name)
        return value if label_type == _TEXT else parse_label(value, label_type)
    return value


def prepared(message: TaskiqMessage) -> TaskiqMessage:
    """A message with its labels as they are sent: itself, or a copy.

    `Context.requeue` sends labels as `TaskiqMessage.parse_labels` has parsed them in place (TaskIQ 0.13); of bytes, the
    receiver could not make sense. The message that is handled keeps its own, which other hooks have still to read.
    """
    types = message.labels_types or {}
    parsed = {
        name: value
        for name, value in message.labels.items()
        if not isinstance(value, str) and (isinstance(value, bytes) or types.get(name) not in (None, LabelType.ANY))
    }
    if not parsed:
        return message
    labels, types = dict(message.labels), dict(types)
    for name, value in parsed.items():
        labels[name], types[name] = prepare_label(value)
    return message.model_copy(update={"labels": labels, "labels_types": types})


def unsignable(error: Exception) -> UnsignableMessageError:
    """The error for a value that JSON cannot hold."""
    # The text of the error quotes the value.
    return UnsignableMessageError(
        "The message cannot be signed: its arguments and labels must be what JSON can hold, as text without lone "
        f"surrogates, UTF-8 bytes, and at most {_MAX_DEPTH} levels deep ({type(error).__name__})."
    )
