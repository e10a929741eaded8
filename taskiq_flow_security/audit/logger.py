"""Audit events as standard logging records with structured fields."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from datetime import datetime, timezone

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

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

    The record's message is the name of the event, its fields are attributes of the record, so that any handler,
    formatter or shipper can take them from there. `processors` are structlog's, and see the fields before that. A level
    that was not set is set to INFO, or nothing allowed would ever be recorded.
    """

    def __init__(self, logger_name: str = LOGGER_NAME, processors: Iterable[Processor] = ()) -> None:
        self._logger = logging.getLogger(logger_name)
        if self._logger.level == logging.NOTSET:
            self._logger.setLevel(logging.INFO)
        self._structlog: _BoundLogger = structlog.wrap_logger(
            _Records(self._logger), processors=[_structure, *processors], wrapper_class=_BoundLogger
        ).bind()

    def records(self, outcome: Outcome) -> bool:
        """Whether events of this outcome go anywhere; if not, none needs to be made."""
        return self._logger.isEnabledFor(_LEVELS[outcome])

    def record(self, event: AuditEvent) -> None:
        """Record one decision."""
        if self.records(event.outcome):
            self._structlog.record(event)


class _BoundLogger(structlog.BoundLoggerBase):
    def record(self, event: AuditEvent) -> None:
        """Hand an event to the processors, and what they make of it to the logger."""
        self._proxy_to_logger("write", event.event.value, audit=event)


class _Records:
    """Makes logging records of fields. `logging`'s own ``extra`` takes longer, and looks for a caller to blame."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger

    def write(self, **fields: object) -> None:
        level = logging.INFO if fields.get("outcome") == Outcome.ALLOW else logging.WARNING
        record = self._logger.makeRecord(self._logger.name, level, __file__, 0, fields.get("event"), (), None)
        record.__dict__.update(fields)
        self._logger.handle(record)


def _structure(_logger: WrappedLogger, _method: str, event_dict: EventDict) -> EventDict:
    """The structlog processor that turns an event into plain fields."""
    event: AuditEvent = event_dict["audit"]
    fields = event._asdict()
    fields["event"] = event.event.value
    fields["outcome"] = event.outcome.value
    fields["time"] = datetime.fromtimestamp(event.time, timezone.utc).isoformat(timespec="microseconds")
    fields["roles"] = [_clean(role) for role in sorted(event.roles)]
    for name in _FROM_OUTSIDE:
        text = fields[name]
        if text is not None and not (len(text) <= MAX_FIELD_LENGTH and text.isprintable()):
            fields[name] = _clean(text)
    return fields


def _clean(text: str) -> str:
    if len(text) > MAX_FIELD_LENGTH:
        text = f"{text[:MAX_FIELD_LENGTH]}..."
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")
