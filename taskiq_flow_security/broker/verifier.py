"""The receiving side, on arrival: verifies, and empties what cannot be verified."""

from __future__ import annotations

import logging
import re

from taskiq.abc.broker import AsyncBroker
from taskiq.abc.formatter import TaskiqFormatter
from taskiq.message import TaskiqMessage

from taskiq_flow_security.broker import refusal, signed_json, wire
from taskiq_flow_security.broker.arrivals import Arrival
from taskiq_flow_security.broker.delivery import Delivery
from taskiq_flow_security.broker.fidelity import Fidelity
from taskiq_flow_security.broker.schedule_claims import schedule_claim
from taskiq_flow_security.broker.task_events import record_arrival_denied
from taskiq_flow_security.broker.unknown_tasks import UnknownTasks
from taskiq_flow_security.broker.wire import SCHEDULE_LABEL
from taskiq_flow_security.core.reasons import Reason
from taskiq_flow_security.denial import denial_of
from taskiq_flow_security.errors import (
    AuthenticationError,
    FlowSecurityError,
)
from taskiq_flow_security.ids import new_id
from taskiq_flow_security.security import FlowSecurity
from taskiq_flow_security.tokens.keys import Use
from taskiq_flow_security.tokens.message_signature import SIGNATURE_LABEL, MessageSignature
from taskiq_flow_security.tokens.principal_token import PRINCIPAL_LABEL, PrincipalToken

_logger = logging.getLogger(__name__)

_UNKNOWN_TASK = "taskiq_flow_security:unknown"
"""The task of a message whose own cannot be read: one that no worker has, so that the receiver acks and drops it."""

_MAX_ID_LENGTH = 256

_ORDINARY_ID = re.compile(r"[\w.-]{0,128}", re.ASCII)
"""An id under which the refusal of a forged message is stored. Others might be the names of something else there."""

_LATE_SIZE = 32 * 2**20
"""How long a message is taken to have been of which only what was read is there."""

_FIRE = Use.FIRE

_STALE = frozenset({Reason.EXPIRED, Reason.NOT_YET_VALID})
"""The reasons of a message that is genuine, but not now."""


