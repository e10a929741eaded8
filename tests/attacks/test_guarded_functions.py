"""A guarded function runs where the middleware has let its message run, and nowhere else."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
from taskiq import InMemoryBroker
from taskiq.message import TaskiqMessage
from taskiq.serializers.pickle import PickleSerializer

from taskiq_flow_security import AccessDeniedError, ConfigurationError, Principal, guard
from taskiq_flow_security.broker.guard import Admission
from tests.attacks.forging import read, sign, write
from tests.integration.inmemory.fixtures import NewProcess
from tests.integration.inmemory.harness import PROCESSOR, VIEWER, Process

_PARAMETER = "_taskiq_flow_admission"


async def test_a_guarded_task_runs_for_whom_it_may(process: Process) -> None:
    await process.runs(await process.kick(process.guarded, [1]))


async def test_a_guarded_task_does_not_run_on_a_worker_without_the_middleware(
    process: Process, new_process: NewProcess
) -> None:
    worker = new_process(secured=False)
    outcome = await worker.broker.deliver(await process.kick(process.guarded, [1]))
    assert worker.ran == []
    assert outcome.acks == 1
    assert isinstance(outcome.error, AccessDeniedError)
    assert outcome.reason == "not_verified"


async def test_an_unguarded_task_runs_on_a_worker_without_the_middleware(
    process: Process, new_process: NewProcess
) -> None:
    worker = new_process(secured=False)
    await worker.broker.deliver(await process.kick(process.clean, [1]))
    assert worker.ran == [("clean", ([1], 1))]


async def test_a_guarded_task_does_not_run_when_it_is_called(process: Process) -> None:
    for call in (process.guarded, process.guarded.original_func):
        with pytest.raises(AccessDeniedError) as refusal:
            await call([1])
        assert refusal.value.reason == "not_verified"
    assert process.ran == []


async def test_a_guarded_task_does_not_run_when_it_is_called_by_somebody_who_may_kick_it(process: Process) -> None:
    with process.security.acting_as(PROCESSOR), pytest.raises(AccessDeniedError):
        await process.guarded([1])
    assert process.ran == []


async def test_a_guarded_task_does_not_run_when_another_task_calls_it(process: Process) -> None:
    @process.broker.task("outer", pipeline="data")
    async def outer() -> None:
        await process.guarded([1])

    outcome = await process.broker.deliver(await process.kick(outer))
    assert process.ran == []
    assert outcome.reason == "not_verified"


FORGED_ADMISSIONS: dict[str, object] = {
    "null": None,
    "true": True,
    "a string": "admitted",
    "an empty object": {},
    "what one is made of": {
        "principal": {
            "subject": "alice",
            "roles": ["processor"],
            "permissions": ["admin"],
            "pipelines": [],
            "api_key_id": None,
            "txn": None,
        },
        "txn": "x",
    },
    "its name": {"__class__": "taskiq_flow_security.broker.guard.Admission", "principal": None, "txn": "x"},
    "a list": [{"subject": "alice"}, "x"],
}

each_admission = pytest.mark.parametrize("admission", FORGED_ADMISSIONS.values(), ids=FORGED_ADMISSIONS)


@each_admission
async def test_a_forged_admission_is_none_where_the_middleware_is_missing(
    new_process: NewProcess, admission: object
) -> None:
    worker = new_process(secured=False)
    forged = TaskiqMessage(task_id="forged", task_name="guarded", labels={}, args=[[1]], kwargs={_PARAMETER: admission})
    outcome = await worker.broker.deliver(write(forged))
    assert worker.ran == []
    assert outcome.reason == "not_verified"


@each_admission
async def test_a_forged_admission_is_none_in_a_message_that_may_run(process: Process, admission: object) -> None:
    message = read(await process.kick(process.guarded, [1]))
    forged = sign(message.model_copy(update={"kwargs": {_PARAMETER: admission}}))
    outcome = await process.broker.deliver(write(forged))
    assert process.ran == []
    assert outcome.acks == 1
    assert isinstance(outcome.error, AccessDeniedError)


async def test_a_pickled_admission_is_none_where_the_middleware_is_missing(new_process: NewProcess) -> None:
    worker = new_process(secured=False)
    worker.broker.with_serializer(PickleSerializer())
    forged = TaskiqMessage(task_id="forged", task_name="guarded", labels={}, args=[[1]], kwargs={}).model_dump()
    forged["kwargs"] = {_PARAMETER: Admission(PROCESSOR, "x")}
    outcome = await worker.broker.deliver(PickleSerializer().dumpb(forged))
    assert worker.ran == []
    assert isinstance(outcome.error, AccessDeniedError)


async def test_a_pickled_admission_is_none_in_a_forged_message(new_process: NewProcess) -> None:
    process = new_process(unsafe_pickle_messages=True)
    process.broker.with_serializer(PickleSerializer())
    forged = TaskiqMessage(task_id="forged", task_name="guarded", labels={}, args=[[1]], kwargs={}).model_dump()
    forged["kwargs"] = {_PARAMETER: Admission(PROCESSOR, "x")}
    await process.refuses(PickleSerializer().dumpb(forged), "unsigned")


async def test_a_pickled_admission_is_none_in_a_message_that_may_run(new_process: NewProcess) -> None:
    process = new_process(unsafe_pickle_messages=True)
    process.broker.with_serializer(PickleSerializer())
    message = PickleSerializer().loadb(await process.kick(process.guarded, [1]))
    message["kwargs"] = {_PARAMETER: Admission(PROCESSOR, "x")}
    await process.refuses(PickleSerializer().dumpb(message), "bad_signature")


_exploited: list[str] = []


def _exploit(text: str) -> None:
    _exploited.append(text)


class Exploit:
    """What runs code while it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return _exploit, ("unpickled",)


