"""Audit events as standard logging records with structured fields."""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from datetime import datetime, timezone
from typing import Any

import structlog
from structlog.typing import EventDict, WrappedLogger

from taskiq_flow_security.core.events import AuditEvent, Outcome

LOGGER_NAME = "taskiq_flow.audit"

FIELDS = AuditEvent._fields
"""The attributes that an audit record has beyond those of every `logging.LogRecord`."""

MAX_FIELD_LENGTH = 200
"""Names and ids in an event can come from a forged message; they are cut off here and control characters escaped."""

_FROM_OUTSIDE = ("rule", "sub", "act", "pipeline", "task", "task_id", "txn", "ip")

_LEVELS = {Outcome.ALLOW: logging.INFO, Outcome.DENY: logging.WARNING}


class AuditLogger:
    """Writes each event to the logger ``taskiq_flow.audit``: allowed at INFO, denied at WARNING.

    The record's message is the name of the event, its fields are attributes of the record (`logging`'s ``extra``), so
    that any handler, formatter or shipper can take them from there. A level that was not set is set to INFO, or nothing
    allowed would ever be recorded.
    """

    def __init__(self, logger_name: str = LOGGER_NAME) -> None:
        self._logger = logging.getLogger(logger_name)
        if self._logger.level == logging.NOTSET:
            self._logger.setLevel(logging.INFO)
        self._structlog: structlog.stdlib.BoundLogger = structlog.wrap_logger(
            self._logger,
            processors=[_render],
            wrapper_class=structlog.stdlib.BoundLogger,
        ).bind()

    def records(self, outcome: Outcome) -> bool:
        """Whether events of this outcome go anywhere; if not, none needs to be made."""
        return self._logger.isEnabledFor(_LEVELS[outcome])

    def record(self, event: AuditEvent) -> None:
        """Record one decision."""
        level = _LEVELS[event.outcome]
        if self._logger.isEnabledFor(level):
            self._structlog.log(level, event.event.value, audit=event)


def _render(_logger: WrappedLogger, _method: str, event_dict: EventDict) -> MutableMapping[str, Any]:
    """The structlog processor that turns an event into the keyword arguments of a `logging` call."""
    event: AuditEvent = event_dict["audit"]
    fields = event._asdict()
    fields["time"] = datetime.fromtimestamp(event.time, timezone.utc).isoformat(timespec="microseconds")
    fields["roles"] = [_clean(role) for role in sorted(event.roles)]
    for name in _FROM_OUTSIDE:
        text = fields[name]
        if text is not None and not (len(text) <= MAX_FIELD_LENGTH and text.isprintable()):
            fields[name] = _clean(text)
    return {"msg": event_dict["event"], "extra": fields}


def _clean(text: str) -> str:
    if len(text) > MAX_FIELD_LENGTH:
        text = f"{text[:MAX_FIELD_LENGTH]}..."
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")
