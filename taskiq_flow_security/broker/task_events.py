"""Audit events about tasks."""

from __future__ import annotations

import logging

from taskiq.message import TaskiqMessage

from taskiq_flow_security.broker.delivery import Delivery
from taskiq_flow_security.core.events import AuditEvent, EventName, Outcome
from taskiq_flow_security.core.policy import AccessRequest, Decision
from taskiq_flow_security.core.principal import Permission, Principal
from taskiq_flow_security.core.reasons import Reason
from taskiq_flow_security.errors import (
    AuthenticationError,
    FlowSecurityError,
    RateLimitExceededError,
)
from taskiq_flow_security.security import FlowSecurity
from taskiq_flow_security.tokens.message_signature import MessageSignature

_logger = logging.getLogger(__name__)

_ALLOW = Outcome.ALLOW  # before Python 3.12, to look a member up runs a function
_EXECUTE = Permission.EXECUTE
_TASK_AUTHZ_ALLOW = EventName.TASK_AUTHZ_ALLOW


def record_allowed(
    security: FlowSecurity,
    event: EventName,
    message: TaskiqMessage,
    principal: Principal,
    *,
    txn: str,
    signature: MessageSignature,
    pipeline: str | None,
    decision: Decision | None = None,
) -> None:
    """Record that a message was let through. Where that cannot be recorded, it is not let through."""
    _record(
        security,
        AuditEvent(
            event=event,
            time=security.clock(),
            outcome=_ALLOW,
            reason=None if decision is None else decision.reason,
            rule=None if decision is None else decision.rule,
            policy_hash=security.policy.hash,
            sub=principal.subject,
            roles=principal.roles,
            pipeline=pipeline,
            permission=_EXECUTE,
            task=message.task_name,
            task_id=message.task_id,
            txn=txn,
            act=_act(signature.delegation.actors),
            jti=signature.jti,
            key_id=signature.kid,
        ),
    )


def record_arrival_allowed(security: FlowSecurity, message: TaskiqMessage, delivery: Delivery) -> None:
    """As `record_allowed`, for a message that has arrived and was decided about."""
    if not security.audit.records(_ALLOW):
        return
    assert delivery.principal is not None  # or it could not be allowed
    assert delivery.token is not None
    assert delivery.signature is not None
    record_allowed(
        security,
        _TASK_AUTHZ_ALLOW,
        message,
        delivery.principal,
        txn=delivery.token.txn,
        signature=delivery.signature,
        pipeline=None if delivery.request is None else delivery.request.pipeline,
        decision=delivery.decision,
    )


def record_arrival_denied(
    security: FlowSecurity,
    message: TaskiqMessage,
    delivery: Delivery,
    error: FlowSecurityError,
    *,
    shadow: bool = False,
) -> None:
    """As `record_denied`, for a message that has arrived."""
    record_denied(
        security,
        message,
        error,
        principal=delivery.principal,
        txn=None if delivery.token is None else delivery.token.txn,
        signature=delivery.signature,
        request=delivery.request,
        decision=delivery.decision,
        shadow=shadow,
    )


def record_denied(
    security: FlowSecurity,
    message: TaskiqMessage,
    error: FlowSecurityError,
    *,
    shadow: bool = False,
    principal: Principal | None = None,
    txn: str | None = None,
    signature: MessageSignature | None = None,
    actors: tuple[str, ...] = (),
    request: AccessRequest | None = None,
    decision: Decision | None = None,
) -> None:
    """Record that a message was refused or, where refusals are only monitored, would have been.

    With `shadow` it is let through, whatever happens to others.
    """
    try:
        _record(
            security,
            AuditEvent(
                event=EventName.TASK_AUTHZ_SHADOW_DENY if shadow or security.monitoring else _denial(error),
                time=security.clock(),
                outcome=Outcome.DENY,
                reason=error.reason,
                rule=None if decision is None or decision.allowed else decision.rule,
                policy_hash=security.policy.hash,
                sub=None if principal is None else principal.subject,
                roles=frozenset() if principal is None else principal.roles,
                pipeline=None if request is None else request.pipeline,
                permission=_EXECUTE,
                task=message.task_name,
                task_id=message.task_id,
                txn=txn,
                act=_act(actors if signature is None else signature.delegation.actors),
                jti=None if signature is None else signature.jti,
                key_id=None if signature is None else signature.kid,
            ),
        )
    except Exception:
        # It stays refused; and an error raised here would be taken for the receiver's, which logs raw messages.
        _logger.exception("A refusal cannot be recorded.")


def _record(security: FlowSecurity, event: AuditEvent) -> None:
    try:
        security.audit.record(event)
    except Exception:
        if not security.monitoring:
            raise
        _logger.exception("An event cannot be recorded.")


def _act(actors: tuple[str, ...]) -> str | None:
    """The tasks through which the principal has come, the first one first."""
    return " > ".join(actors) or None


def _denial(error: FlowSecurityError) -> EventName:
    if isinstance(error, RateLimitExceededError):
        return EventName.EXCESS_RATE_LIMIT_EXCEEDED
    if error.reason == Reason.REPLAYED:
        return EventName.TASK_REPLAY
    if not isinstance(error, AuthenticationError) or error.reason == Reason.NO_PRINCIPAL:
        return EventName.TASK_AUTHZ_DENY
    if error.reason == Reason.EXPIRED:
        return EventName.TASK_TOKEN_EXPIRED
    if error.reason in (Reason.UNREADABLE, Reason.INVALID_LABEL):
        return EventName.INPUT_VALIDATION_FAIL
    return EventName.TASK_SIGNATURE_FAIL