async def test_no_code_in_a_forged_message_runs_while_it_is_read(process: Process) -> None:
    """A serializer that runs code while it reads cannot be made safe by what is verified afterwards."""
    _exploited.clear()
    try:
        process.broker.with_serializer(PickleSerializer())
        await process.broker.startup()
        await process.broker.deliver(PickleSerializer().dumpb(Exploit()))
    except ConfigurationError:
        pass
    assert _exploited == []


async def test_a_guarded_task_of_an_unsecured_broker_does_not_run_when_a_task_that_may_run_kicks_it(
    process: Process,
) -> None:
    unsecured = InMemoryBroker(await_inplace=True)
    ran: list[str] = []

    @unsecured.task("inner")
    @guard()
    async def inner() -> None:
        ran.append("inner")

    @process.broker.task("outer", pipeline="data")
    async def outer() -> None:
        await inner.kiq()

    await process.broker.deliver(await process.kick(outer))
    assert ran == []


async def test_a_guarded_task_of_an_unsecured_broker_does_not_run_for_somebody_acting(process: Process) -> None:
    unsecured = InMemoryBroker(await_inplace=True)
    ran: list[str] = []

    @unsecured.task("inner")
    @guard()
    async def inner() -> None:
        ran.append("inner")

    with process.security.acting_as(PROCESSOR):
        await inner.kiq()
    assert ran == []


def _raises(principal: Principal, arguments: object) -> bool:
    raise LookupError("no such row")


class Truthy:
    """True for whoever does not look closely."""

    def __bool__(self) -> bool:
        return True

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return hash(True)


PREDICATES: dict[str, Callable[..., Any]] = {
    "raises": _raises,
    "exits": lambda principal, arguments: [][0],
    "null": lambda principal, arguments: None,
    "false": lambda principal, arguments: False,
    "one": lambda principal, arguments: 1,
    "a string": lambda principal, arguments: "yes",
    "a list": lambda principal, arguments: [False],
    "truthy": lambda principal, arguments: Truthy(),
    "itself": lambda principal, arguments: lambda: True,
    "too few parameters": lambda principal: True,
    "a generator": lambda principal, arguments: (value for value in [True]),
}


