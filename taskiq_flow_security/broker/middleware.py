"""What a user adds to a broker, on API, worker and scheduler alike."""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from taskiq.abc.broker import AsyncBroker
from taskiq.abc.middleware import TaskiqMiddleware
from taskiq.abc.serializer import TaskiqSerializer
from taskiq.exceptions import NoResultError
from taskiq.message import BrokerMessage, TaskiqMessage
from taskiq.result import TaskiqResult

from taskiq_flow_security import acting
from taskiq_flow_security.acting import Acting
from taskiq_flow_security.broker import arrivals, kicks, refusal, run_events
from taskiq_flow_security.broker import delivery as deliveries
from taskiq_flow_security.broker.access_requests import check_pipeline
from taskiq_flow_security.broker.arrival_decider import ArrivalDecider
from taskiq_flow_security.broker.arrivals import Listen
from taskiq_flow_security.broker.delivery import Delivery
from taskiq_flow_security.broker.fidelity import Fidelity
from taskiq_flow_security.broker.formatter import SigningFormatter
from taskiq_flow_security.broker.kick_decider import KickDecider
from taskiq_flow_security.broker.refusal import DependencyOverrides
from taskiq_flow_security.broker.replays import Replays
from taskiq_flow_security.broker.signer import Signer
from taskiq_flow_security.broker.unknown_tasks import UnknownTasks
from taskiq_flow_security.broker.verifier import Verifier
from taskiq_flow_security.core.events import AuditEvent, EventName, Outcome
from taskiq_flow_security.core.principal import ANONYMOUS
from taskiq_flow_security.errors import ConfigurationError
from taskiq_flow_security.ids import new_id
from taskiq_flow_security.results import check_results
from taskiq_flow_security.security import FlowSecurity

SendMessage = Callable[[BrokerMessage], Coroutine[Any, Any, None]]


