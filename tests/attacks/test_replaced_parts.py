"""What is taken out of a broker, or put around the formatter, after the middleware was added undoes nothing."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from functools import partial

import pytest
from taskiq import Context, TaskiqDepends, TaskiqMiddleware
from taskiq.abc.formatter import TaskiqFormatter
from taskiq.formatters.json_formatter import JSONFormatter
from taskiq.formatters.proxy_formatter import ProxyFormatter
from taskiq.message import BrokerMessage, TaskiqMessage
from taskiq.serializers import ORJSONSerializer, PickleSerializer

from taskiq_flow_security import (
    AccessDeniedError,
    AuthenticationError,
    ConfigurationError,
    SecurityMiddleware,
    acting,
)
from taskiq_flow_security.broker import delivery as deliveries
from tests.attacks.forging import PRINCIPAL, SIGNATURE, read, relabelled, write
from tests.integration.inmemory.fixtures import NewProcess
from tests.integration.inmemory.harness import PROCESSOR, VIEWER, AuditTrail, Clock, Process, Queue


class Wrapper(TaskiqFormatter):
    """A formatter around another one."""

    def __init__(self, inner: TaskiqFormatter) -> None:
        self.inner = inner

    def dumps(self, message: TaskiqMessage) -> BrokerMessage:
        dumped = self.inner.dumps(message)
        return dumped.model_copy(update={"message": b"wrapped:" + dumped.message})

    def loads(self, message: bytes) -> TaskiqMessage:
        return self.inner.loads(message.removeprefix(b"wrapped:"))


def _with_formatter(broker: Queue) -> None:
    broker.with_formatter(JSONFormatter())


def _assigned(broker: Queue) -> None:
    broker.formatter = JSONFormatter()


def _default_again(broker: Queue) -> None:
    broker.formatter = ProxyFormatter(broker)


def _wrapped(broker: Queue) -> None:
    broker.formatter = Wrapper(broker.formatter)


def _wrapped_twice(broker: Queue) -> None:
    broker.formatter = Wrapper(Wrapper(broker.formatter))


def _unwrapped(broker: Queue) -> None:
    inner = getattr(broker.formatter, "inner", None)
    assert isinstance(inner, TaskiqFormatter)
    broker.formatter = inner


Replace = Callable[[Queue], None]
REPLACEMENTS = (_with_formatter, _assigned, _default_again, _wrapped, _wrapped_twice, _unwrapped)

each_replacement = pytest.mark.parametrize("replace", REPLACEMENTS, ids=lambda replace: replace.__name__.strip("_"))


def _forged() -> bytes:
    return write(TaskiqMessage(task_id="forged", task_name="clean", labels={}, args=[[1]], kwargs={}))


@each_replacement
async def test_a_formatter_replaced_before_the_start_lets_no_forged_message_run(
    process: Process, replace: Replace
) -> None:
    replace(process.broker)
    await process.broker.startup()
    await process.refuses(_forged(), "unsigned")


@each_replacement
async def test_a_formatter_replaced_after_the_start_lets_no_forged_message_run(
    process: Process, audit: AuditTrail, replace: Replace
) -> None:
    await process.broker.startup()
    replace(process.broker)
    audit.take()
    for _ in range(2):
        outcome = await process.broker.deliver(_forged())
        assert process.ran == []
        assert outcome.acks == 1
        assert [entry.outcome for entry in audit.take()] == ["deny"]
        if outcome.stored:
            assert isinstance(outcome.error, AuthenticationError)
    await process.serves()


@each_replacement
async def test_a_formatter_replaced_after_the_start_loses_no_genuine_message(
    process: Process, new_process: NewProcess, replace: Replace
) -> None:
    await process.broker.startup()
    api = new_process()
    if replace in (_wrapped, _wrapped_twice):
        api.broker.formatter = Wrapper(api.broker.formatter)
    replace(process.broker)
    for _ in range(2):
        await process.runs(await api.genuine())
        process.ran.clear()


async def test_a_formatter_replaced_after_the_start_sends_what_is_requeued_signed(process: Process) -> None:
    @process.broker.task("again", pipeline="data")
    async def again(context: Context = TaskiqDepends()) -> None:
        if not context.message.labels.get("X-Taskiq-requeue"):
            await context.requeue()
        process.ran.append(("again", None))

    await process.broker.startup()
    message = await process.kick(again)
    _assigned(process.broker)
    assert (await process.broker.deliver(message)).acks == 1
    await process.runs(process.broker.take())


async def test_a_message_that_comes_late_keeps_its_labels_for_other_middlewares(
    new_process: NewProcess, clock: Clock
) -> None:
    seen: list[dict[str, object]] = []

    class Reader(TaskiqMiddleware):
        def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
            seen.append(dict(message.labels))
            return message

    process = new_process(after=(Reader(),))
    labels = {"n": 7, "t": True, "queue_ttl": 10}
    messages = [await process.kick(process.clean.kicker().with_labels(**labels), [1]) for _ in range(2)]
    await process.broker.deliver(messages[0])
    clock.now += 1000
    _assigned(process.broker)
    assert (await process.broker.deliver(messages[1])).reason == "expired"
    assert [{name: labels[name] for name in ("n", "t", "queue_ttl")} for labels in seen] == [labels] * 2


async def test_a_message_that_is_denied_is_acked_also_where_the_format_has_become_pickle(
    process: Process, new_process: NewProcess
) -> None:
    lax = new_process(pipeline_acls={"data": {"execute": ["viewer"]}})
    message = await lax.kick(lax.clean, [1], principal=VIEWER)
    await process.broker.startup()
    process.broker.with_serializer(PickleSerializer())
    outcome = await process.broker.deliver(message)
    assert (outcome.acks, outcome.reason) == (1, "acl")


@each_replacement
async def test_a_formatter_replaced_after_the_start_leaves_no_label_of_ours_in_a_result(
    process: Process, new_process: NewProcess, replace: Replace
) -> None:
    await process.broker.startup()
    api = new_process()
    replace(process.broker)
    outcome = await process.broker.deliver(await api.genuine())
    assert not {PRINCIPAL, SIGNATURE} & outcome.result.labels.keys()


@each_replacement
@pytest.mark.parametrize("started", [False, True], ids=["before the start", "after the start"])
async def test_a_replaced_formatter_sends_signed_messages(process: Process, replace: Replace, started: bool) -> None:
    if started:
        await process.broker.startup()
    replace(process.broker)
    message = read((await process.genuine()).replace(b"wrapped:", b""))
    assert {PRINCIPAL, SIGNATURE} <= message.labels.keys()


@each_replacement
async def test_a_replaced_formatter_records_one_event_for_each_decision(
    process: Process, audit: AuditTrail, replace: Replace
) -> None:
    replace(process.broker)
    await process.broker.startup()
    audit.take()
    message = await process.genuine()
    assert [entry.event for entry in audit.take()] == ["task_enqueued"]
    await process.broker.deliver(message)
    assert [entry.event for entry in audit.take()] == ["task_authz_allow"]


@each_replacement
async def test_a_kick_through_a_replaced_formatter_leaves_nobody_acting(process: Process, replace: Replace) -> None:
    replace(process.broker)
    await process.genuine()
    assert acting.current() is None
    assert deliveries.current.get() is None


async def test_a_replaced_listen_hands_over_messages_that_are_known_to_be_kept(process: Process) -> None:
    await process.broker.startup()
    process.broker.listen = partial(Queue.listen, process.broker)  # type: ignore[method-assign]

    @process.broker.task("look", pipeline="data")
    async def look() -> bool:
        delivery = deliveries.current.get()
        return delivery is not None and delivery.kept

    outcome = await process.broker.deliver(await process.kick(look))
    assert outcome.result.return_value is True


async def test_a_replaced_serializer_lets_no_forged_message_run(process: Process) -> None:
    process.broker.with_serializer(ORJSONSerializer())
    await process.refuses(_forged(), "unsigned")


async def test_a_formatter_that_makes_pickle_sends_nothing_also_where_the_one_before_made_none(
    process: Process,
) -> None:
    class Pickles(TaskiqFormatter):
        def dumps(self, message: TaskiqMessage) -> BrokerMessage:
            data = pickle.dumps(message.model_dump())
            return BrokerMessage(
                task_id=message.task_id, task_name=message.task_name, message=data, labels=message.labels
            )

        def loads(self, message: bytes) -> TaskiqMessage:
            raise AssertionError("it is read")

    await process.genuine()
    process.broker.with_formatter(Pickles())
    for _ in range(2):
        with pytest.raises(ConfigurationError):
            await process.genuine()
    assert process.broker.sent == []


async def test_the_middleware_cannot_be_added_twice(process: Process) -> None:
    with pytest.raises(ConfigurationError):
        process.broker.add_middlewares(SecurityMiddleware(process.security))


async def test_a_middleware_cannot_be_given_to_another_broker(process: Process) -> None:
    (middleware,) = (other for other in process.broker.middlewares if isinstance(other, SecurityMiddleware))
    with pytest.raises(ConfigurationError):
        Queue().add_middlewares(middleware)


def _with_dependency(process: Process, resolved: list[str]) -> None:
    def dependency() -> str:
        resolved.append("dependency")
        return "resolved"

    @process.broker.task("dependent", pipeline="data")
    async def dependent(value: str = TaskiqDepends(dependency)) -> str:
        return value


def _assign(broker: Queue) -> None:
    broker.custom_dependency_context = {}


def _merge(broker: Queue) -> None:
    broker.custom_dependency_context = {**broker.custom_dependency_context, str: "added"}


def _add(broker: Queue) -> None:
    broker.add_dependency_context({str: "added"})


each_context = pytest.mark.parametrize("replace", [_assign, _merge, _add], ids=["assigned", "merged", "added to"])


@each_context
@pytest.mark.parametrize("started", [False, True], ids=["before the start", "after the start"])
async def test_with_replaced_first_level_dependencies_a_forged_message_still_resolves_none(
    process: Process, replace: Replace, started: bool
) -> None:
    resolved: list[str] = []
    _with_dependency(process, resolved)
    if started:
        await process.broker.startup()
    replace(process.broker)
    if not started:
        await process.broker.startup()
    forged = TaskiqMessage(task_id="forged", task_name="dependent", labels={}, args=[], kwargs={})
    await process.refuses(write(forged), "unsigned")
    assert resolved == []


@each_context
async def test_with_replaced_first_level_dependencies_an_allowed_message_resolves_its_own(
    process: Process, replace: Replace
) -> None:
    resolved: list[str] = []
    _with_dependency(process, resolved)
    replace(process.broker)
    with process.security.acting_as(PROCESSOR):
        await process.broker.local_task_registry["dependent"].kiq()
    outcome = await process.broker.deliver(process.broker.take())
    assert outcome.result.return_value == "resolved"
    assert resolved == ["dependency"]


async def test_overridden_dependencies_of_a_forged_message_are_not_resolved_either(process: Process) -> None:
    resolved: list[str] = []
    _with_dependency(process, resolved)

    def override() -> str:
        resolved.append("override")
        return "overridden"

    process.broker.dependency_overrides = dict.fromkeys(_dependencies(process), override)
    forged = TaskiqMessage(task_id="forged", task_name="dependent", labels={}, args=[], kwargs={})
    await process.refuses(write(forged), "unsigned")
    assert resolved == []


def _dependencies(process: Process) -> list[object]:
    task = process.broker.local_task_registry["dependent"]
    return [default.dependency for default in task.original_func.__defaults__ or ()]


@pytest.mark.parametrize("ack_type", ["never", "", "MANUALLY", "when_saved ", "1"])
async def test_a_signed_ack_type_that_taskiq_does_not_know_is_refused(process: Process, ack_type: str) -> None:
    message = await process.kick(process.clean.kicker().with_labels(ack_type=ack_type), [1])
    await process.refuses(message, "invalid_label", AccessDeniedError)


@pytest.mark.parametrize("ack_type", [7, 1.5, True, b"when_saved"])
async def test_a_signed_ack_type_that_is_no_string_is_refused(process: Process, ack_type: object) -> None:
    kicker = process.clean.kicker()
    kicker.labels["ack_type"] = ack_type
    await process.refuses(await process.kick(kicker, [1]), "invalid_label", AccessDeniedError)


@pytest.mark.parametrize("ack_type", ["never", None, [], {}, 7])
async def test_an_ack_type_in_a_forged_message_is_of_no_use(process: Process, ack_type: object) -> None:
    await process.refuses(write(relabelled(read(_forged()), "ack_type", ack_type)), "unsigned")


async def test_what_is_put_back_is_not_wrapped_again(process: Process, new_process: NewProcess) -> None:
    await process.broker.startup()
    api, broker = new_process(), process.broker
    kick, overrides = broker.kick, broker.dependency_overrides
    for _ in range(3):
        broker.kick, broker.dependency_overrides = broker.__class__.kick.__get__(broker), {}  # type: ignore[method-assign]
        await process.runs(await api.genuine())
        process.ran.clear()
        broker.kick, broker.dependency_overrides = kick, overrides  # type: ignore[method-assign]
        await process.runs(await api.genuine())
        process.ran.clear()
        assert (broker.kick, broker.dependency_overrides) == (kick, overrides)
        assert broker.dependency_overrides is overrides


class Bomb:
    """Explodes where it is unpickled."""

    exploded = False

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return _explode, ()


def _explode() -> None:
    Bomb.exploded = True


async def test_a_worker_whose_format_becomes_pickle_later_on_unpickles_nothing(process: Process) -> None:
    process.broker.with_serializer(PickleSerializer())
    outcome = await process.broker.deliver(pickle.dumps(Bomb()))
    assert outcome.acks == 1
    assert not Bomb.exploded
