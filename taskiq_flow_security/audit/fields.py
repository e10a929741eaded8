"""An audit event as plain fields, for whoever writes it down."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timezone
from functools import lru_cache
from json.encoder import encode_basestring as _quoted
from typing import Any

from pydantic_core import to_json

from taskiq_flow_security.core.events import AuditEvent, EventName, Outcome

FIELDS = AuditEvent._fields

MAX_FIELD_LENGTH = 200
"""Names and ids in an event can come from a forged message; they are cut off here and control characters escaped."""

MAX_CHANGE_LENGTH = 16 * 1024
"""Of what was changed, all is told: an administrator has said it, and it is of no use without its end."""

_FROM_OUTSIDE = ("reason", "rule", "sub", "act", "pipeline", "task", "task_id", "txn", "jti", "key_id", "ip", "change")


def fields_of(event: AuditEvent) -> dict[str, Any]:
    """All fields by name: text, or lists of text, or ``None``."""
    fields = event._asdict()
    fields["event"] = str(event.event)
    fields["time"] = _iso(event.time)
    fields["outcome"] = str(event.outcome)
    fields["permission"] = None if event.permission is None else str(event.permission)
    fields["roles"] = list(_shown(event.roles))
    for name in _FROM_OUTSIDE:
        text = fields[name]
        if text is not None:
            fields[name] = _clean(text, _max_length(name))
    return fields


def lines_of(events: Iterable[AuditEvent]) -> Iterator[str]:
    """The fields that each event has, as a line of JSON."""
    before, start = None, ""
    for name, time, outcome, *between, task_id, txn, jti, key_id, ip, change in events:
        own = time, txn, task_id, jti, ip, change
        if own != before:  # the events of one request follow each other, and begin alike
            before, start = own, _start(*own)
        yield f"{start},{_SHARED[outcome](name, key_id, outcome, *between)}\n"


def _start(
    time: float, txn: str | None, task_id: str | None, jti: str | None, ip: str | None, change: str | None
) -> str:
    """What an event has of its own, as the start of a line."""
    start = f'{{"time":"{_iso(time)}"'
    if txn:
        start += f',"txn":{_quoted(_clean(txn))}'
    if task_id:
        start += f',"task_id":{_quoted(_clean(task_id))}'
    if jti:
        start += f',"jti":{_quoted(_clean(jti))}'
    if ip:
        start += f',"ip":{_quoted(_clean(ip))}'
    if change:
        start += f',"change":{_quoted(_clean(change, MAX_CHANGE_LENGTH))}'
    return start


@lru_cache(maxsize=1024)
def _common(event: EventName, key_id: str | None, *between: Any) -> str:
    """What an event shares with others, as the end of a line: `between` are its fields from the outcome to the task."""
    fields = fields_of(AuditEvent(event, 0.0, *between)._replace(key_id=key_id))
    return to_json({name: value for name, value in fields.items() if value and name != "time"}).decode()[1:]


# What was allowed is allowed again and again. What was denied can be anybody's invention, and is not remembered.
_SHARED: dict[Outcome, Callable[..., str]] = {Outcome.ALLOW: _common, Outcome.DENY: _common.__wrapped__}


def _iso(moment: float) -> str:
    """A moment as ISO 8601 in UTC, to the microsecond."""
    return f"{_second(moment // 1)}.{str(int(moment % 1 * 1e6)).zfill(6)}+00:00"


@lru_cache(maxsize=16)
def _second(moment: float) -> str:
    return datetime.fromtimestamp(moment, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S")


@lru_cache(maxsize=1024)
def _shown(roles: frozenset[str]) -> tuple[str, ...]:
    return tuple(_clean(role) for role in sorted(roles))


def _max_length(name: str) -> int:
    return MAX_CHANGE_LENGTH if name == "change" else MAX_FIELD_LENGTH


def _clean(text: str, max_length: int = MAX_FIELD_LENGTH) -> str:
    if len(text) > max_length:
        text = f"{text[:max_length]}..."
    return str(text) if text.isprintable() else text.encode("unicode_escape").decode("ascii")
