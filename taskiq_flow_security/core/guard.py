"""The rule that a task adds for itself, on top of the policy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from taskiq_flow_security.core.principal import Permission, Principal

Arguments = Mapping[str, Any]
"""The arguments of a call by parameter name."""

Predicate = Callable[[Principal, Arguments], bool]
"""Decides on the arguments. Anything but ``True``, an exception included, denies."""


@dataclass(frozen=True, slots=True)
class Guard:
    """What the caller of one task needs beyond the policy. Every part that is set must hold."""

    permission: Permission | None = None
    roles: frozenset[str] = frozenset()
    predicate: Predicate | None = None
    rate_limit: str | None = None
    at_most_once: bool = False
    """Whether a message that was interrupted is not to run again."""
