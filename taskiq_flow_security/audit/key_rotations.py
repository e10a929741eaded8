"""Which key signs, and when that becomes another one."""

from __future__ import annotations

from collections.abc import Callable

from taskiq_flow_security.audit.logger import AuditLogger
from taskiq_flow_security.core.events import AuditEvent, EventName, Outcome


class KeyRotations:
    """Records each time that another key begins to sign, for each use of keys by itself."""

    def __init__(self, audit: AuditLogger, clock: Callable[[], float]) -> None:
        self._audit = audit
        self._clock = clock
        self._signed_with: dict[str, str] = {}

    def signed_with(self, use: str, kid: str) -> None:
        """Note which key has signed, and record it where that is another one than before."""
        before = self._signed_with.get(use)
        if before == kid:
            return
        self._signed_with[use] = kid
        if before is not None:
            self._audit.record(
                AuditEvent(
                    event=EventName.KEY_ROTATED,
                    time=self._clock(),
                    outcome=Outcome.ALLOW,
                    rule=use,
                    key_id=kid,
                    change=f"{before} -> {kid}",
                )
            )
