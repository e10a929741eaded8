"""The sending side, at the last moment: signs."""

from __future__ import annotations

from taskiq.abc.formatter import TaskiqFormatter
from taskiq.formatters.json_formatter import JSONFormatter
from taskiq.formatters.proxy_formatter import ProxyFormatter
from taskiq.message import BrokerMessage, TaskiqMessage

from taskiq_flow_security import acting
from taskiq_flow_security.acting import Acting
from taskiq_flow_security.broker import run_events, signed_json, wire
from taskiq_flow_security.broker.answers import Clearance
from taskiq_flow_security.broker.fidelity import Fidelity
from taskiq_flow_security.broker.kick_decider import KickDecider
from taskiq_flow_security.broker.kicks import Kick
from taskiq_flow_security.broker.task_events import record_allowed
from taskiq_flow_security.broker.wire import PIPELINE_LABEL, SCHEDULE_LABEL, WireMessage
from taskiq_flow_security.core.events import EventName, Outcome
from taskiq_flow_security.core.policy import Decision
from taskiq_flow_security.errors import AuthenticationError, UnsignableMessageError
from taskiq_flow_security.security import FlowSecurity
from taskiq_flow_security.tokens.message_signature import SIGNATURE_LABEL, MessageSignature
from taskiq_flow_security.tokens.principal_token import PRINCIPAL_LABEL, PrincipalToken

_FORMATTERS_OF_TASKIQ = (JSONFormatter, ProxyFormatter)
"""They dump a message as it is dumped to be signed."""

_ALLOW = Outcome.ALLOW
_TASK_ENQUEUED, _TASK_DELEGATED = EventName.TASK_ENQUEUED, EventName.TASK_DELEGATED


class Signer:
    """Signs the messages that one broker sends."""

    def __init__(self, security: FlowSecurity, kick_decider: KickDecider, fidelity: Fidelity) -> None:
        self._security = security
        self._kick_decider = kick_decider
        self._fidelity = fidelity

    def seal(self, message: TaskiqMessage, inner: TaskiqFormatter) -> BrokerMessage | None:
        """The signed message to send for this one, which keeps no credential.

        Where it cannot be signed, and security is only monitored, it is not. ``None`` where it is to be left as it is:
        then, or because security is off, or because it will not be sent. Raises `UnsignableMessageError` or
        `AuthenticationError` otherwise.
        """
        if (cleared := Kick.cleared(self._kick_decider, message)) is not None and signed_json.is_sent_by(inner):
            try:
                return self._sign_alike(message, cleared)
            except (UnsignableMessageError, AuthenticationError) as error:
                kick = Kick.resume(self._kick_decider, message, None)
                kick.stand_alone()
                self._record_unsigned(kick, error)
                raise  # not tried again: what is iterated over has nothing left by now
        given = wire.take_credentials(message)
        if not self._security.enabled:
            return None
        kick = Kick.resume(self._kick_decider, message, given)
        kick.stand_alone()
        if kick.withheld:
            return None
        data: WireMessage | None = None
        try:
            data = wire.to_wire(message)
            return self._sign(kick, data, inner)
        except (UnsignableMessageError, AuthenticationError) as error:
            self._record_unsigned(kick, error)
            if not self._security.monitoring:
                raise
            if type(inner) not in _FORMATTERS_OF_TASKIQ:
                return None
            if data is None:
                raise  # as they would
            # What was iterated over has nothing left by now, but in what was dumped.
            return inner.dumps(message.model_copy(update={"args": data["args"], "kwargs": data["kwargs"]}))
        finally:
            if SCHEDULE_LABEL in message.labels:
                acting.fired(message.labels[SCHEDULE_LABEL])

    def _record_unsigned(self, kick: Kick, error: UnsignableMessageError | AuthenticationError) -> None:
        if not kick.recorded:
            self._kick_decider.record_denied(kick, error)

    def _sign_alike(self, message: TaskiqMessage, cleared: Clearance) -> BrokerMessage:
        """Sign a message that differs in nothing but its id and its arguments from what was signed before."""
        security, token = self._security, cleared.token
        now = security.clock()
        payload = cleared.envelope.payload(message)
        text, signature = security.messages.sign(payload, now, now + cleared.time_to_live, cleared.delegation)
        # No rotation to note: what is remembered ends with the key that has signed before.
        labels = {**cleared.likeness.labels, PRINCIPAL_LABEL: token.text, SIGNATURE_LABEL: text}
        self._tell(message, cleared.actor, token, signature, labels.get(PIPELINE_LABEL), cleared.decision)
        return BrokerMessage(
            task_id=message.task_id,
            task_name=message.task_name,
            message=signed_json.join(payload, text),
            labels=labels,
        )

    def _sign(self, kick: Kick, data: WireMessage, inner: TaskiqFormatter) -> BrokerMessage:
        security, message = self._security, kick.message
        now = security.clock()
        actor = kick.actor = kick.actor or self._kick_decider.actor_of(kick)
        expires_at = self._kick_decider.expires_at(kick, actor, now)
        token = self._token_of(kick, actor, now, expires_at)
        data["labels"][PRINCIPAL_LABEL] = token.text
        as_signed = signed_json.is_sent_by(inner)
        data, payload = (data, wire.signed_payload(data)) if as_signed else self._as_it_arrives(data, inner)
        text, signature = security.messages.sign(
            payload,
            now,
            expires_at,
            kick.delegation(actor, token),
            kick.denied,
            fires=actor.schedule is not None,
            counted=kick.counted,
        )
        security.key_rotations.signed_with(signature.use, signature.kid)
        labels = data["labels"]
        labels[SIGNATURE_LABEL] = text
        if kick.denied is None:
            allowed_by = kick.decision if kick.decision is not None and kick.decision.allowed else None
            self._tell(message, actor, token, signature, labels.get(PIPELINE_LABEL), allowed_by)
        if not as_signed:
            return inner.dumps(TaskiqMessage.model_construct(**data))
        return BrokerMessage(
            task_id=message.task_id,
            task_name=message.task_name,
            message=signed_json.join(payload, text),
            labels=labels,
        )

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
        self,
        message: TaskiqMessage,
        actor: Acting,
        token: PrincipalToken,
        signature: MessageSignature,
        pipeline: str | None,
        decision: Decision | None,
    ) -> None:
        """Record what is about to be sent, and tell who watches."""
        security = self._security
        if security.audit.records(_ALLOW):
            record_allowed(
                security,
                _event(actor, signature),
                message,
                actor.principal,
                txn=token.txn,
                signature=signature,
                pipeline=pipeline,
                decision=decision,
            )
        run_events.enqueued(security, message, pipeline, token)


def _event(actor: Acting, signature: MessageSignature) -> EventName:
    """What it is that is sent."""
    if actor.schedule is not None:
        return EventName.SCHEDULE_FIRED
    return _TASK_DELEGATED if signature.delegation.actors != actor.actors else _TASK_ENQUEUED
