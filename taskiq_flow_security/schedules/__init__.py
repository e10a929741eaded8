"""Schedules that carry a grant: who may run what, when, until when, and nothing else."""

from taskiq_flow_security.schedules.source import ProtectedSchedules

__all__ = ["ProtectedSchedules"]
