"""One request or handshake: what is known of it so far, and how that is recorded."""

from __future__ import annotations

from dataclasses import dataclass

from taskiq_flow_security.core.events import AuditEvent, EventName, Outcome
from taskiq_flow_security.core.policy import ENDPOINT_PREFIX, Decision
from taskiq_flow_security.core.principal import Principal
from taskiq_flow_security.core.reasons import Reason
from taskiq_flow_security.http.asgi import Headers
from taskiq_flow_security.http.clients import Client
from taskiq_flow_security.http.rules import Match

UNKNOWN_ENDPOINT = "unknown"
"""The endpoint of a path that no rule knows."""


@dataclass(slots=True)
class Visit:
    """A request or a handshake, and what is known of it so far."""

    client: Client
    headers: Headers
    query: bytes
    match: Match | None
    txn: str
    principal: Principal | None = None
    decision: Decision | None = None
    error: Exception | None = None
    """What went wrong when the connection was read, if anything."""

    @property
    def endpoint(self) -> str:
        """The name of the endpoint, for limits."""
        return UNKNOWN_ENDPOINT if self.match is None else self.match.rule.endpoint

    @property
    def grounds(self) -> Reason:
        """Why it is allowed, if it is."""
        return Reason.AUTHENTICATED if self.decision is None else self.decision.reason

    def event(self, name: EventName, time: float, outcome: Outcome, reason: str, policy_hash: str) -> AuditEvent:
        """What is recorded of it, with all that is known."""
        principal, match, decision = self.principal, self.match, self.decision
        if principal is None:
            sub, roles, key_id = None, frozenset[str](), None
        else:
            sub, roles, key_id = principal.subject, principal.roles, principal.api_key_id
        if match is None:
            pipeline, permission, task = None, None, f"{ENDPOINT_PREFIX}{UNKNOWN_ENDPOINT}"
        else:
            pipeline, permission, task = match.pipeline, match.rule.permission, match.task
        rule = None if decision is None else decision.rule
        txn, ip = self.txn, self.client.address
        act = task_id = jti = None
        # In the order of the fields: by their names, it would take twice as long.
        return AuditEvent(
            name,
            time,
            outcome,
            reason,
            rule,
            policy_hash,
            sub,
            act,
            roles,
            pipeline,
            permission,
            task,
            task_id,
            txn,
            jti,
            key_id,
            ip,
        )