class SecurityMiddleware(TaskiqMiddleware):
    """Signs every message that the broker sends, and lets none run that it cannot verify and allow.

    ``broker.with_middlewares(SecurityMiddleware(security))`` is all there is to do, wherever it stands among other
    middlewares: it works through the broker's formatter, which it wraps (and wraps again if another one is set).
    """

    def __init__(self, security: FlowSecurity, *, broadcast: bool = False) -> None:
        """`broadcast` says that each message goes to every worker: each remembers for itself then what it has run."""
        super().__init__()
        if not isinstance(security, FlowSecurity):
            raise TypeError(f"SecurityMiddleware needs a FlowSecurity, not {type(security).__name__}")
        self.security = security
        self._enabled = security.enabled
        self._broadcast = broadcast
        # What is in place, by which it knows when that was replaced.
        self._formatter: SigningFormatter | None = None
        self._kick: SendMessage | None = None
        self._listen: Listen | None = None
        self._overrides: Mapping[Any, Any] | None = None
        self._checked: TaskiqSerializer | None = None

    @staticmethod
    def of(broker: AsyncBroker) -> SecurityMiddleware | None:
        """The one that a broker has, if it has one."""
        return next((found for found in broker.middlewares if isinstance(found, SecurityMiddleware)), None)

    def set_broker(self, broker: AsyncBroker) -> None:
        """Take hold of the broker. Raises `ConfigurationError` if it is secured already, or this is another's."""
        if self.of(broker) is not None:
            raise ConfigurationError("The broker has a SecurityMiddleware already; add one only.")
        if self.broker not in (None, broker):
            raise ConfigurationError("Each broker needs a SecurityMiddleware of its own; make another.")
        super().set_broker(broker)
        fidelity = Fidelity(broker)
        self.kick_decider = KickDecider(self.security, broker)
        self._signer = Signer(self.security, self.kick_decider, fidelity)
        self._unknown_tasks = UnknownTasks(self.security, broadcast=self._broadcast)
        self._verifier = Verifier(self.security, broker, fidelity, self._unknown_tasks)
        self._replays = Replays(self.security, broadcast=self._broadcast)
        self._arrival_decider = ArrivalDecider(self.security, broker, self._verifier, self._replays)
        self._install()
        self._check_format()

    async def startup(self) -> None:
        """Make sure that everything is in place before the first message."""
        self._install()
        self._check_format()
        if self.security.enabled:
            await self.security.live.catch_up()
            for task in self.broker.get_all_tasks().values():
                check_pipeline(task)
            if self.broker.is_worker_process:
                self._replays.check_tasks(self.broker)
            check_results(self.broker.result_backend, is_worker=self.broker.is_worker_process)
        self.security.audit.record(
            AuditEvent(
                event=EventName.SYS_STARTUP,
                time=self.security.clock(),
                outcome=Outcome.ALLOW,
                rule=self.security.config.enforcement if self.security.enabled else "security_enabled=False",
                policy_hash=self.security.policy.hash,
            )
        )

    async def shutdown(self) -> None:
        """Leave nothing unwritten and nothing unsent."""
        self.security.audit.flush()
        await run_events.flush(self.security)
        await self._unknown_tasks.close()
        await self._replays.close()

    async def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
        """Decide in the caller. Raises a `FlowSecurityError` if it may not kick this."""
        if not self._in_place():
            self._install()
            self._check_format()
        if self._enabled:
            kick = self.kick_decider.begin(message)
            if kick.clearance is None:
                await self.kick_decider.authorize(kick)
        return message

    async def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
        """Decide on the worker; a message that may not run is refused by the time that its function would be called."""
        if self._enabled:
            delivery = self._arrival_decider.receive(message)
            if not self._arrival_decider.admit_at_once(message, delivery):
                await self._arrival_decider.admit(message, delivery)
                if delivery.late or delivery.error is not None:
                    self._install()  # the formatter was replaced, or a refusal needs our dependency overrides
                if delivery.admitted is None:
                    await self._arrival_decider.refuse(message, delivery)
            run_events.decided(self.security, message, delivery)
        else:
            delivery = Delivery(self.broker, message.task_id, message.task_name)
            delivery.admitted = ANONYMOUS
            delivery.begin()
            acting.become(Acting(ANONYMOUS, new_id(), self.security))
        return message

    def on_error(self, message: TaskiqMessage, result: TaskiqResult[Any], exception: BaseException) -> None:
        """Note that the function has run, and tell that it has failed."""
        delivery = deliveries.current.get()
        if delivery is not None:
            deliveries.executed.set(delivery)
            run_events.failed(self.security, message, delivery, exception)

    async def post_execute(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:
        """Tell that the function has returned; give a refused message its result."""
        delivery = deliveries.current.get()
        if delivery is None:
            return
        deliveries.executed.set(delivery)
        delivery.finished = True
        if delivery.refusal is not None:
            await refusal.settle(message, delivery, result)
        elif not result.is_err:
            run_events.completed(self.security, message, delivery)
        if not delivery.kept:  # nor acked, so that nothing can be lost any more that a copy would bring back
            self._replays.note(delivery)
        if isinstance(result.error, NoResultError) and self._is_last("post_execute"):
            delivery.end()  # nothing is saved then

    def post_save(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:
        """Leave the context as it was, for whoever awaits the receiver itself; unless others still have to be told."""
        delivery = deliveries.current.get()
        if delivery is not None and self._is_last("post_save"):
            delivery.end()

    def _is_last(self, hook: str) -> bool:
        """Whether no other middleware has this hook of a task that is over called after ours."""
        for middleware in self.broker.middlewares:  # from the last to be called on
            if middleware is self:
                return True
            if getattr(type(middleware), hook) is not getattr(TaskiqMiddleware, hook):
                return False
        return False

    def _in_place(self) -> bool:
        """Whether nobody has replaced anything that was put in place or checked."""
        broker = self.broker
        return (
            broker.formatter is self._formatter
            and broker.kick is self._kick
            and broker.listen is self._listen
            and broker.dependency_overrides is self._overrides
            and broker.serializer is self._checked
        )

    def _install(self) -> None:
        """Put in place what is not, or no longer."""
        broker = self.broker
        # Instance attributes come first: these are the broker's own methods, for this broker.
        if broker.kick is not self._kick:
            if not getattr(broker.kick, "isolated", False):
                broker.kick = _isolated(broker.kick)  # type: ignore[assignment]
            self._kick = broker.kick
        if broker.listen is not self._listen:
            if not getattr(broker.listen, "observed", False):
                broker.listen = arrivals.observed(broker.listen, self._replays)  # type: ignore[method-assign]
            self._listen = broker.listen
        if broker.dependency_overrides is not self._overrides:
            if not isinstance(broker.dependency_overrides, DependencyOverrides):
                broker.dependency_overrides = DependencyOverrides(broker.dependency_overrides)  # type: ignore[assignment]  # all that is done with it is what a mapping can do
            self._overrides = broker.dependency_overrides
        if broker.formatter is not self._formatter:
            if self._formatter is not None:
                self._formatter.retire()
            self._formatter = SigningFormatter(broker.formatter, self._signer, self._verifier)
            broker.formatter = self._formatter
            self._checked = None

    def _check_format(self) -> None:
        """Raise `ConfigurationError` for a format that is pickle, once for each format."""
        serializer = self.broker.serializer
        if serializer is self._checked or self._formatter is None:
            return
        if self.security.enabled and not self._verifier.may_read(self._formatter.inner):
            raise ConfigurationError(
                "The broker sends pickle: whoever can write to the queue runs code in the worker before any signature "
                "can be verified. Use JSONSerializer or another, or set unsafe_pickle_messages."
            )
        self._checked = serializer


def _isolated(send: SendMessage) -> SendMessage:
    """A broker's kick after which the caller's context is as it was, also where the broker runs the task in place."""

    @functools.wraps(send)
    async def isolated_kick(message: BrokerMessage) -> None:
        kick, actor = kicks.take(), acting.current()
        delivery, executed = deliveries.current.get(), deliveries.executed.get()
        if delivery is not None:
            deliveries.current.set(None)
        if executed is not None:
            deliveries.executed.set(None)
        try:
            if kick is None or not (kick.withheld and kick.is_of(message)):
                await send(message)
        finally:
            kicks.end(kick)
            if acting.current() is not actor:
                acting.become(actor)
            if deliveries.current.get() is not delivery:
                deliveries.current.set(delivery)
            if deliveries.executed.get() is not executed:
                deliveries.executed.set(executed)

    isolated_kick.isolated = True  # type: ignore[attr-defined]  # a mark, so that it is wrapped once
    return isolated_kick
