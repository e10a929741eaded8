"""The receiving side, once a message is verified: decides by this process's own policy, before anything runs."""

from __future__ import annotations

import asyncio
import logging
from itertools import chain, repeat

from taskiq.abc.broker import AsyncBroker
from taskiq.acks import parse_acknowledge_type
from taskiq.message import TaskiqMessage

from taskiq_flow_security import acting
from taskiq_flow_security.acting import Acting
from taskiq_flow_security.broker import delivery as deliveries
from taskiq_flow_security.broker import refusal
from taskiq_flow_security.broker.access_requests import access_denied, access_request
from taskiq_flow_security.broker.admissions import Admissions
from taskiq_flow_security.broker.arrivals import ended_within
from taskiq_flow_security.broker.delivery import Delivery
from taskiq_flow_security.broker.kick_limits import KickLimits
from taskiq_flow_security.broker.replays import Replays
from taskiq_flow_security.broker.task_events import record_arrival_allowed, record_arrival_denied
from taskiq_flow_security.broker.verifier import Verifier
from taskiq_flow_security.broker.wire import PIPELINE_LABEL
from taskiq_flow_security.core.policy import AccessRequest
from taskiq_flow_security.core.principal import ANONYMOUS
from taskiq_flow_security.core.reasons import Reason
from taskiq_flow_security.denial import denial_of, internal_error
from taskiq_flow_security.errors import (
    AccessDeniedError,
    AuthenticationError,
    BackendUnavailableError,
    FlowSecurityError,
    RateLimitExceededError,
)
from taskiq_flow_security.ids import new_id
from taskiq_flow_security.security import FlowSecurity
from taskiq_flow_security.tokens.message_signature import NOT_DELEGATED, Denial

_logger = logging.getLogger(__name__)

_PAUSES = (0.1, 0.2, 0.5, 1.0)
"""Seconds between two attempts to decide while what a decision needs is away; the last goes on and on."""


