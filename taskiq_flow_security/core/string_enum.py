"""Enumerations of strings."""

from __future__ import annotations

from enum import Enum


class StringEnum(str, Enum):
    """What `enum.StrEnum` is from Python 3.11 on: a member prints as its value."""

    def __str__(self) -> str:
        return str(self.value)

    def __format__(self, format_spec: str) -> str:
        return format(str(self.value), format_spec)
