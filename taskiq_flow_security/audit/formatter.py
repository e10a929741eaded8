"""Audit records as text."""

from __future__ import annotations

import logging

from pydantic_core import to_json

from taskiq_flow_security.audit.fields import FIELDS


class AuditFormatter(logging.Formatter):
    """One JSON object a line, with the fields that the event has. For any handler of the audit logger."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without a line break."""
        attributes = record.__dict__
        return to_json({name: value for name in FIELDS if (value := attributes.get(name))}).decode()
