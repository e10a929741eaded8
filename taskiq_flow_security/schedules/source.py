"""A schedule source that stores no schedule without a grant, and lets none be sent without one."""

from __future__ import annotations

from datetime import timezone

from taskiq import AsyncBroker, ScheduledTask, ScheduleSource
from taskiq.exceptions import ScheduledTaskCancelledError
from taskiq.message import TaskiqMessage
from taskiq.schedule_sources import LabelScheduleSource
from taskiq.serializers import PickleSerializer
from taskiq.utils import maybe_awaitable

from taskiq_flow_security import acting
from taskiq_flow_security.acting import Acting
from taskiq_flow_security.broker import refusal
from taskiq_flow_security.broker.middleware import SecurityMiddleware
from taskiq_flow_security.broker.sender import Kick, Sender
from taskiq_flow_security.broker.task_events import record_allowed, record_denied
from taskiq_flow_security.broker.wire import PIPELINE_LABEL, schedule_claim
from taskiq_flow_security.core.events import EventName
from taskiq_flow_security.core.reasons import Reason
from taskiq_flow_security.errors import (
    AuthenticationError,
    ConfigurationError,
    FlowSecurityError,
    UnsignableMessageError,
)
from taskiq_flow_security.ids import new_id
from taskiq_flow_security.schedules.payload import payload_of
from taskiq_flow_security.security import FlowSecurity
from taskiq_flow_security.tokens.message_signature import SIGNATURE_LABEL
from taskiq_flow_security.tokens.principal_token import PRINCIPAL_LABEL, PrincipalToken


class ProtectedSchedules(ScheduleSource):
    """Wraps any schedule source of a secured broker, on whoever schedules and on the scheduler alike.

    ``source = ProtectedSchedules(ListRedisScheduleSource(url, serializer=JSONSerializer()), broker)``

    Who schedules a task must be allowed to kick it. What is stored carries a grant, signed: for this schedule of this
    task with these arguments at these times, until `schedule_ttl` is over; where it is stored for a task that runs (a
    retry, say), until the task's own principal expires. The scheduler sends what has such a grant, in the name of who
    made it, and nothing else; at each firing, scheduler and worker decide by the policy as it is then.

    Schedules that stand in code, as labels of tasks, are made by nobody: they run as a service of the settings.
    ``ProtectedSchedules(LabelScheduleSource(broker), broker, service="nightly")``

    Raises `ConfigurationError` for a broker without `SecurityMiddleware` and for a source that unpickles what it reads.
    """

    def __init__(self, source: ScheduleSource, broker: AsyncBroker, *, service: str | None = None) -> None:
        self._source = source
        self._broker = broker
        self._service = service
        middleware = _middleware_of(broker)
        self._security: FlowSecurity = middleware.security
        self._sender: Sender = middleware.sender
        _check_source(source, service, self._security)

    async def startup(self) -> None:
        """Start the source."""
        await self._source.startup()

    async def shutdown(self) -> None:
        """Shut the source down."""
        await self._source.shutdown()

    async def get_schedules(self) -> list[ScheduledTask]:
        """All schedules of the source. Whether each has a grant is asked when it is due."""
        return await self._source.get_schedules()

    async def delete_schedule(self, schedule_id: str) -> None:
        """Delete a schedule, and its grant with it."""
        await self._source.delete_schedule(schedule_id)

    async def add_schedule(self, schedule: ScheduledTask) -> None:
        """Store a schedule with a grant of the caller. Raises a `FlowSecurityError` if the caller may not have it."""
        if not self._security.enabled:
            await self._source.add_schedule(schedule)
            return
        message = _message(schedule)
        kick = Kick(message)
        try:
            await self._sender.decide(kick)
            granted = self._grant(schedule, kick)
        except FlowSecurityError as error:
            self._sender.record_denied(kick, error)
            if not self._security.monitoring:
                if not self._sender.kicked_by_hook(message):
                    raise
                # A retry of a task that has run: an exception would keep the receiver from acking it.
                await refusal.answer(self._broker, message.task_id, error)
                return
            granted = _without_credentials(schedule)
        await self._source.add_schedule(granted)

    async def pre_send(self, task: ScheduledTask) -> None:
        """Act in the name of who has scheduled this, or cancel it."""
        await maybe_awaitable(self._source.pre_send(task))
        if not self._security.enabled:
            return
        await self._security.live.catch_up()
        try:
            actor = self._act_for(task)
        except FlowSecurityError as error:
            record_denied(self._security, _message(task), error)
            if self._security.monitoring:
                return
            raise ScheduledTaskCancelledError from error
        acting.become(actor)

    async def post_send(self, task: ScheduledTask) -> None:
        """Act for nobody any more."""
        acting.become(None)
        await maybe_awaitable(self._source.post_send(task))

    def _grant(self, schedule: ScheduledTask, kick: Kick) -> ScheduledTask:
        """The schedule as it is stored: with the labels that prove who may run it, and recorded."""
        security, actor, message = self._security, kick.actor, kick.message
        assert actor is not None  # it was decided about
        now = security.clock()
        token = self._token(schedule, actor, now)
        labels = {**_without_credentials(schedule).labels, PRINCIPAL_LABEL: token.text}
        if PIPELINE_LABEL in message.labels:
            labels[PIPELINE_LABEL] = message.labels[PIPELINE_LABEL]
        granted = schedule.model_copy(update={"labels": labels})
        delegation = self._sender.delegation(actor, token, message)
        if actor.received and not delegation.actors:
            # Also what is scheduled by a middleware, to run again, is passed on by the task that has run.
            delegation = delegation._replace(actors=(message.task_name,))
        text, signature = security.schedules.sign(payload_of(granted), now, token.expires_at, delegation)
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
        return granted.model_copy(update={"labels": {**labels, SIGNATURE_LABEL: text}})

    def _token(self, schedule: ScheduledTask, actor: Acting, now: float) -> PrincipalToken:
        """The principal for as long as the schedule may run."""
        security = self._security
        if actor.received and actor.token is not None:
            return actor.token  # a task passes on what it was given, for no longer than that lasts
        until = now + security.config.schedule_ttl
        if schedule.time is not None:
            # A time without a zone is in UTC to TaskIQ's scheduler (0.13).
            due = (schedule.time if schedule.time.tzinfo else schedule.time.replace(tzinfo=timezone.utc)).timestamp()
            if due > until:
                raise UnsignableMessageError("The schedule is due after its grant would end; raise schedule_ttl.")
            until = max(due, now) + security.config.queue_ttl
        if actor.principal.api_key_id is not None and actor.principal.expires_at is not None:
            until = min(until, actor.principal.expires_at)
        claim = schedule_claim(schedule.schedule_id, schedule)
        return security.principals.issue(actor.principal, actor.txn, now, until, schedule=claim)

    def _act_for(self, schedule: ScheduledTask) -> Acting:
        """Who acts when this schedule is due. Raises `AuthenticationError` where nobody has granted it."""
        security = self._security
        if self._service is not None:
            return Acting(security.service(self._service), new_id(), security, schedule=schedule.schedule_id)
        now = security.clock()
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
        security.schedules.check_times(signature, now)
        token = security.verify_principal(schedule.labels[PRINCIPAL_LABEL], now)
        granted = token.schedule
        if granted not in (None, schedule_claim(schedule.schedule_id, schedule)) and not signature.delegation.actors:
            raise AuthenticationError(Reason.WRONG_TASK, "The principal was granted for another schedule.")
        if security.revoked(signature.jti, signature.issued_at) is not None:
            raise AuthenticationError(Reason.REVOKED, "The schedule has been revoked.")
        return Acting(
            token.principal.within(signature.delegation.scope),
            token.txn,
            security,
            token=token,
            actors=signature.delegation.actors,
            received=True,
            schedule=schedule.schedule_id,
        )


