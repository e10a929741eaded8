"""The sending side: decides at the kick, signs at the last moment."""

from __future__ import annotations

import logging

from taskiq.abc.broker import AsyncBroker
from taskiq.abc.formatter import TaskiqFormatter
from taskiq.message import BrokerMessage, TaskiqMessage

from taskiq_flow_security import acting
from taskiq_flow_security.acting import Acting
from taskiq_flow_security.broker import kicks, refusal, run_events, signed_json, wire
from taskiq_flow_security.broker.access_requests import access_denied, access_request
from taskiq_flow_security.broker.fidelity import Fidelity
from taskiq_flow_security.broker.kick_labels import check_credentials, name_pipeline, time_to_live
from taskiq_flow_security.broker.kick_limits import KickLimits, What
from taskiq_flow_security.broker.kicks import Kick
from taskiq_flow_security.broker.task_events import record_allowed, record_denied
from taskiq_flow_security.broker.wire import PIPELINE_LABEL, SCHEDULE_LABEL, WireMessage
from taskiq_flow_security.core.events import EventName, Outcome
from taskiq_flow_security.core.principal import UNRESTRICTED
from taskiq_flow_security.core.reasons import Reason
from taskiq_flow_security.errors import (
    AccessDeniedError,
    AuthenticationError,
    BackendUnavailableError,
    FlowSecurityError,
    RateLimitExceededError,
    UnsignableMessageError,
)
from taskiq_flow_security.security import FlowSecurity
from taskiq_flow_security.tokens.message_signature import NOT_DELEGATED, SIGNATURE_LABEL, Delegation, MessageSignature
from taskiq_flow_security.tokens.principal_token import PRINCIPAL_LABEL, PrincipalToken

_logger = logging.getLogger(__name__)


