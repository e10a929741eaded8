"""Random identifiers, drawn many at a time: to ask the system for each takes longer than all that is done with it."""

from __future__ import annotations

import os

_BYTES = 12
_AT_A_TIME = 256

_unused: list[str] = []

if hasattr(os, "register_at_fork"):  # not on Windows, where nothing is forked
    os.register_at_fork(after_in_child=_unused.clear)  # or parent and child would give out the same ones


def new_id() -> str:
    """A random identifier that nobody has had: 96 bits in hexadecimal."""
    try:
        return _unused.pop()  # one call, so that no two threads get the same
    except IndexError:
        drawn = os.urandom(_BYTES * _AT_A_TIME).hex()
        length = 2 * _BYTES
        _unused.extend(drawn[start : start + length] for start in range(length, len(drawn), length))
        return drawn[:length]
