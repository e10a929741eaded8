"""The sending side: decides at the kick, signs at the last moment."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from taskiq.abc.broker import AsyncBroker
from taskiq.abc.formatter import TaskiqFormatter
from taskiq.labels import LabelType
from taskiq.message import BrokerMessage, TaskiqMessage

from taskiq_flow_security.acting import Acting
from taskiq_flow_security.broker import delivery as deliveries
from taskiq_flow_security.broker import refusal, run_events, signed_json, wire
from taskiq_flow_security.broker.access_requests import (
    access_denied,
    access_request,
    registered_pipeline,
)
from taskiq_flow_security.broker.delivery import Task
from taskiq_flow_security.broker.fidelity import Fidelity
from taskiq_flow_security.broker.kick_limits import KickLimits
from taskiq_flow_security.broker.task_events import record_allowed, record_denied
from taskiq_flow_security.broker.wire import DELAY_LABEL, PIPELINE_LABEL, QUEUE_TTL_LABEL, SCHEDULE_LABEL
from taskiq_flow_security.config import TaskiqFlowConfig
from taskiq_flow_security.core.events import EventName, Outcome
from taskiq_flow_security.core.policy import AccessRequest, Decision
from taskiq_flow_security.core.principal import UNRESTRICTED
from taskiq_flow_security.core.reasons import Reason
from taskiq_flow_security.errors import (
    AccessDeniedError,
    AuthenticationError,
    BackendUnavailableError,
    ConfigurationError,
    FlowSecurityError,
    UnsignableMessageError,
)
from taskiq_flow_security.security import FlowSecurity
from taskiq_flow_security.tokens.keyring import Use
from taskiq_flow_security.tokens.message_signature import NOT_DELEGATED, SIGNATURE_LABEL, Delegation, MessageSignature
from taskiq_flow_security.tokens.principal_token import PRINCIPAL_LABEL, PrincipalToken

_logger = logging.getLogger(__name__)

_SHORT = 200
"""Characters of a label that is too short to hold a principal."""


_AT_A_TIME = 1024
"""How many kicks are between their decision and their signature at most, but for those that were given up."""


@dataclass(slots=True)
class Kick:
    """One kick, and what is known of it so far."""

    message: TaskiqMessage
    actor: Acting | None = None
    request: AccessRequest | None = None
    decision: Decision | None = None


class Sender:
    """Decides about kicks and signs messages for one broker."""

    def __init__(self, security: FlowSecurity, broker: AsyncBroker, fidelity: Fidelity) -> None:
        self._security = security
        self._broker = broker
        self._fidelity = fidelity
        self._limits = KickLimits(security)
        self._decided: dict[str, Decision] = {}
        """By task id: what is recorded when the kick is signed. A requeue is not decided about before it arrives."""

    async def authorize(self, message: TaskiqMessage) -> None:
        """Decide whether the caller may kick this, or raise a `FlowSecurityError` in the caller."""
        kick = Kick(message)
        try:
            await self.decide(kick)
        except Exception as error:  # noqa: BLE001 (whatever it is, the kick is denied)
            denial = error if isinstance(error, FlowSecurityError) else _internal_error(error)
        else:
            self._remember(kick)
            return
        self.record_denied(kick, denial)
        if self._security.monitoring:
            return
        if not self.kicked_by_hook(message):
            raise denial
        # An exception would keep the receiver from acking (`on_error`) or only be logged (`post_save`), and somebody
        # would wait for ever. So the message is sent for the worker that gets it to refuse.
        if kick.actor is not None and not isinstance(denial, UnsignableMessageError):
            deliveries.deny_kick(message.task_id, getattr(denial, "reason", Reason.INTERNAL_ERROR))
        else:  # nobody can sign for it
            deliveries.deny_kick(message.task_id, None)
            if not deliveries.refusing():
                await refusal.answer(self._broker, message.task_id, denial)

    def _remember(self, kick: Kick) -> None:
        if kick.decision is None:
            return
        while len(self._decided) >= _AT_A_TIME:
            self._decided.pop(next(iter(self._decided)), None)
        self._decided[kick.message.task_id] = kick.decision

    async def decide(self, kick: Kick) -> None:
        """Decide about a kick, or raise a `FlowSecurityError`. Nothing is recorded."""
        security, message = self._security, kick.message
        task = self._broker.find_task(message.task_name)
        _check_shared_labels(task)
        _check_other_labels(message)
        if not message.task_id.isprintable():
            raise UnsignableMessageError("The task's id must be printable text; let TaskIQ make it.")
        actor = kick.actor = self._actor_of(message.labels.get(PRINCIPAL_LABEL), message)
        _name_pipeline(message, self._pipeline_of(actor, message), registered_pipeline(task))
        kick.request = request = access_request(message, task)
        kick.decision = decision = security.decide(actor.principal, request)
        if decision.reason is Reason.POLICY_STALE:
            if self.kicked_by_hook(message):
                return  # a worker decides about it when it can
            raise BackendUnavailableError("Nobody can tell now what the policy is; try again later.")
        if not decision.allowed:
            raise access_denied(actor.principal, request, decision)
        if actor.actors and len(self._actors(actor, message)) > security.config.max_delegation_depth:
            raise AccessDeniedError(
                Reason.DELEGATION_DEPTH, "Too many tasks have kicked one another; see max_delegation_depth."
            )
        now = security.clock()
        security.token_for(actor, now, self._expiry(message, now))  # while it can be said in the caller
        if self._limits.apply_to(request) and not self._retries(message):
            await self._count(kick, actor, request)

    async def _count(self, kick: Kick, actor: Acting, request: AccessRequest) -> None:
        try:
            await self._limits.count(actor.principal, request, by_hook=self.kicked_by_hook(kick.message))
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
        if not self._security.enabled or deliveries.withholds(message.task_id):
            return None
        try:
            return self._sign(message, given, inner)
        except (UnsignableMessageError, AuthenticationError):
            if not self._security.monitoring:
                raise
            return None

    def _sign(self, message: TaskiqMessage, given: object, inner: TaskiqFormatter) -> BrokerMessage:
        security = self._security
        now, decision = security.clock(), self._decided.pop(message.task_id, None)
        data = wire.to_wire(message)
        expires_at = self._expiry(message, now)
        actor = self._actor_of(given, message)
        if actor.token is not None and self.kicked_by_hook(message):
            token = actor.token
        else:
            token = security.token_for(actor, now, expires_at)
        data["labels"][PRINCIPAL_LABEL] = token.text
        as_signed = signed_json.is_sent_by(inner)
        if not (as_signed or self._fidelity.holds(inner)):
            data = wire.to_wire(inner.loads(inner.dumps(TaskiqMessage.model_construct(**data)).message))
        payload = wire.signed_payload(data)
        text, signature = security.messages.sign(
            payload,
            now,
            expires_at,
            self.delegation(actor, token, message),
            deliveries.denied_kick(message.task_id),
            fires=actor.schedule is not None,
        )
        security.signed_with(Use.SEND, signature.kid)
        labels = data["labels"]
        labels[SIGNATURE_LABEL] = text
        if signature.denied is None and security.audit.records(Outcome.ALLOW):
            record_allowed(
                security,
                _event(actor, signature),
                message,
                actor.principal,
                txn=token.txn,
                signature=signature,
                pipeline=labels.get(PIPELINE_LABEL),
                decision=decision,
            )
        if signature.denied is None:
            run_events.enqueued(security, message, labels.get(PIPELINE_LABEL), token)
        if not as_signed:
            return inner.dumps(TaskiqMessage.model_construct(**data))
        return BrokerMessage(
            task_id=message.task_id,
            task_name=message.task_name,
            message=signed_json.join(payload, text),
            labels=labels,
        )

    def delegation(self, actor: Acting, token: PrincipalToken, message: TaskiqMessage) -> Delegation:
        """On what terms the actor passes the principal on that the token proves."""
        actors, scope, pipeline = self._actors(actor, message), actor.principal.scope, self._pipeline_of(actor, message)
        if scope is token.principal.scope or scope == token.principal.scope:
            scope = UNRESTRICTED
        if pipeline is not None and pipeline == wire.read_label(message, PIPELINE_LABEL):
            pipeline = None
        if not actors and scope is UNRESTRICTED and pipeline is None:
            return NOT_DELEGATED
        return Delegation(actors, scope, pipeline)

    def _pipeline_of(self, actor: Acting, message: TaskiqMessage) -> str | None:
        """The pipeline that a kick is made for, if for any: the next step of a pipeline, for that of the last one."""
        if actor.pipeline is None and self.kicked_by_hook(message):
            delivery = deliveries.current.get()
            return None if delivery is None or delivery.request is None else delivery.request.pipeline
        return actor.pipeline

    def _actors(self, actor: Acting, message: TaskiqMessage) -> tuple[str, ...]:
        """The tasks that have passed the principal on: the running one too, if it is its function that kicks."""
        delivery = deliveries.current.get()
        if delivery is None or delivery.admitted is None:
            return actor.actors
        scheduled = actor.token is not None and actor.token.schedule is not None and not actor.actors
        if self.kicked_by_hook(message) and not scheduled and delivery.handled_here():
            return actor.actors
        # A principal that was issued for a schedule has to be passed on by its task, and be it to its own retry.
        return (*actor.actors, delivery.task_name)

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

    def kicked_by_hook(self, message: TaskiqMessage) -> bool:
        """Whether a middleware kicks this after a task has run or was refused: a retry, a next step, an alarm."""
        delivery = deliveries.current.get()
        return delivery is not None and (delivery.executed or delivery.refusal is not None or self._retries(message))

    def _retries(self, message: TaskiqMessage) -> bool:
        """Whether this kick repeats the task that is, or was, run here: a retry or a requeue.

        Middlewares that stand before ours are told of an error before we are, so that the two cannot be told apart.
        """
        delivery = deliveries.current.get()
        if delivery is None or delivery.admitted is None:
            return False
        return (delivery.task_id, delivery.task_name) == (message.task_id, message.task_name)

    def _expiry(self, message: TaskiqMessage, now: float) -> float:
        """When the message is too old to run: after the task's own time to live or the default, beyond any delay.

        For what is tried again that time counts from the first kick.
        """
        expires_at = now + _time_to_live(message, self._security.config)
        delivery = deliveries.current.get()
        if delivery is not None and delivery.signature is not None and self._retries(message):
            return min(expires_at, delivery.signature.expires_at)
        return expires_at

    def _actor_of(self, given: object, message: TaskiqMessage) -> Acting:
        """Who kicks: the principal that the message was given explicitly, else the one that acts here."""
        actor = self._security.actor()
        if actor is not None and actor.schedule is not None and message.labels.get(SCHEDULE_LABEL) == actor.schedule:
            return actor  # whose grant has been verified; the labels are those that were stored with it
        if actor is not None and given is not None and actor.received and actor.token and given == actor.token.text:
            given = None  # it is whoever acts here anyway
        if given is not None:
            token = self._security.verify_principal(given, self._security.clock())
            if token.schedule is not None or SCHEDULE_LABEL in message.labels:
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


def _event(actor: Acting, signature: MessageSignature) -> EventName:
    """What it is that is sent."""
    if actor.schedule is not None:
        return EventName.SCHEDULE_FIRED
    return EventName.TASK_DELEGATED if signature.delegation.actors != actor.actors else EventName.TASK_ENQUEUED


def _internal_error(error: Exception) -> FlowSecurityError:
    _logger.error("A kick cannot be decided about because of an unexpected error.", exc_info=error)
    return AccessDeniedError(
        Reason.INTERNAL_ERROR, "An unexpected error kept this process from deciding; its log has it."
    )


def _check_shared_labels(task: Task | None) -> None:
    """Refuse a principal that has got into the labels of a task itself, and take it out.

    All kickers of a shared task write into the task's own labels (TaskIQ 0.13), for everybody who kicks it later.
    """
    if task is not None and task.labels.pop(PRINCIPAL_LABEL, None) is not None:
        raise ConfigurationError(
            "TaskIQ gives all kickers of a shared task the same labels, so that they cannot carry a principal; kick it "
            "inside `with security.acting_as(principal):`."
        )


def _check_other_labels(message: TaskiqMessage) -> None:
    """Refuse a principal that is hidden in another label, as pipeline libraries keep the labels of their next steps.

    Nobody would take it off, and it would reach results and dashboards.
    """
    for name, value in message.labels.items():
        if len(str(value)) > _SHORT and name != PRINCIPAL_LABEL and _holds_principal(wire.read_label(message, name)):
            raise ConfigurationError(
                f"The label {name} holds a principal, as it does where a step of a pipeline is given one with "
                "labels_for; kick the whole pipeline inside `with security.acting_as(principal):`."
            )


def _holds_principal(value: object) -> bool:
    if isinstance(value, bytes):
        return PRINCIPAL_LABEL.encode() in value
    return isinstance(value, str) and PRINCIPAL_LABEL in value


def _name_pipeline(message: TaskiqMessage, pipeline: str | None, registered: str | None) -> None:
    """Let the message name the pipeline that the kick is made for, if its task has none by registration."""
    if pipeline is None or registered is not None:
        return
    named = wire.read_label(message, PIPELINE_LABEL)
    if named is None:
        message.labels[PIPELINE_LABEL] = pipeline
        if message.labels_types is not None:
            message.labels_types[PIPELINE_LABEL] = LabelType.STR
    elif named != pipeline:
        raise AccessDeniedError(
            Reason.PIPELINE_MISMATCH,
            "The message names another pipeline than the one that the caller acts for.",
        )


def _time_to_live(message: TaskiqMessage, config: TaskiqFlowConfig) -> float:
    """Seconds that the message may wait, its delay included."""
    labels = message.labels
    if QUEUE_TTL_LABEL not in labels and DELAY_LABEL not in labels:
        return config.queue_ttl
    try:
        ttl = float(labels.get(QUEUE_TTL_LABEL, config.queue_ttl))
        delay = float(labels.get(DELAY_LABEL, 0))
    except (TypeError, ValueError):
        ttl = delay = -1
    if not (ttl > 0 and delay >= 0):
        raise UnsignableMessageError("The labels queue_ttl and delay must be numbers of seconds, queue_ttl above 0.")
    if not ttl + delay <= config.principal_ttl:
        raise UnsignableMessageError(
            "The message may wait longer (queue_ttl and delay) than its principal is accepted; shorten that, or raise "
            "principal_ttl."
        )
    return ttl + delay
