"""Events for these tests."""

from __future__ import annotations

from typing import Any

from taskiq_flow_security.core.events import AuditEvent, EventName, Outcome

_ALLOWED = AuditEvent(
    event=EventName.TASK_AUTHZ_ALLOW,
    time=1_795_537_998.25,
    outcome=Outcome.ALLOW,
    reason="acl",
    sub="alice",
    roles=frozenset({"viewer", "processor"}),
    task_id="1",
)


def allowed(**changes: Any) -> AuditEvent:
    return _ALLOWED._replace(**changes)


def denied(**changes: Any) -> AuditEvent:
    return _ALLOWED._replace(event=EventName.TASK_AUTHZ_DENY, outcome=Outcome.DENY)._replace(**changes)
