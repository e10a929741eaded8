"""What is recorded of each decision."""

from __future__ import annotations

from typing import NamedTuple

from taskiq_flow_security.core.string_enum import StringEnum


class EventName(StringEnum):
    """Names of audit events: OWASP's logging vocabulary where it has one, else our own."""

    AUTHN_LOGIN_SUCCESS = "authn_login_success"
    AUTHN_LOGIN_FAIL = "authn_login_fail"
    AUTHN_TOKEN_REVOKED = "authn_token_revoked"  # noqa: S105 (the name of an event)
    AUTHZ_ALLOW = "authz_allow"
    AUTHZ_CHANGE = "authz_change"
    AUTHZ_FAIL = "authz_fail"
    AUTHZ_SHADOW_FAIL = "authz_shadow_fail"
    EXCESS_RATE_LIMIT_EXCEEDED = "excess_rate_limit_exceeded"
    INPUT_VALIDATION_FAIL = "input_validation_fail"
    KEY_ROTATED = "key_rotated"
    RESULT_SHADOW_DENY = "result_shadow_deny"
    RESULT_SIGNATURE_FAIL = "result_signature_fail"
    SCHEDULE_CREATED = "schedule_created"
    SCHEDULE_FIRED = "schedule_fired"
    SYS_STARTUP = "sys_startup"
    TASK_ENQUEUED = "task_enqueued"
    TASK_DELEGATED = "task_delegated"
    TASK_AUTHZ_ALLOW = "task_authz_allow"
    TASK_AUTHZ_DENY = "task_authz_deny"
    TASK_AUTHZ_SHADOW_DENY = "task_authz_shadow_deny"
    TASK_REPLAY = "task_replay"
    TASK_SIGNATURE_FAIL = "task_signature_fail"
    TASK_TOKEN_EXPIRED = "task_token_expired"  # noqa: S105 (the name of an event)


class Outcome(StringEnum):
    """How a decision fell."""

    ALLOW = "allow"
    DENY = "deny"


class AuditEvent(NamedTuple):
    """One decision. Holds names and identifiers only, never a key, a token or an argument."""

    event: EventName
    time: float
    """Seconds since the epoch."""
    outcome: Outcome
    reason: str | None = None
    rule: str | None = None
    policy_hash: str | None = None
    """Names the version of the policy that decided."""
    sub: str | None = None
    act: str | None = None
    roles: frozenset[str] = frozenset()
    pipeline: str | None = None
    permission: str | None = None
    task: str | None = None
    task_id: str | None = None
    txn: str | None = None
    jti: str | None = None
    key_id: str | None = None
    """The key or API key that proved it, by its id."""
    ip: str | None = None
    change: str | None = None
    """What was changed, from what to what."""