class ArrivalDecider:
    """Decides about the verified messages that one broker receives."""

    def __init__(self, security: FlowSecurity, broker: AsyncBroker, verifier: Verifier, replays: Replays) -> None:
        self._security = security
        self._broker = broker
        self._verifier = verifier
        self._replays = replays
        self._limits = KickLimits(security)
        self._admissions = Admissions(security)
        self._leeway = security.config.clock_leeway
        self._max_depth = security.config.max_delegation_depth
        self._monitoring = security.monitoring
        self._limits_runs = security.config.rate_limits_on_workers

    def receive(self, message: TaskiqMessage) -> Delivery:
        """What is known of a message that is to be decided about."""
        delivery = deliveries.current.get()
        if delivery is None or delivery.decided or not delivery.is_of(message):
            return self._verifier.open_late(message)
        return delivery

    def admit_at_once(self, message: TaskiqMessage, delivery: Delivery) -> bool:
        """Let the message run, and act as its principal, if it may like the one before it, and there is nothing to ask
        others nor to count. Where that is not so, `admit` has to follow.
        """
        signature = delivery.signature
        if signature is None or delivery.error is not None or self._limits_runs:
            return False
        try:
            if not (self._replays.is_new(signature) and self._admissions.cover(message, delivery)):
                return False
            record_arrival_allowed(self._security, message, delivery)
        except BackendUnavailableError:
            raise  # by a sink of the audit log; so that it is not acked
        except Exception as error:  # noqa: BLE001 (whatever it is, the message is refused)
            self._fail(message, delivery, error)
            return False
        self._let_run(message, delivery)
        return True

    async def admit(self, message: TaskiqMessage, delivery: Delivery) -> None:
        """Decide whether the message may run, and act as its principal if so.

        Where the delivery was not admitted, `refuse` has to follow. Where nobody can tell, it waits, and so does the
        message at its broker. Raises `BackendUnavailableError`, so that it is not acked, where the worker ends
        meanwhile.
        """
        await self._security.live.catch_up()
        if delivery.token is not None and delivery.signature is not None and delivery.error is None:
            try:
                delivery.error = await self._decide(message, delivery)
            except BackendUnavailableError:
                raise  # so that it is not acked
            except Exception as error:  # noqa: BLE001 (whatever it is, the message is refused)
                self._fail(message, delivery, error)
        if self._monitoring and not _knows_ack_type(message):
            del message.labels["ack_type"]
        if delivery.error is None or self._monitoring:
            self._let_run(message, delivery)

    async def refuse(self, message: TaskiqMessage, delivery: Delivery) -> None:
        """Make the receiver refuse a message that was not admitted."""
        acting.become(None)
        if not delivery.keep_result:
            delivery.keep_result = await refusal.result_exists(self._broker, message.task_id)
        if delivery.keep_result:
            # A copy of a message that was answered before: its labels must not lead anybody to other results.
            refusal.empty(message)
        refusal.refuse(message, delivery, delivery.error or internal_error())

    def _fail(self, message: TaskiqMessage, delivery: Delivery, error: Exception) -> None:
        """Deny a message about which it cannot be decided because of this error."""
        delivery.error = denial_of(error, _logger, "A message")
        record_arrival_denied(self._security, message, delivery, delivery.error)

    async def _decide(self, message: TaskiqMessage, delivery: Delivery) -> FlowSecurityError | None:
        """Why the message may not run, recorded; or ``None``, recorded too."""
        error = await self._attempt(message, delivery)
        if isinstance(error, BackendUnavailableError):
            record_arrival_denied(self._security, message, delivery, error)
            error = await self._attempt_again(message, delivery, error)
            if isinstance(error, BackendUnavailableError):
                return error
        if error is None:
            record_arrival_allowed(self._security, message, delivery)
        else:
            record_arrival_denied(self._security, message, delivery, error)
        return error

    async def _attempt(self, message: TaskiqMessage, delivery: Delivery) -> FlowSecurityError | None:
        """Why the message may not run; ``None`` if it may. A `BackendUnavailableError` where nobody can tell now."""
        try:
            await self._replays.check(message, delivery)
            request = self._decide_now(message, delivery)
            if not delivery.counted and (self._limits_runs or request.guard is not None):
                await self._count(message, delivery, request)
            if request.guard is not None and request.guard.at_most_once:
                await self._replays.claim(delivery)  # last, so that nothing claimed waits or is denied
        except (AccessDeniedError, AuthenticationError, RateLimitExceededError, BackendUnavailableError) as error:
            return error
        return None

    async def _attempt_again(
        self, message: TaskiqMessage, delivery: Delivery, error: FlowSecurityError | None
    ) -> FlowSecurityError | None:
        """As `_attempt`, until somebody can tell, or the message is too old, or the worker ends.

        Raises `BackendUnavailableError` for one that its broker keeps, so that it is not acked when the worker ends.
        """
        if self._monitoring or delivery.ended is None:
            return error
        pauses = chain(_PAUSES, repeat(_PAUSES[-1]))
        while isinstance(error, BackendUnavailableError):
            if await ended_within(next(pauses), delivery.ended):
                if not delivery.kept:
                    break
                raise BackendUnavailableError(
                    f"{error} The worker ends without acking the message, so that its broker delivers it again."
                )
            try:
                delivery.check_times(self._security.clock(), self._leeway)
            except AuthenticationError as too_late:
                return too_late
            error = await self._attempt(message, delivery)
        return error

    def _decide_now(self, message: TaskiqMessage, delivery: Delivery) -> AccessRequest:
        """What is asked and allowed.

        Raises `AccessDeniedError` for what may not run, and `BackendUnavailableError` where nobody can tell now.
        """
        if self._admissions.cover(message, delivery):
            assert delivery.request is not None  # it is that of the answer
            return delivery.request
        in_force = self._security.live.in_force  # before it is decided: it may be replaced meanwhile
        request = self._decide_anew(message, delivery)
        delivery.actor = self._actor_of(message, delivery)
        self._admissions.remember(message, delivery, in_force)
        return request

    def _decide_anew(self, message: TaskiqMessage, delivery: Delivery) -> AccessRequest:
        """As `_decide_now`, whatever was decided before."""
        security, token = self._security, delivery.token
        signature, principal = delivery.signature, delivery.principal
        assert token is not None  # it was verified
        assert signature is not None
        assert principal is not None
        if signature.denied is not None:
            raise _denied_by_sender(signature.denied)
        if len(signature.delegation.actors) > self._max_depth:
            raise AccessDeniedError(Reason.DELEGATION_DEPTH, "Too many tasks have kicked one another.")
        if not _knows_ack_type(message):
            raise AccessDeniedError(Reason.INVALID_LABEL, "The label ack_type is not one that TaskIQ knows.")
        if security.live.in_force.revocations is not None:
            for jti, issued_at in ((token.jti, token.issued_at), (signature.jti, signature.issued_at)):
                if (rule := security.authorization.revoked(jti, issued_at)) is not None:
                    raise AccessDeniedError(Reason.REVOKED, f"The message or its principal has been revoked ({rule}).")
        request = delivery.request = access_request(message, delivery.task)
        decision = delivery.decision = security.authorization.decide(principal, request)
        if not decision.allowed:
            if decision.reason is Reason.POLICY_STALE:
                raise BackendUnavailableError("Nobody can tell now what the policy is.")
            raise access_denied(principal, request, decision)
        return request

    async def _count(self, message: TaskiqMessage, delivery: Delivery, request: AccessRequest) -> None:
        """Count a message against the limits of workers or, if its sender could not, of its guard.

        Raises `RateLimitExceededError`, and `BackendUnavailableError` where nobody can tell now.
        """
        assert delivery.principal is not None  # it was verified
        assert delivery.signature is not None
        try:
            if self._limits_runs:
                await self._limits.count_run(delivery.principal, request)
            elif not delivery.signature.counted:
                await self._limits.count_guarded(delivery.principal, request)
        except BackendUnavailableError as error:
            if not self._security.config.unsafe_allow_uncounted:
                raise
            record_arrival_denied(self._security, message, delivery, error, shadow=True)
        delivery.counted = True

    def _let_run(self, message: TaskiqMessage, delivery: Delivery) -> None:
        delivery.admitted = delivery.principal or ANONYMOUS
        delivery.handler = asyncio.current_task()
        acting.become(delivery.actor or self._actor_of(message, delivery))

    def _actor_of(self, message: TaskiqMessage, delivery: Delivery) -> Acting:
        """In whose name a message runs."""
        token, signature = delivery.token, delivery.signature
        delegation = NOT_DELEGATED if signature is None else signature.delegation
        pipeline = delegation.pipeline
        if pipeline is None and (delivery.task is None or delivery.task.labels.get(PIPELINE_LABEL) is None):
            pipeline = message.labels.get(PIPELINE_LABEL)
        return Acting(
            delivery.principal or ANONYMOUS,
            new_id() if token is None else token.txn,
            self._security,
            pipeline,
            token,
            delegation.actors,
            received=token is not None,
        )


def _denied_by_sender(denial: Denial) -> FlowSecurityError:
    if denial.retry_after is not None:
        return RateLimitExceededError(
            denial.retry_after, "The process that wanted to kick this task has done so too often."
        )
    return AccessDeniedError(denial.reason, "The process that wanted to kick this task may not.")


def _knows_ack_type(message: TaskiqMessage) -> bool:
    """Whether TaskIQ knows this label. Where not, its receiver (0.13) raises outside of any ``try`` and never acks."""
    ack_type = message.labels.get("ack_type")
    try:
        return ack_type is None or bool(parse_acknowledge_type(ack_type))
    except ValueError:
        return False
