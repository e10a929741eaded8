"""Events as records of a logger of `logging`, by way of structlog."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import structlog
from structlog.testing import LogCapture
from structlog.typing import EventDict, Processor


class Records(structlog.BoundLoggerBase):
    """A logger of structlog's whose last step is a record: its message is the event, its attributes are the fields."""

    @classmethod
    def of(cls, logger: logging.Logger, processors: Iterable[Processor]) -> Records:
        """What logs to `logger`, through these processors."""
        bound: Records = structlog.wrap_logger(
            logger, processors=[*processors, _capture], wrapper_class=cls, context_class=dict
        ).bind()
        return bound

    def log(self, level: int, fields: dict[str, Any]) -> None:
        """Log an event, unless a processor drops it. What a last processor renders is the message."""
        logger: logging.Logger = self._logger
        event: str = fields["event"]
        try:
            rendered, attributes = self._process_event(logging.getLevelName(level).lower(), event, fields)
        except structlog.DropEvent:
            return
        # Not through `Logger.info(extra=...)`, which looks for a caller to blame, and takes longer.
        record = logger.makeRecord(logger.name, level, __file__, 0, rendered[0] if rendered else event, (), None)
        record.__dict__.update(attributes)
        logger.handle(record)


def _capture(logger: Any, method: str, fields: EventDict) -> EventDict:
    """Leave the event to `structlog.testing.capture_logs`, which puts itself in the place of what is configured."""
    for processor in structlog.get_config()["processors"]:
        if isinstance(processor, LogCapture):
            processor(logger, method, fields)
    return fields
