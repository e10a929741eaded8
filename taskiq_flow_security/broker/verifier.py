"""The receiving side: verifies on arrival, decides before anything runs."""

from __future__ import annotations

import logging
import re

from taskiq.abc.broker import AsyncBroker
from taskiq.abc.formatter import TaskiqFormatter
from taskiq.acks import parse_acknowledge_type
from taskiq.message import TaskiqMessage

from taskiq_flow_security import acting
from taskiq_flow_security.acting import Acting
from taskiq_flow_security.broker import delivery as deliveries
from taskiq_flow_security.broker import refusal, signed_json, wire
from taskiq_flow_security.broker.access_requests import (
    access_denied,
    access_request,
    registered_pipeline,
)
from taskiq_flow_security.broker.delivery import Delivery
from taskiq_flow_security.broker.fidelity import Fidelity
from taskiq_flow_security.broker.task_events import record_allowed, record_denied
from taskiq_flow_security.broker.wire import PIPELINE_LABEL
from taskiq_flow_security.core.events import EventName, Outcome
from taskiq_flow_security.core.policy import AccessRequest, Decision
from taskiq_flow_security.core.principal import ANONYMOUS
from taskiq_flow_security.core.reasons import Reason
from taskiq_flow_security.errors import (
    AccessDeniedError,
    AuthenticationError,
    FlowSecurityError,
)
from taskiq_flow_security.ids import new_id
from taskiq_flow_security.security import FlowSecurity
from taskiq_flow_security.tokens.message_signature import SIGNATURE_LABEL, MessageSignature
from taskiq_flow_security.tokens.principal_token import PRINCIPAL_LABEL

_logger = logging.getLogger(__name__)

_UNKNOWN_TASK = "taskiq_flow_security:unknown"
"""The task of a message whose own cannot be read: one that no worker has, so that the receiver acks and drops it."""

_MAX_ID_LENGTH = 256

_ORDINARY_ID = re.compile(r"[\w.-]{0,128}", re.ASCII)
"""An id under which the refusal of a forged message is stored. Others might be the names of something else there."""

_STALE = frozenset({Reason.EXPIRED, Reason.NOT_YET_VALID})
"""The reasons of a message that is genuine, but not now."""


