"""A schedule source that stores no schedule without a grant, and lets none be sent without one."""

from __future__ import annotations

import logging

from taskiq import AsyncBroker, ScheduledTask, ScheduleSource
from taskiq.exceptions import ScheduledTaskCancelledError
from taskiq.message import TaskiqMessage
from taskiq.schedule_sources import LabelScheduleSource
from taskiq.serializers import PickleSerializer
from taskiq.utils import maybe_awaitable

from taskiq_flow_security import acting
from taskiq_flow_security.acting import Acting
from taskiq_flow_security.broker import refusal
from taskiq_flow_security.broker.kick_decider import KickDecider
from taskiq_flow_security.broker.kicks import Kick
from taskiq_flow_security.broker.middleware import SecurityMiddleware
from taskiq_flow_security.broker.schedule_claims import schedule_claim
from taskiq_flow_security.broker.wire import SCHEDULE_LABEL
from taskiq_flow_security.core.reasons import Reason
from taskiq_flow_security.denial import denial_of
from taskiq_flow_security.errors import (
    AccessDeniedError,
    AuthenticationError,
    ConfigurationError,
    FlowSecurityError,
)
from taskiq_flow_security.ids import new_id
from taskiq_flow_security.schedules.grants import Grants, without_credentials
from taskiq_flow_security.security import FlowSecurity
from taskiq_flow_security.tokens.keys import Use
from taskiq_flow_security.tokens.principal_token import PRINCIPAL_LABEL

_logger = logging.getLogger(__name__)

_PASSING = frozenset({Reason.NOT_YET_VALID, Reason.INTERNAL_ERROR})
"""The reasons of a denial that may pass."""


