"""Enumerations of strings."""

from __future__ import annotations

from enum import Enum


class StringEnum(str, Enum):
    """What `enum.StrEnum` is from Python 3.11 on: a member prints as its value.

    Before Python 3.12 each ``Name.MEMBER`` runs a function: one that every message asks for is bound to a name.
    """

    # It equals its value, so it must be found by it; and `Enum`'s own hash is made in Python.
    __hash__ = str.__hash__

    __str__ = str.__str__

    def __format__(self, format_spec: str) -> str:
        return str.__format__(self, format_spec)
