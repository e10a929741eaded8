"""Where decisions are recorded."""

from taskiq_flow_security.audit.file import AuditFile
from taskiq_flow_security.audit.formatter import AuditFormatter
from taskiq_flow_security.audit.key_rotations import KeyRotations
from taskiq_flow_security.audit.logger import AuditLogger, AuditSink

__all__ = ["AuditFile", "AuditFormatter", "AuditLogger", "AuditSink", "KeyRotations"]