class ProtectedSchedules(ScheduleSource):
    """Wraps any schedule source of a secured broker, on whoever schedules and on the scheduler alike.

    ``source = ProtectedSchedules(ListRedisScheduleSource(url, serializer=JSONSerializer()), broker)``

    Who schedules a task must be allowed to kick it; limits for kicks count schedules, and what they send, each by
    itself. What is stored carries a grant, signed: for this schedule of this
    task with these arguments at these times, until `schedule_ttl` is over; where a running task stores it, until the
    task's own principal expires, and for a retry, until its message does. The scheduler sends what has such a grant, in
    the name of who made it, and nothing else; at each firing, scheduler and worker decide by the policy as it is then.

    Schedules that stand in code, as labels of tasks, are made by nobody: they run as a service of the settings.
    ``ProtectedSchedules(LabelScheduleSource(broker), broker, service="nightly")``

    Raises `ConfigurationError` for a broker without `SecurityMiddleware` and for a source that unpickles what it reads.
    """

    def __init__(self, source: ScheduleSource, broker: AsyncBroker, *, service: str | None = None) -> None:
        self._source = source
        self._broker = broker
        self._service = service
        middleware = SecurityMiddleware.of(broker)
        if middleware is None:
            raise ConfigurationError("The broker has no SecurityMiddleware; add it before its schedules are protected.")
        self._security: FlowSecurity = middleware.security
        self._kick_decider: KickDecider = middleware.kick_decider
        self._grants = Grants(self._security)
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
        kick = Kick(self._kick_decider, _message(schedule), schedule.labels.get(PRINCIPAL_LABEL))
        try:
            self._kick_decider.decide(kick)
            if self._kick_decider.counts(kick):
                await self._kick_decider.count(kick, "schedule")
            granted = self._grants.grant(schedule, kick)
        except Exception as error:  # noqa: BLE001 (whatever it is, the schedule is not made)
            denial = denial_of(error, _logger, "A schedule")
        else:
            await self._source.add_schedule(granted)
            return
        self._kick_decider.record_denied(kick, denial)
        if self._security.monitoring:
            await self._source.add_schedule(without_credentials(schedule))
        elif kick.by_hook:
            # A retry of a task that has run: an exception would keep the receiver from acking it.
            await refusal.answer(self._broker, kick.message.task_id, denial)
        else:
            raise denial

    async def pre_send(self, task: ScheduledTask) -> None:
        """Let this be sent in the name of who has scheduled it, or cancel it.

        Where it was granted and is denied for good, who waits for it is told, and what is due only once is deleted.
        """
        await maybe_awaitable(self._source.pre_send(task))
        if not self._security.enabled:
            return
        await self._security.live.catch_up()
        kick = Kick(self._kick_decider, _message(task), task.labels.get(PRINCIPAL_LABEL))
        kick.message.labels[SCHEDULE_LABEL] = task.schedule_id
        try:
            self._decide(task, kick)
        except Exception as error:  # noqa: BLE001 (whatever it is, the schedule is not sent)
            denial = denial_of(error, _logger, "A schedule")
        else:
            return
        acting.fire(None)
        self._kick_decider.record_denied(kick, denial)
        if self._security.monitoring:
            return
        if self._service is None and kick.actor is not None and _for_good(denial):
            await self._end(task, denial)
        raise ScheduledTaskCancelledError from denial

    async def post_send(self, task: ScheduledTask) -> None:
        """Tell the source that this was sent."""
        await maybe_awaitable(self._source.post_send(task))

    def _decide(self, schedule: ScheduledTask, kick: Kick) -> None:
        """Let this be sent, if it may. Who acts is known from then on that the grant has proved to be authentic."""
        security, now = self._security, self._security.clock()
        if self._service is not None:
            kick.actor = self._service_actor(self._service, schedule, now)
        else:
            signature, token = self._grants.read(schedule, now)
            kick.actor = Acting(
                token.principal.within(signature.delegation.scope),
                token.txn,
                security,
                signature.delegation.pipeline,
                token,
                actors=signature.delegation.actors,
                received=True,
                schedule=schedule.schedule_id,
                until=signature.expires_at,
                counted=signature.counted,
            )
            security.schedules.check_times(signature, now)
            if security.authorization.revoked(signature.jti, signature.issued_at) is not None:
                raise AuthenticationError(Reason.REVOKED, "The schedule has been revoked.")
        acting.fire(kick.actor)
        if not security.monitoring:  # or the kick that follows would record the same again
            self._kick_decider.decide(kick)

    def _service_actor(self, service: str, schedule: ScheduledTask, now: float) -> Acting:
        """As whom a schedule in code is sent; where this process sends nothing else, with a principal for just that."""
        security = self._security
        principal, txn, schedule_id = security.service(service), new_id(), schedule.schedule_id
        if security.messages.signer(now, now, fires=True).use is not Use.FIRE:
            return Acting(principal, txn, security, schedule=schedule_id)
        until = now + security.config.principal_ttl
        claim = schedule_claim(schedule_id, schedule)
        token = security.principals.issue(principal, txn, now, until, schedule=claim)
        return Acting(token.principal, txn, security, token=token, received=True, schedule=schedule_id)

    async def _end(self, schedule: ScheduledTask, denial: FlowSecurityError) -> None:
        """Tell who waits for it that a schedule is denied, and delete what would only be denied again."""
        if schedule.task_id is not None:
            await refusal.answer(self._broker, schedule.task_id, denial)
        if schedule.time is None or schedule.cron is not None or schedule.interval is not None:
            return
        try:
            await self._source.delete_schedule(schedule.schedule_id)
        except Exception:
            _logger.exception("A schedule that was denied cannot be deleted.")


def _for_good(denial: FlowSecurityError) -> bool:
    """Whether what is denied now will be denied later, too."""
    return isinstance(denial, (AccessDeniedError, AuthenticationError)) and denial.reason not in _PASSING


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


def _message(schedule: ScheduledTask) -> TaskiqMessage:
    """The message that a schedule stands for, as far as it is known before it is sent."""
    return TaskiqMessage(
        task_id=schedule.task_id or schedule.schedule_id,
        task_name=schedule.task_name,
        labels=dict(schedule.labels),
        args=list(schedule.args),
        kwargs=dict(schedule.kwargs),
    )
