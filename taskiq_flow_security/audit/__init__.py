"""Where decisions are recorded."""

from taskiq_flow_security.audit.formatter import AuditFormatter
from taskiq_flow_security.audit.logger import AuditLogger

__all__ = ["AuditFormatter", "AuditLogger"]