class Verifier:
    """Verifies the messages that one broker receives."""

    def __init__(
        self, security: FlowSecurity, broker: AsyncBroker, fidelity: Fidelity, unknown_tasks: UnknownTasks
    ) -> None:
        self._security = security
        self._broker = broker
        self._fidelity = fidelity
        self._unknown_tasks = unknown_tasks
        self._enabled = security.enabled
        self._clock = security.clock
        self._leeway = security.config.clock_leeway

    def may_read(self, inner: TaskiqFormatter) -> bool:
        """Whether the broker's format can be trusted with bytes that nobody has verified yet."""
        return self._security.config.unsafe_pickle_messages or not self._fidelity.pickles(inner)

    def open(self, data: bytes, inner: TaskiqFormatter) -> TaskiqMessage:
        """Read and verify a message. What cannot be verified is emptied here, and refused later on.

        Where security is off, it only takes the credentials off that processes with security have put on.
        """
        if not self._enabled:
            message = inner.loads(bytes(data))
            wire.take_credentials(message)
            return message
        now = self._clock()
        arrived, signature = self._open_signed_json(data, now) or (self._load(data, inner), None)
        message = arrived or TaskiqMessage(task_id=new_id(), task_name=_UNKNOWN_TASK, labels={}, args=[], kwargs={})
        delivery = self._deliver(message, signature)
        if isinstance(data, Arrival):
            data.becomes(delivery)
        try:
            if arrived is None:
                raise AuthenticationError(Reason.UNREADABLE, "The message cannot be read.")
            self._verify(message, delivery, len(data), now)
            if delivery.task is None:
                self._unknown_tasks.refuse(message, delivery)
        except Exception as error:  # noqa: BLE001 (whatever it is, the message is refused)
            self._reject(message, delivery, denial_of(error, _logger, "A message"))
        if delivery.task is None:
            delivery.end()  # the receiver drops it
        return message

    def open_late(self, message: TaskiqMessage) -> Delivery:
        """Verify a message that has not come through `open`, because somebody has replaced the broker's formatter.

        A receiver has read it and parsed its labels; what it says must have been signed all the same.
        """
        delivery = self._deliver(message)
        delivery.late = True
        parsed, types = dict(message.labels), message.labels_types
        try:
            if SIGNATURE_LABEL not in message.labels:
                raise _not_verified()
            as_sent = wire.prepared(message)
            message.labels, message.labels_types = as_sent.labels, as_sent.labels_types
            self._verify(message, delivery, _LATE_SIZE, self._clock())
            message.parse_labels()
        except Exception as error:  # noqa: BLE001 (as above)
            message.labels, message.labels_types = parsed, types
            wire.take_credentials(message)
            self._reject(message, delivery, denial_of(error, _logger, "A message"))
        return delivery

    def _open_signed_json(self, data: bytes, now: float) -> tuple[TaskiqMessage, MessageSignature] | None:
        """A message that travels as it was signed, once its signature is verified. ``None`` for any other."""
        signed = signed_json.split(data)
        if signed is None:
            return None
        text, payload = signed
        try:
            signature = self._security.messages.read(text, payload, now)
            return TaskiqMessage.__pydantic_validator__.validate_json(payload), signature
        except Exception:  # noqa: BLE001 (the same will come of it where it is said whose message it is)
            return None

    def _load(self, data: bytes, inner: TaskiqFormatter) -> TaskiqMessage | None:
        """A message as the broker's own formatter reads it, if it can, and may."""
        if not self.may_read(inner):
            return None
        try:
            return inner.loads(bytes(data))  # no `Arrival`, which not every parser takes
        except Exception:  # noqa: BLE001 (whatever hostile bytes do to a parser)
            return None

    def _deliver(self, message: TaskiqMessage, signature: MessageSignature | None = None) -> Delivery:
        task = self._broker.find_task(message.task_name)
        delivery = Delivery(self._broker, message.task_id, message.task_name, task)
        delivery.signature = signature
        delivery.begin()
        return delivery

    def _verify(self, message: TaskiqMessage, delivery: Delivery, size: int, now: float) -> None:
        security, signature = self._security, delivery.signature
        signed_by = message.labels.pop(SIGNATURE_LABEL, None)
        principal = message.labels.get(PRINCIPAL_LABEL)
        try:
            if principal is None or (signed_by is None and signature is None):
                raise AuthenticationError(Reason.UNSIGNED, "The message carries no principal or no signature.")
            if signature is None:
                payload = wire.received_payload(message, size)
                signature = delivery.signature = security.messages.read(signed_by, payload, now)
                wire.restore(message, payload)
            token = delivery.token = security.principals.read(principal, now)
            delivery.principal = token.principal.within(signature.delegation.scope)
            if wire.unreadable_labels(message):
                raise AuthenticationError(Reason.INVALID_LABEL, "A label is not of the type it claims.")
            if token.schedule is not None or signature.use is _FIRE:
                _check_schedule(message, token, signature)
        finally:
            message.labels.pop(PRINCIPAL_LABEL, None)
        # Only now, so that it is known whose message comes too late.
        delivery.check_times(now, self._leeway)

    def _reject(self, message: TaskiqMessage, delivery: Delivery, error: FlowSecurityError) -> None:
        """Note that a message could not be verified, and keep what is in it from all others."""
        record_arrival_denied(self._security, message, delivery, error)
        delivery.error = error
        if self._security.monitoring:
            wire.drop_unreadable_labels(message)
            return
        if error.reason not in _STALE:
            refusal.empty(message)
            delivery.keep_result = _ORDINARY_ID.fullmatch(message.task_id) is None
        elif delivery.task is None:
            self._unknown_tasks.answer(delivery, error)
        if delivery.task is None:
            # The receiver logs the name of a task that it does not know.
            message.task_name = delivery.task_name = _UNKNOWN_TASK
        if len(message.task_id) > _MAX_ID_LENGTH or not message.task_id.isprintable():
            message.task_id = delivery.task_id = new_id()
            delivery.keep_result = True


def _check_schedule(message: TaskiqMessage, token: PrincipalToken, signature: MessageSignature) -> None:
    """A principal that was issued for a schedule is for what that sends; a task that has run for it may pass it on.

    A key that is for schedules only sends nothing else.
    """
    granted = token.schedule
    if signature.use is _FIRE:
        if granted is None or signature.delegation.actors:
            raise AuthenticationError(Reason.WRONG_TASK, "The key that signed this is for schedules only.")
    elif granted is None or signature.delegation.actors:
        return
    schedule_id = str(wire.read_label(message, SCHEDULE_LABEL))
    if granted != schedule_claim(schedule_id, message, signature.delegation.pipeline):
        raise AuthenticationError(Reason.WRONG_TASK, "The principal was granted for a schedule that this is not of.")


def _not_verified() -> AuthenticationError:
    return AuthenticationError(
        Reason.NOT_VERIFIED,
        "The message did not come through the formatter of SecurityMiddleware; set the broker's formatter before the "
        "worker starts.",
    )