class Sender:
    """Decides about kicks and signs messages for one broker."""

    def __init__(self, security: FlowSecurity, broker: AsyncBroker, fidelity: Fidelity) -> None:
        self._security = security
        self._broker = broker
        self._fidelity = fidelity
        self._limits = KickLimits(security)
        self._queue_ttl = security.config.queue_ttl
        self._principal_ttl = security.config.principal_ttl
        self._max_depth = security.config.max_delegation_depth

    async def authorize(self, message: TaskiqMessage) -> None:
        """Decide whether the caller may kick this, or raise a `FlowSecurityError` in the caller."""
        kick = Kick.begin(self, message, message.labels.get(PRINCIPAL_LABEL))
        try:
            self.decide(kick)
            if self.counts(kick):
                await self.count(kick)
        except Exception as error:  # noqa: BLE001 (whatever it is, the kick is denied)
            denial = denial_of(error)
        else:
            return
        self.record_denied(kick, denial)
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
            kick.denied = denial.reason
        else:  # nobody can sign for it
            kick.withheld = True
            if kick.delivery is None or kick.delivery.refusal is None:
                await refusal.answer(self._broker, message.task_id, denial)

    def decide(self, kick: Kick) -> None:
        """Decide about a kick, or raise a `FlowSecurityError`. Nothing is recorded or counted."""
        security, message = self._security, kick.message
        task = self._broker.find_task(message.task_name)
        check_credentials(message, task)
        if not message.task_id.isprintable():
            raise UnsignableMessageError("The task's id must be printable text; let TaskIQ make it.")
        actor = kick.actor = self._actor_of(kick)
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
        now = security.clock()
        expires_at = self._expires_at(kick, actor, now)
        kick.token = security.issuer.token_for(actor, now, expires_at)  # while it can be said in the caller

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

    def seal(self, message: TaskiqMessage, inner: TaskiqFormatter) -> BrokerMessage | None:
        """The signed message to send for this one, which keeps no credential.

        ``None`` where it is to be left as it is: because security is off, or is only monitored and it cannot be signed,
        or because it will not be sent. Raises `UnsignableMessageError` or `AuthenticationError` otherwise.
        """
        given, _ = wire.take_credentials(message)
        if not self._security.enabled:
            return None
        kick = Kick.resume(self, message, given)
        if kick.withheld:
            return None
        try:
            return self._sign(kick, inner)
        except (UnsignableMessageError, AuthenticationError):
            if not self._security.monitoring:
                raise
            return None
        finally:
            if SCHEDULE_LABEL in message.labels:
                acting.fired(message.labels[SCHEDULE_LABEL])

    def _can_be_signed(self, kick: Kick, denial: FlowSecurityError) -> bool:
        """Whether a message that is denied can be sent for a worker to refuse."""
        if kick.actor is None or isinstance(denial, UnsignableMessageError):
            return False
        now = self._security.clock()
        try:
            return kick.actor.token is not None or self._security.issuer.token_for(kick.actor, now, now) is not None
        except AuthenticationError:
            return False

    def _sign(self, kick: Kick, inner: TaskiqFormatter) -> BrokerMessage:
        security, message = self._security, kick.message
        now = security.clock()
        data = wire.to_wire(message)
        actor = kick.actor = kick.actor or self._actor_of(kick)
        expires_at = self._expires_at(kick, actor, now)
        token = self._token_of(kick, actor, now, expires_at)
        data["labels"][PRINCIPAL_LABEL] = token.text
        as_signed = signed_json.is_sent_by(inner)
        data, payload = (data, wire.signed_payload(data)) if as_signed else self._as_it_arrives(data, inner)
        text, signature = security.messages.sign(
            payload,
            now,
            expires_at,
            delegation(kick, actor, token),
            kick.denied,
            fires=actor.schedule is not None,
            counted=kick.counted,
        )
        security.key_rotations.signed_with(signature.use, signature.kid)
        labels = data["labels"]
        labels[SIGNATURE_LABEL] = text
        if kick.denied is None:
            self._tell(kick, actor, token, signature, labels.get(PIPELINE_LABEL))
        if not as_signed:
            return inner.dumps(TaskiqMessage.model_construct(**data))
        return BrokerMessage(
            task_id=message.task_id,
            task_name=message.task_name,
            message=signed_json.join(payload, text),
            labels=labels,
        )

    def _expires_at(self, kick: Kick, actor: Acting, now: float) -> float:
        return kick.expires_at(time_to_live(kick.message.labels, self._queue_ttl, self._principal_ttl), actor, now)

    def _token_of(self, kick: Kick, actor: Acting, now: float, expires_at: float) -> PrincipalToken:
        if actor.token is not None and kick.by_hook:
            return actor.token  # whatever has become of it: a worker says so to whoever waits
        if kick.token is not None and kick.token.expires_at >= expires_at:
            return kick.token
        return self._security.issuer.token_for(actor, now, expires_at)

    def _as_it_arrives(self, data: WireMessage, inner: TaskiqFormatter) -> tuple[WireMessage, bytes]:
        """What a format other than JSON makes of a message, and the bytes to sign."""
        if not self._fidelity.holds(inner):
            data = wire.to_wire(inner.loads(inner.dumps(TaskiqMessage.model_construct(**data)).message))
        payload = wire.signed_payload(data)
        if len(payload) > wire.may_say(0):
            wire.check_repeats(payload, inner.dumps(TaskiqMessage.model_construct(**data)).message)
        return data, payload

    def _tell(
        self, kick: Kick, actor: Acting, token: PrincipalToken, signature: MessageSignature, pipeline: str | None
    ) -> None:
        """Record what is about to be sent, and tell who watches."""
        security = self._security
        if security.audit.records(Outcome.ALLOW):
            record_allowed(
                security,
                _event(actor, signature),
                kick.message,
                actor.principal,
                txn=token.txn,
                signature=signature,
                pipeline=pipeline,
                decision=kick.decision if kick.decision is not None and kick.decision.allowed else None,
            )
        run_events.enqueued(security, kick.message, pipeline, token)

    def record_denied(self, kick: Kick, error: FlowSecurityError, *, shadow: bool = False) -> None:
        """Record that a kick was denied or, if it is only a `shadow`, should have been."""
        actor = kick.actor
        record_denied(
            self._security,
            kick.message,
            error,
            principal=None if actor is None else actor.principal,
            txn=None if actor is None else actor.txn,
            request=kick.request,
            decision=kick.decision,
            shadow=shadow,
        )

    def _actor_of(self, kick: Kick) -> Acting:
        """Who kicks: the principal that the message was given explicitly, else the one that acts here."""
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
            raise AuthenticationError(
                Reason.NO_PRINCIPAL,
                "Nobody asks for this task; kick it inside `with security.acting_as(principal):`, or with the labels "
                "of security.labels_for(principal).",
            )
        return actor


def delegation(kick: Kick, actor: Acting, token: PrincipalToken) -> Delegation:
    """On what terms the actor passes the principal on with a kick that the token proves."""
    actors, scope, pipeline = kick.actors(actor), actor.principal.scope, kick.pipeline(actor)
    if scope is token.principal.scope or scope == token.principal.scope:
        scope = UNRESTRICTED
    if pipeline is not None and pipeline == wire.read_label(kick.message, PIPELINE_LABEL):
        pipeline = None
    if not actors and scope is UNRESTRICTED and pipeline is None:
        return NOT_DELEGATED
    return Delegation(actors, scope, pipeline)


def denial_of(error: Exception) -> FlowSecurityError:
    """What a caller is told of whatever kept a decision from being made."""
    if isinstance(error, FlowSecurityError):
        return error
    _logger.error("A kick cannot be decided about because of an unexpected error.", exc_info=error)
    return AccessDeniedError(
        Reason.INTERNAL_ERROR, "An unexpected error kept this process from deciding; its log has it."
    )


def _event(actor: Acting, signature: MessageSignature) -> EventName:
    """What it is that is sent."""
    if actor.schedule is not None:
        return EventName.SCHEDULE_FIRED
    return EventName.TASK_DELEGATED if signature.delegation.actors != actor.actors else EventName.TASK_ENQUEUED
