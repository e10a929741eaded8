"""Processes without services."""

from tests.integration.inmemory.fixtures import audit, clock, new_process, process

__all__ = ["audit", "clock", "new_process", "process"]
