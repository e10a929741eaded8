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

FIELDS = tuple(AuditEvent.__dataclass_fields__)
"""The attributes that an audit record has beyond those of every `logging.LogRecord`."""

MAX_FIELD_LENGTH = 256
"""Names and ids in an event can come from a forged message; they are cut off here and control characters escaped."""


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

    def record(self, event: AuditEvent) -> None:
        """Record one decision."""
        level = logging.INFO if event.outcome is Outcome.ALLOW else logging.WARNING
        if self._logger.isEnabledFor(level):
            self._structlog.log(level, str(event.event), audit=event)


def _render(
    _logger: WrappedLogger, _method: str, event_dict: EventDict
) -> MutableMapping[str, Any]:
    """The structlog processor that turns an event into the keyword arguments of a `logging` call."""
    event: AuditEvent = event_dict["audit"]
    fields: dict[str, Any] = {}
    for name in FIELDS:
        value = getattr(event, name)
        fields[name] = _clean(value) if type(value) is str else value
    fields["time"] = datetime.fromtimestamp(event.time, timezone.utc).isoformat(
        timespec="microseconds"
    )
    fields["event"] = str(event.event)
    fields["outcome"] = str(event.outcome)
    fields["roles"] = [_clean(role) for role in sorted(event.roles)]
    return {"msg": event_dict["event"], "extra": fields}


def _clean(text: str) -> str:
    if len(text) > MAX_FIELD_LENGTH:
        text = f"{text[:MAX_FIELD_LENGTH]}..."
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")