def _middleware_of(broker: AsyncBroker) -> SecurityMiddleware:
    for middleware in broker.middlewares:
        if isinstance(middleware, SecurityMiddleware):
            return middleware
    raise ConfigurationError("The broker has no SecurityMiddleware; add it before its schedules are protected.")


def _check_source(source: ScheduleSource, service: str | None, security: FlowSecurity) -> None:
    if isinstance(source, ProtectedSchedules):
        raise ConfigurationError("The schedule source is protected already; protect each one once.")
    if isinstance(source, LabelScheduleSource) != (service is not None):
        raise ConfigurationError(
            "Schedules that stand in code run as a service: give `service` for a LabelScheduleSource. Any other source "
            "takes none, for what lies in a store must say itself who has scheduled it."
        )
    if service is not None:
        security.service(service)  # says now if there is none
    serializers = (getattr(source, name, None) for name in ("serializer", "_serializer"))
    if (
        security.enabled
        and not security.config.unsafe_pickle_messages
        and any(isinstance(serializer, PickleSerializer) for serializer in serializers)
    ):
        raise ConfigurationError(
            f"{type(source).__name__} unpickles schedules: whoever can write to its store runs code in the scheduler "
            "before any grant can be verified. Give it serializer=JSONSerializer(), or set unsafe_pickle_messages."
        )


def _without_credentials(schedule: ScheduledTask) -> ScheduledTask:
    credentials = (PRINCIPAL_LABEL, SIGNATURE_LABEL)
    labels = {name: value for name, value in schedule.labels.items() if name not in credentials}
    return schedule.model_copy(update={"labels": labels})


def _message(schedule: ScheduledTask) -> TaskiqMessage:
    """The message that a schedule stands for, as far as it is known before it is sent."""
    return TaskiqMessage(
        task_id=schedule.task_id or schedule.schedule_id,
        task_name=schedule.task_name,
        labels=dict(schedule.labels),
        args=list(schedule.args),
        kwargs=dict(schedule.kwargs),
    )