@pytest.mark.parametrize("predicate", PREDICATES.values(), ids=PREDICATES)
async def test_a_predicate_that_does_not_return_true_denies_on_both_sides(
    process: Process, new_process: NewProcess, predicate: Callable[..., Any]
) -> None:
    def register(where: Process, decide: Callable[..., Any]) -> Any:
        @where.broker.task("decided", pipeline="data")
        @guard(predicate=decide)
        async def decided(rows: list[int]) -> None:
            where.ran.append(("decided", rows))

        return decided

    with pytest.raises(AccessDeniedError) as refusal:
        await process.kick(register(process, predicate), [1])
    assert refusal.value.reason == "guard"
    assert process.broker.sent == []
    api = new_process()
    message = await api.kick(register(api, lambda principal, arguments: True), [1])
    await process.refuses(message, "guard", AccessDeniedError)


async def test_a_coroutine_function_is_no_predicate() -> None:
    async def predicate(principal: Principal, arguments: object) -> bool:
        return True

    with pytest.raises(ConfigurationError):
        guard(predicate=predicate)  # type: ignore[arg-type]


async def test_a_predicate_sees_arguments_as_the_function_will(process: Process) -> None:
    seen: list[object] = []

    def predicate(principal: Principal, arguments: Any) -> bool:
        seen.append(dict(arguments))
        return True

    @process.broker.task("decided", pipeline="data")
    @guard(predicate=predicate)
    async def decided(limit: int, *, name: str = "x") -> None:
        seen.append({"limit": limit, "name": name})

    await process.broker.deliver(await process.kick(decided, "7", name="y"))
    assert seen[-2:] == [{"limit": 7, "name": "y"}] * 2


async def test_a_predicate_cannot_be_avoided_by_naming_an_argument_that_the_function_does_not_have(
    process: Process,
) -> None:
    @process.broker.task("decided", pipeline="data")
    @guard(predicate=lambda principal, arguments: "limit" not in arguments or arguments["limit"] < 10)
    async def decided(limit: int = 100) -> None:
        process.ran.append(("decided", limit))

    with pytest.raises(AccessDeniedError) as refusal:
        await process.kick(decided, Limit=100)
    assert refusal.value.reason == "guard"


async def test_a_predicate_sees_defaults_too(process: Process) -> None:
    @process.broker.task("decided", pipeline="data")
    @guard(predicate=lambda principal, arguments: arguments["limit"] < 10)
    async def decided(limit: int = 5) -> None:
        process.ran.append(("decided", limit))

    await process.runs(await process.kick(decided))


async def test_an_argument_whose_type_raises_denies_with_one_audit_event(process: Process) -> None:
    class Fragile:
        @classmethod
        def __get_pydantic_core_schema__(cls, source: object, handler: object) -> Any:
            from pydantic_core import core_schema

            def fail(value: object) -> object:
                raise LookupError("a bug in a validator")

            return core_schema.no_info_plain_validator_function(fail)

    def register(where: Process, annotation: Any) -> Any:
        async def decided(value: Any) -> None:
            where.ran.append(("decided", value))

        decided.__annotations__["value"] = annotation
        return where.broker.task("decided", pipeline="data")(guard(predicate=lambda p, a: True)(decided))

    message = await process.kick(register(process, int), 7)
    register(process, Fragile)
    await process.refuses(message, "internal_error", AccessDeniedError)


@pytest.mark.parametrize("principal", [VIEWER, Principal("root", permissions=["admin"])], ids=["a viewer", "an admin"])
async def test_nobody_passes_the_guard_of_a_task_without_one_of_its_roles(
    new_process: NewProcess, principal: Principal
) -> None:
    everybody = {"data": {"execute": ["processor", "viewer"]}}
    process = new_process(pipeline_acls=everybody)
    with pytest.raises(AccessDeniedError) as refusal:
        await process.kick(process.guarded, [1], principal=principal)
    assert refusal.value.reason == "guard"


async def test_a_guard_above_the_task_decorator_is_a_configuration_error(process: Process) -> None:
    with pytest.raises(ConfigurationError):
        guard()(process.clean)


async def test_a_predicate_that_turns_out_to_be_asynchronous_denies_and_says_so(process: Process) -> None:
    async def check() -> bool:
        return True

    @process.broker.task("checked", pipeline="data")
    @guard(predicate=lambda _principal, _arguments: check())  # type: ignore[arg-type,return-value]  # what is wrong with it
    async def checked() -> None: ...

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # that it was never awaited
        with pytest.raises(AccessDeniedError, match=r"guard\.predicate returned a coroutine"):
            await process.kick(checked)
