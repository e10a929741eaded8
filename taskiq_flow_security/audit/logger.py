"""Where every decision is recorded."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Protocol

from structlog.typing import Processor

from taskiq_flow_security.audit.fields import fields_of
from taskiq_flow_security.audit.records import Records
from taskiq_flow_security.core.events import AuditEvent, Outcome

_logger = logging.getLogger(__name__)

LOGGER_NAME = "taskiq_flow.audit"

_DENY = Outcome.DENY
_LEVELS = {Outcome.ALLOW: logging.INFO, Outcome.DENY: logging.WARNING}


class AuditSink(Protocol):
    """What events can be written to, beside the logger."""

    def write(self, event: AuditEvent) -> None:
        """Take an event. Called from any thread, and while a task or a request waits."""

    def flush(self) -> None:
        """Write what it may still hold; the process is about to end."""


class AuditLogger:
    """Writes each event to the logger ``taskiq_flow.audit``: allowed at INFO, denied at WARNING; and to all `sinks`.

    The record's message is the name of the event, its fields are attributes of the record, so that any handler,
    formatter or shipper can take them from there. `processors` are structlog's: each gets the fields and returns them,
    with more of them, with less, or raises `structlog.DropEvent`; a last one may render them, which is the message
    then. Sinks get the event as it is. `structlog.testing.capture_logs` captures what would be logged. A level that was
    not set is set to INFO, or nothing allowed would ever be recorded.
    """

    def __init__(
        self, logger_name: str = LOGGER_NAME, processors: Iterable[Processor] = (), sinks: Iterable[AuditSink] = ()
    ) -> None:
        self._logger = logging.getLogger(logger_name)
        self._records = Records.of(self._logger, processors)
        self._sinks = tuple(sinks)
        if self._logger.level == logging.NOTSET:
            self._logger.setLevel(logging.INFO)

    def records(self, outcome: Outcome) -> bool:
        """Whether events of this outcome go anywhere; if not, none needs to be made."""
        return self._sinks != () or self._logs(outcome)

    def record(self, event: AuditEvent) -> None:
        """Record one decision."""
        for sink in self._sinks:
            sink.write(event)
        if self._logs(event.outcome):
            self._records.log(_LEVELS[event.outcome], fields_of(event))

    def flush(self) -> None:
        """Have all sinks write what they may still hold."""
        for sink in self._sinks:
            sink.flush()

    def _logs(self, outcome: Outcome) -> bool:
        logger = self._logger
        if logger.disabled:
            # `logging.config` disables the loggers that it is not told of, by default. This one has a level to be set.
            logger.disabled = False
            _logger.warning("The audit logger %s had been disabled, and is enabled again.", logger.name)
        # What is denied goes to logging's handler of last resort, where there is no other.
        return (outcome is _DENY or logger.hasHandlers()) and logger.isEnabledFor(_LEVELS[outcome])
