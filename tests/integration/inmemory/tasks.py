"""Task functions that a process pool can import."""

from __future__ import annotations

import os
from pathlib import Path

from taskiq import TaskiqDepends

from taskiq_flow_security import Principal, current_principal, guard


def _leave(mark: str) -> None:
    Path(mark).touch()


async def in_the_loop(mark: str) -> str:
    """Leave a mark."""
    _leave(mark)
    return mark


def in_an_executor(mark: str) -> str:
    """Leave a mark."""
    _leave(mark)
    return mark


@guard(roles=["processor"])
async def guarded_in_the_loop(mark: str) -> str:
    """Leave a mark."""
    _leave(mark)
    return mark


@guard(roles=["processor"])
def guarded_in_an_executor(mark: str) -> str:
    """Leave a mark."""
    _leave(mark)
    return mark


def told_who_asks(caller: Principal = TaskiqDepends(current_principal)) -> tuple[str, int]:
    """Who asks, and in which process."""
    return caller.subject, os.getpid()


@guard()
def guarded_and_asks() -> tuple[str, int]:
    """Who asks, and in which process."""
    return current_principal().subject, os.getpid()


def asks() -> str:
    """Who asks."""
    return current_principal().subject


async def asks_in_the_loop(caller: Principal = TaskiqDepends(current_principal)) -> tuple[str, str]:
    """Who asks, found out in both ways."""
    return caller.subject, current_principal().subject
