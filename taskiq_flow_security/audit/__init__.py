"""Where decisions are recorded."""

from taskiq_flow_security.audit.logger import AuditLogger
from taskiq_flow_security.audit.formatter import AuditFormatter

__all__ = ["AuditFormatter", "AuditLogger"]
