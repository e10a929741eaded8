"""The sending side, at the kick: decides whether its caller may make it."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from taskiq.abc.broker import AsyncBroker
from taskiq.message import TaskiqMessage

from taskiq_flow_security import acting
from taskiq_flow_security.acting import Acting
from taskiq_flow_security.broker import kicks, refusal
from taskiq_flow_security.broker.access_requests import access_denied, access_request
from taskiq_flow_security.broker.clearances import Clearances
from taskiq_flow_security.broker.kick_labels import check_credentials, name_pipeline, time_to_live
from taskiq_flow_security.broker.kick_limits import KickLimits, What
from taskiq_flow_security.broker.kicks import Kick
from taskiq_flow_security.broker.task_events import record_denied
from taskiq_flow_security.broker.wire import SCHEDULE_LABEL
from taskiq_flow_security.core.reasons import Reason
from taskiq_flow_security.denial import denial_of
from taskiq_flow_security.errors import (
    AccessDeniedError,
    AuthenticationError,
    BackendUnavailableError,
    FlowSecurityError,
    RateLimitExceededError,
    UnsignableMessageError,
)
from taskiq_flow_security.security import FlowSecurity
from taskiq_flow_security.tokens.message_signature import Denial
from taskiq_flow_security.tokens.principal_token import PRINCIPAL_LABEL

_logger = logging.getLogger(__name__)


class KickDecider:
    """Decides about the kicks that one broker sends."""

    def __init__(self, security: FlowSecurity, broker: AsyncBroker) -> None:
        self._security = security
        self._broker = broker
        self._limits = KickLimits(security)
        self._clearances = Clearances(security, broker)
        self._queue_ttl = security.config.queue_ttl
        self._principal_ttl = security.config.principal_ttl
        self._max_depth = security.config.max_delegation_depth

    def begin(self, message: TaskiqMessage) -> Kick:
        """The kick of a message that its caller wants to send, to be decided about unless it is cleared already."""
        kick = Kick.begin(self, message, message.labels.get(PRINCIPAL_LABEL))
        try:
            self._clearances.cover(kick)
        except Exception as error:  # noqa: BLE001 (middlewares may have put anything there)
            _logger.debug("A kick is decided about by itself: it cannot be compared (%s).", type(error).__name__)
        return kick

    async def authorize(self, kick: Kick) -> None:
        """Decide whether the caller may make a kick, or raise a `FlowSecurityError` in the caller."""
        message = kick.message
        await self._security.live.catch_up()
        try:
            self.decide(kick)
            if self.counts(kick):
                await self.count(kick)
        except Exception as error:  # noqa: BLE001 (whatever it is, the kick is denied)
            denial = denial_of(error, _logger, "A kick")
        else:
            return
        self.record_denied(kick, denial)
        kick.recorded = True
        if self._security.monitoring:
            kick.counted = kick.counted or isinstance(denial, RateLimitExceededError)  # or a worker records it again
            return
        if not kick.by_hook:
            kicks.give_up()
            acting.fired(message.labels.get(SCHEDULE_LABEL))
            raise denial
        # An exception would keep the receiver from acking (`on_error`) or only be logged (`post_save`), and somebody
        # would wait for ever. So the message is sent for the worker that gets it to refuse.
        if self._can_be_signed(kick, denial):
            retry_after = denial.retry_after if isinstance(denial, RateLimitExceededError) else None
            kick.denied = Denial(denial.reason, retry_after)
        else:  # nobody can sign for it
            kick.withheld = True
            if kick.delivery is None or kick.delivery.refusal is None:
                await refusal.answer(self._broker, message.task_id, denial)

    def decide(self, kick: Kick) -> None:
        """Decide about a kick, or raise a `FlowSecurityError`. Nothing is recorded or counted."""
        security, message = self._security, kick.message
        task, in_force = self._broker.find_task(message.task_name), security.live.in_force
        labels = message.labels.copy()
        check_credentials(message, task)
        if not message.task_id.isprintable():
            raise UnsignableMessageError("The task's id must be printable text; let TaskIQ make it.")
        actor = kick.actor = self.actor_of(kick)
        kick.counted = kick.counted or actor.counted
        made_for = None if actor.schedule is not None else kick.pipeline(actor)  # what was stored names it
        name_pipeline(message, made_for, task)
        kick.request = request = access_request(message, task)
        kick.decision = decision = security.authorization.decide(actor.principal, request)
        if not decision.allowed:
            if decision.reason is Reason.POLICY_STALE:
                if kick.by_hook:
                    return  # a worker decides about it when it can
                raise BackendUnavailableError("Nobody can tell now what the policy is; try again later.")
            raise access_denied(actor.principal, request, decision)
        if actor.actors and len(kick.actors(actor)) > self._max_depth:
            raise AccessDeniedError(
                Reason.DELEGATION_DEPTH, "Too many tasks have kicked one another; see max_delegation_depth."
            )
        # What keeps it from being signed, while that can be said in the caller.
        now = security.clock()
        expires_at = self.expires_at(kick, actor, now)
        kick.token = security.issuer.token_for(actor, now, expires_at)
        security.messages.signer(now, expires_at, fires=actor.schedule is not None)
        security.messages.check_fits(kick.delegation(actor, kick.token))
        self._clearances.remember(kick, task, labels, expires_at - now, in_force)

    def counts(self, kick: Kick) -> bool:
        """Whether a kick that was decided about has to be counted, unless a worker decides about it."""
        assert kick.request is not None  # it was decided about
        assert kick.decision is not None
        return kick.decision.allowed and not kick.counted and self._limits.apply_to(kick.request)

    async def count(self, kick: Kick, what: What = "kick") -> None:
        """Count a kick, or the schedule that stands for it. Raises as `KickLimits.count`."""
        assert kick.actor is not None  # it was decided about
        assert kick.request is not None
        try:
            await self._limits.count(kick.actor.principal, kick.request, by_hook=kick.by_hook, what=what)
            kick.counted = kick.request.guard is not None and kick.request.guard.rate_limit is not None
        except BackendUnavailableError as error:
            if not self._security.config.unsafe_allow_uncounted:
                raise
            self.record_denied(kick, error, shadow=True)

    def expires_at(self, kick: Kick, actor: Acting, now: float) -> float:
        """When the message is too old to run. Raises `UnsignableMessageError` for labels that do not say so."""
        return kick.expires_at(time_to_live(kick.message.labels, self._queue_ttl, self._principal_ttl), actor, now)

    def actor_of(self, kick: Kick) -> Acting:
        """Who kicks: the principal that the message was given explicitly, else the one that acts here.

        Raises `AuthenticationError` where that is nobody.
        """
        given, labels = kick.given, kick.message.labels
        if SCHEDULE_LABEL in labels:
            actor = acting.firing(labels[SCHEDULE_LABEL])
            if actor is not None and actor.owner is self._security:
                return actor  # whose grant has been verified; the labels are those that were stored with it
        actor = self._security.actor()
        if actor is not None and given is not None and actor.received and actor.token and given == actor.token.text:
            given = None  # it is whoever acts here anyway
        if given is not None:
            token = self._security.issuer.verify(given, self._security.clock())
            if token.schedule is not None or SCHEDULE_LABEL in labels:
                raise AuthenticationError(
                    Reason.UNSIGNED,
                    "A principal that lies in a store proves nothing; wrap the schedule source in ProtectedSchedules.",
                )
            pipeline, actors = (None, ()) if actor is None else (actor.pipeline, actor.actors)
            return Acting(token.principal, token.txn, self._security, pipeline, token, actors, received=True)
        if actor is None:
            raise AuthenticationError(Reason.NO_PRINCIPAL, _who_is_missing(labels))
        return actor

    def record_denied(self, kick: Kick, error: FlowSecurityError, *, shadow: bool = False) -> None:
        """Record that a kick was denied or, if it is only a `shadow`, should have been."""
        actor = kick.actor
        record_denied(
            self._security,
            kick.message,
            error,
            principal=None if actor is None else actor.principal,
            txn=None if actor is None else actor.txn,
            actors=() if actor is None else kick.actors(actor),
            request=kick.request,
            decision=kick.decision,
            shadow=shadow,
        )

    def _can_be_signed(self, kick: Kick, denial: FlowSecurityError) -> bool:
        """Whether a message that is denied can be sent for a worker to refuse."""
        if kick.actor is None or isinstance(denial, UnsignableMessageError):
            return False
        now = self._security.clock()
        try:
            if kick.actor.token is None:
                self._security.issuer.token_for(kick.actor, now, now)
            self._security.messages.signer(now, now, fires=kick.actor.schedule is not None)
        except AuthenticationError:
            return False
        return True


def _who_is_missing(labels: Mapping[str, object]) -> str:
    """What whoever kicks this for nobody is to do."""
    if SCHEDULE_LABEL in labels:
        return (
            "Nobody has granted this schedule; wrap its source in ProtectedSchedules, with a service for the schedules "
            "that stand in code."
        )
    if acting.current() is not None:
        return (
            "Nobody asks for this task: who acts here does so for another FlowSecurity; make one for the process, and "
            "give it to all middlewares."
        )
    return (
        "Nobody asks for this task; kick it inside `with security.acting_as(principal):`, or with the labels of "
        "security.labels_for(principal)."
    )
