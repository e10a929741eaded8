"""What is stored with a schedule: the proof of who may run it, and until when."""

from __future__ import annotations

from datetime import datetime, timezone

from taskiq import ScheduledTask

from taskiq_flow_security.acting import Acting
from taskiq_flow_security.broker import delivery as deliveries
from taskiq_flow_security.broker.kicks import Kick
from taskiq_flow_security.broker.schedule_claims import schedule_claim
from taskiq_flow_security.broker.task_events import record_allowed
from taskiq_flow_security.broker.wire import PIPELINE_LABEL
from taskiq_flow_security.core.events import EventName
from taskiq_flow_security.core.reasons import Reason
from taskiq_flow_security.errors import AuthenticationError, UnsignableMessageError
from taskiq_flow_security.schedules.payload import payload_of
from taskiq_flow_security.security import FlowSecurity
from taskiq_flow_security.tokens.keys import Use
from taskiq_flow_security.tokens.message_signature import SIGNATURE_LABEL, MessageSignature
from taskiq_flow_security.tokens.principal_token import PRINCIPAL_LABEL, PrincipalToken


class Grants:
    """Makes and reads the grants of schedules."""

    def __init__(self, security: FlowSecurity) -> None:
        self._security = security

    def grant(self, schedule: ScheduledTask, kick: Kick) -> ScheduledTask:
        """The schedule as it is stored: with the labels that prove who may run it, and recorded."""
        security, actor, message = self._security, kick.actor, kick.message
        assert actor is not None  # it was decided about
        assert actor.token is not None
        now = security.clock()
        until = self._ends_at(schedule, actor, now)
        labels = without_credentials(schedule).labels
        labels.pop(PIPELINE_LABEL, None)  # which is what the kick makes of it
        if PIPELINE_LABEL in message.labels:
            labels[PIPELINE_LABEL] = message.labels[PIPELINE_LABEL]
        granted = schedule.model_copy(update={"labels": labels})
        terms = kick.delegation(actor, actor.token)
        token = self._token(granted, actor, now, until, terms.pipeline)
        granted = schedule.model_copy(update={"labels": {**labels, PRINCIPAL_LABEL: token.text}})
        text, signature = security.schedules.sign(
            payload_of(granted),
            now,
            until,
            terms,
            counted=kick.retries,
            # One id for both, so that to revoke the schedule is to revoke what it has sent, too.
            jti=None if token is actor.token else token.jti,
        )
        record_allowed(
            security,
            EventName.SCHEDULE_CREATED,
            message,
            actor.principal,
            txn=token.txn,
            signature=signature,
            pipeline=None if kick.request is None else kick.request.pipeline,
            decision=kick.decision,
        )
        return granted.model_copy(update={"labels": {**granted.labels, SIGNATURE_LABEL: text}})

    def read(self, schedule: ScheduledTask, now: float) -> tuple[MessageSignature, PrincipalToken]:
        """The grant of a schedule, whenever it is valid. Raises `AuthenticationError` where nobody has granted it."""
        security = self._security
        text = schedule.labels.get(SIGNATURE_LABEL)
        if text is None or PRINCIPAL_LABEL not in schedule.labels:
            raise AuthenticationError(
                Reason.UNSIGNED, "The schedule carries no grant; store it through ProtectedSchedules."
            )
        try:
            payload = payload_of(schedule)
        except UnsignableMessageError:
            raise AuthenticationError(Reason.MALFORMED, "The schedule holds what nobody can sign.") from None
        signature = security.schedules.read(text, payload, now)
        if signature.use is Use.FIRE:
            raise AuthenticationError(Reason.WRONG_TASK, "The key that signed this sends schedules, and makes none.")
        token = security.principals.read(schedule.labels[PRINCIPAL_LABEL], now)
        claim = schedule_claim(schedule.schedule_id, schedule, signature.delegation.pipeline)
        if token.schedule not in (None, claim) and not signature.delegation.actors:
            raise AuthenticationError(Reason.WRONG_TASK, "The principal was granted for another schedule.")
        return signature, token

    def _ends_at(self, schedule: ScheduledTask, actor: Acting, now: float) -> float:
        """When the grant of a schedule ends. Raises a `FlowSecurityError` where the schedule is due after that."""
        config, principal = self._security.config, actor.principal
        retried = _retried(schedule)
        ends = [
            now + config.schedule_ttl,
            principal.issued_until,
            principal.expires_at if principal.api_key_id is not None else None,
            None if retried is None else retried.expires_at,
        ]
        until = min(end for end in ends if end is not None)
        due = now if schedule.time is None else max(now, _timestamp(schedule.time))
        if due > until:
            if retried is not None:
                raise AuthenticationError(Reason.EXPIRED, "The retry is due when its message is too old to run.")
            raise UnsignableMessageError(
                "The schedule is due after its grant would end: once schedule_ttl is over, or the API key or the "
                "principal's label that it is made with."
            )
        return until if schedule.time is None else min(until, due + config.queue_ttl)

    def _token(
        self, schedule: ScheduledTask, actor: Acting, now: float, until: float, done_for: str | None
    ) -> PrincipalToken:
        """The principal that is stored: issued for this schedule, or passed on by the task that makes it."""
        received = actor.token if actor.received else None
        if received is not None and deliveries.current.get() is not None:
            return received
        claim = schedule_claim(schedule.schedule_id, schedule, done_for)
        try:
            return self._security.principals.issue(actor.principal, actor.txn, now, until, schedule=claim)
        except AuthenticationError as error:
            if received is None or error.reason != Reason.CANNOT_ISSUE:
                raise
            return received


def without_credentials(schedule: ScheduledTask) -> ScheduledTask:
    """A schedule as nobody has granted it."""
    credentials = (PRINCIPAL_LABEL, SIGNATURE_LABEL)
    labels = {name: value for name, value in schedule.labels.items() if name not in credentials}
    return schedule.model_copy(update={"labels": labels})


def _retried(schedule: ScheduledTask) -> MessageSignature | None:
    """What was signed of the message that a schedule is to run again, if it is made for that: a retry."""
    delivery = deliveries.current.get()
    return delivery.signature if delivery is not None and delivery.is_of(schedule) else None


def _timestamp(time: datetime) -> float:
    """When that is. A time without a zone is in UTC to TaskIQ's scheduler (0.13)."""
    return (time if time.tzinfo else time.replace(tzinfo=timezone.utc)).timestamp()