class Verifier:
    """Verifies the messages that one broker receives, and decides about them."""

    def __init__(self, security: FlowSecurity, broker: AsyncBroker, fidelity: Fidelity) -> None:
        self._security = security
        self._broker = broker
        self._fidelity = fidelity

    def may_read(self, inner: TaskiqFormatter) -> bool:
        """Whether the broker's format can be trusted with bytes that nobody has verified yet."""
        return self._security.config.unsafe_pickle_messages or not self._fidelity.pickles(inner)

    def open(self, data: bytes, inner: TaskiqFormatter) -> TaskiqMessage:
        """Read and verify a message. What cannot be verified is emptied here, and refused later on.

        Where security is off, it only takes the credentials off that processes with security have put on.
        """
        if not self._security.enabled:
            message = inner.loads(data)
            wire.take_credentials(message)
            return message
        now = self._security.clock()
        arrived = signature = None
        if self.may_read(inner):
            arrived, signature = self._open_signed_json(data, now) or (self._load(data, inner), None)
        message = arrived or TaskiqMessage(task_id=new_id(), task_name=_UNKNOWN_TASK, labels={}, args=[], kwargs={})
        delivery = self._deliver(message, signature)
        try:
            if arrived is None:
                raise AuthenticationError(Reason.UNREADABLE, "The message cannot be read.")
            self._verify(message, delivery, now)
        except AuthenticationError as error:
            self._reject(message, delivery, error)
        except Exception:
            _logger.exception("A message cannot be verified because of an unexpected error.")
            self._reject(message, delivery, _internal_error())
        return message

    def admit(self, message: TaskiqMessage) -> Delivery:
        """Decide by this process's own policy whether the message may run, and act as its principal if so.

        Where the delivery that is returned was not admitted, `refuse` has to follow.
        """
        delivery = deliveries.current.get()
        arrived = None if delivery is None or delivery.decided else (delivery.task_id, delivery.task_name)
        if delivery is None or arrived != (message.task_id, message.task_name):
            delivery = self._deliver(message)
            wire.take_credentials(message)
            self._reject(message, delivery, _not_verified())
        if delivery.token is not None and delivery.signature is not None and delivery.error is None:
            try:
                delivery.error = self._decide(message, delivery)
            except Exception:
                _logger.exception("A message cannot be decided about because of an unexpected error.")
                delivery.error = _internal_error()
                self._record_denied(message, delivery, delivery.error)
        if delivery.error is None or self._security.monitoring:
            self._let_run(message, delivery)
        return delivery

    async def refuse(self, message: TaskiqMessage, delivery: Delivery) -> None:
        """Make the receiver refuse a message that was not admitted."""
        acting.become(None)
        if not delivery.keep_result:
            delivery.keep_result = await refusal.result_exists(self._broker, message.task_id)
        if delivery.keep_result:
            # A copy of a message that was answered before: its labels must not lead anybody to other results.
            refusal.empty(message)
        refusal.refuse(message, delivery, delivery.error or _internal_error())

    def _open_signed_json(self, data: bytes, now: float) -> tuple[TaskiqMessage, MessageSignature] | None:
        """A message that travels as it was signed, once its signature is verified. ``None`` for any other."""
        signed = signed_json.split(data)
        if signed is None:
            return None
        try:
            signature = self._security.messages.read(signed.signature, signed.payload, now)
            return TaskiqMessage.model_validate_json(signed.payload), signature
        except (AuthenticationError, ValueError):
            return None  # the same will come of it where it is said whose message it is

    def _load(self, data: bytes, inner: TaskiqFormatter) -> TaskiqMessage | None:
        """A message as the broker's own formatter reads it, if it can."""
        try:
            return inner.loads(data)
        except Exception:  # noqa: BLE001 (whatever hostile bytes do to a parser)
            return None

    def _deliver(self, message: TaskiqMessage, signature: MessageSignature | None = None) -> Delivery:
        task = self._broker.find_task(message.task_name)
        delivery = Delivery(self._broker, message.task_id, message.task_name, task, signature=signature)
        deliveries.current.set(delivery)
        return delivery

    def _verify(self, message: TaskiqMessage, delivery: Delivery, now: float) -> None:
        security = self._security
        signed_by = message.labels.pop(SIGNATURE_LABEL, None)
        principal = message.labels.get(PRINCIPAL_LABEL)
        try:
            if principal is None or (signed_by is None and delivery.signature is None):
                raise AuthenticationError(Reason.UNSIGNED, "The message carries no principal or no signature.")
            if delivery.signature is None:
                payload = wire.received_payload(message)
                delivery.signature = security.messages.read(signed_by, payload, now)
                wire.restore(message, payload)
            delivery.token = security.principals.read(principal, now)
            delivery.principal = delivery.token.principal.within(delivery.signature.delegation.scope)
            wire.check_labels(message)
        finally:
            message.labels.pop(PRINCIPAL_LABEL, None)
        # Only now, so that it is known whose message comes too late.
        security.messages.check_times(delivery.signature, now)
        security.principals.check_times(delivery.token, now)

    def _decide(self, message: TaskiqMessage, delivery: Delivery) -> FlowSecurityError | None:
        """Why the message may not run, recorded; or ``None``, recorded too."""
        security, token, signature, principal = (
            self._security,
            delivery.token,
            delivery.signature,
            delivery.principal,
        )
        assert token is not None  # it was verified
        assert signature is not None
        assert principal is not None
        request = decision = None
        try:
            _check_sender(signature)
            _check_ack_type(message)
            request = access_request(message, delivery.task)
            decision = security.decide(principal, request)
            if not decision.allowed:
                raise access_denied(principal, request, decision)
        except AccessDeniedError as error:
            self._record_denied(message, delivery, error, request, decision)
            return error
        if security.audit.records(Outcome.ALLOW):
            record_allowed(
                security,
                EventName.TASK_AUTHZ_ALLOW,
                message,
                principal,
                txn=token.txn,
                signature=signature,
                pipeline=request.pipeline,
                decision=decision,
            )
        return None

    def _record_denied(
        self,
        message: TaskiqMessage,
        delivery: Delivery,
        error: FlowSecurityError,
        request: AccessRequest | None = None,
        decision: Decision | None = None,
    ) -> None:
        token = delivery.token
        record_denied(
            self._security,
            message,
            error,
            principal=delivery.principal,
            txn=None if token is None else token.txn,
            signature=delivery.signature,
            request=request,
            decision=decision,
        )

    def _reject(self, message: TaskiqMessage, delivery: Delivery, error: FlowSecurityError) -> None:
        """Note that a message could not be verified, and keep what is in it from all others."""
        self._record_denied(message, delivery, error)
        delivery.error = error
        if self._security.monitoring:
            return
        if getattr(error, "reason", None) not in _STALE:
            refusal.empty(message)
            delivery.keep_result = _ORDINARY_ID.fullmatch(message.task_id) is None
        if delivery.task is None:
            # The receiver logs the name of a task that it does not know.
            message.task_name = delivery.task_name = _UNKNOWN_TASK
        if len(message.task_id) > _MAX_ID_LENGTH or not message.task_id.isprintable():
            message.task_id = delivery.task_id = new_id()
            delivery.keep_result = True

    def _let_run(self, message: TaskiqMessage, delivery: Delivery) -> None:
        token, signature = delivery.token, delivery.signature
        principal = delivery.admitted = delivery.principal or ANONYMOUS
        acting.become(
            Acting(
                principal,
                new_id() if token is None else token.txn,
                self._security,
                # What is known by registration is known in every process.
                message.labels.get(PIPELINE_LABEL) if registered_pipeline(delivery.task) is None else None,
                token,
                () if signature is None else signature.delegation.actors,
                received=token is not None,
            )
        )


def _check_sender(signature: MessageSignature) -> None:
    """Refuse what its own sender denies, and has sent for somebody to be told so."""
    if signature.denied is not None:
        raise AccessDeniedError(signature.denied, "The process that wanted to kick this task may not.")


def _check_ack_type(message: TaskiqMessage) -> None:
    """The receiver reads this label outside of any ``try`` (TaskIQ 0.13): a wrong one would never be acked."""
    ack_type = message.labels.get("ack_type")
    if ack_type is None:
        return
    try:
        parse_acknowledge_type(ack_type)
    except ValueError:
        raise AccessDeniedError(Reason.INVALID_LABEL, "The label ack_type is not one that TaskIQ knows.") from None


def _not_verified() -> AuthenticationError:
    return AuthenticationError(
        Reason.NOT_VERIFIED,
        "The message did not come through the formatter of SecurityMiddleware; set the broker's formatter before the "
        "worker starts.",
    )


def _internal_error() -> AccessDeniedError:
    return AccessDeniedError(
        Reason.INTERNAL_ERROR,
        "An unexpected error kept the worker from deciding; its log has it.",
    )
