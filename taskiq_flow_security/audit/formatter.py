"""Audit records as text."""

from __future__ import annotations

import logging

from pydantic_core import to_json

from taskiq_flow_security.audit.logger import FIELDS


class AuditFormatter(logging.Formatter):
    """One JSON object a line, with the fields that the event has. For any handler of the audit logger."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {name: getattr(record, name, None) for name in FIELDS}
        return to_json({name: value for name, value in fields.items() if value not in (None, [])}).decode()
