"""An audit event as plain fields, for whoever writes it down."""

from __future__ import annotations

from datetime import datetime, timezone
from functools import lru_cache
from typing import Any

from taskiq_flow_security.core.events import AuditEvent

FIELDS = AuditEvent._fields

MAX_FIELD_LENGTH = 200
"""Names and ids in an event can come from a forged message; they are cut off here and control characters escaped."""

_FROM_OUTSIDE = ("reason", "rule", "sub", "act", "pipeline", "task", "task_id", "txn", "jti", "ip", "change")


def fields_of(event: AuditEvent) -> dict[str, Any]:
    """All fields by name: text, or lists of text, or ``None``."""
    fields = event._asdict()
    fields["event"] = str(event.event)
    fields["time"] = _iso(event.time)
    fields["outcome"] = str(event.outcome)
    fields["roles"] = list(_shown(event.roles))
    for name in _FROM_OUTSIDE:
        text = fields[name]
        if text is not None and not (len(text) <= MAX_FIELD_LENGTH and text.isprintable()):
            fields[name] = _clean(text)
    return fields


def _iso(moment: float) -> str:
    """A moment as ISO 8601 in UTC, to the microsecond."""
    second, fraction = divmod(moment, 1)
    return f"{_second(second)}.{int(fraction * 1e6):06}+00:00"


@lru_cache(maxsize=16)
def _second(moment: float) -> str:
    return datetime.fromtimestamp(moment, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S")


@lru_cache(maxsize=1024)
def _shown(roles: frozenset[str]) -> tuple[str, ...]:
    return tuple(_clean(role) for role in sorted(roles))


def _clean(text: str) -> str:
    if len(text) > MAX_FIELD_LENGTH:
        text = f"{text[:MAX_FIELD_LENGTH]}..."
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")
