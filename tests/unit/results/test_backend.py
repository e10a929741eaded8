"""A protected result backend gives back what was stored through it, and nothing else."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from taskiq import AsyncBroker, InMemoryBroker, TaskiqResult
from taskiq.abc.result_backend import AsyncResultBackend
from taskiq.abc.serializer import TaskiqSerializer
from taskiq.brokers.inmemory_broker import InmemoryResultBackend
from taskiq.depends.progress_tracker import TaskProgress
from taskiq.result_backends.dummy import DummyResultBackend
from taskiq.serializers import (
    CBORSerializer,
    JSONSerializer,
    MSGPackSerializer,
    ORJSONSerializer,
    PickleSerializer,
)

from taskiq_flow_security import (
    AccessDeniedError,
    AuthenticationError,
    ConfigurationError,
    FlowSecurity,
    ResultVerificationError,
    SecurityMiddleware,
    TaskiqFlowConfig,
)
from tests.shelf import Drawers, ShelfResultBackend, progress_key
from tests.unit.tokens.keys import PRIVATE, private_pem, public_pem

SECRET = "the-secret-of-this-deployment-0123456789"
SERIALIZERS = [PickleSerializer, JSONSerializer, ORJSONSerializer, MSGPackSerializer, CBORSerializer]

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
)


def security(**changes: Any) -> FlowSecurity:
    return FlowSecurity(TaskiqFlowConfig(**({"jwt_secret": SECRET} | changes)))


def result_of(value: object = 6, **fields: Any) -> TaskiqResult[Any]:
    return TaskiqResult(**({"is_err": False, "return_value": value, "execution_time": 0.5} | fields))


def protected(
    drawers: Drawers, *, serializer: TaskiqSerializer | None = None, **changes: Any
) -> AsyncResultBackend[Any]:
    return security(**changes).protect_results(ShelfResultBackend(drawers, serializer=serializer))


async def refusal(backend: AsyncResultBackend[Any], task_id: str = "task") -> str:
    """Why the result of a task is not believed."""
    result = await backend.get_result(task_id)
    assert result.is_err
    assert result.return_value is None
    with pytest.raises(ResultVerificationError) as error:
        result.raise_for_error()
    return error.value.reason


@pytest.mark.parametrize("serializer", SERIALIZERS)
async def test_what_is_stored_comes_back_with_every_serializer(serializer: type[TaskiqSerializer]) -> None:
    drawers: Drawers = {}
    stored = result_of({"rows": [1, "zwei"]}, labels={"pipeline": "data"})
    await protected(drawers, serializer=serializer()).set_result("task", stored)
    assert await protected(drawers, serializer=serializer()).get_result("task") == stored


@given(json_values)
def test_any_value_comes_back(value: Any) -> None:
    async def there_and_back() -> Any:
        backend = protected({}, serializer=JSONSerializer())
        await backend.set_result("task", result_of(value))
        return (await backend.get_result("task")).return_value

    assert asyncio.run(there_and_back()) == value


async def test_progress_comes_back_and_is_none_where_none_was_stored() -> None:
    backend = protected({})
    assert await backend.get_progress("task") is None
    await backend.set_progress("task", TaskProgress(state="halfway", meta={"rows": 5}))
    assert await backend.get_progress("task") == TaskProgress(state="halfway", meta={"rows": 5})


async def test_the_errors_of_tasks_and_refusals_come_back_as_their_own_types() -> None:
    backend = protected({})
    for error in (AccessDeniedError("acl", "Why."), ValueError("no rows")):
        await backend.set_result("task", result_of(None, is_err=True, error=error))
        arrived = (await backend.get_result("task")).error
        assert type(arrived) is type(error)
        assert arrived is not None
        assert arrived.args == error.args


async def test_logs_come_only_if_they_are_asked_for() -> None:
    backend = protected({})
    await backend.set_result("task", result_of(log="a line"))
    assert (await backend.get_result("task")).log is None
    assert (await backend.get_result("task", with_logs=True)).log == "a line"


async def test_a_backend_that_deletes_what_is_read_still_does() -> None:
    backend = security().protect_results(ShelfResultBackend({}, keep_results=False))
    assert not await backend.is_result_ready("task")
    await backend.set_result("task", result_of())
    assert await backend.is_result_ready("task")
    assert (await backend.get_result("task")).return_value == 6
    assert not await backend.is_result_ready("task")


async def test_what_the_backend_raises_reaches_the_caller() -> None:
    with pytest.raises(KeyError):
        await protected({}).get_result("nowhere")
    with pytest.raises(OverflowError):
        await protected({}, serializer=MSGPackSerializer()).set_result("task", result_of(2**70))


async def test_results_read_at_the_same_time_are_each_taken_for_what_they_are() -> None:
    backend = protected({})
    names = [f"task-{number}" for number in range(50)]
    await asyncio.gather(*(backend.set_result(name, result_of(name)) for name in names))
    read = await asyncio.gather(*(backend.get_result(name) for name in names))
    assert [result.return_value for result in read] == names


async def test_workers_with_keys_of_their_own_are_believed_by_who_has_the_public_ones() -> None:
    api = {"kid": "api", "alg": "EdDSA", "uses": ["issue", "send"]}
    worker = {"kid": "worker", "alg": "ES256", "uses": ["send"]}
    pems = {"api": PRIVATE["EdDSA"], "worker": PRIVATE["ES256"]}

    def keys(own: str) -> list[dict[str, Any]]:
        return [
            key | ({"private_key": private_pem(pem)} if key["kid"] == own else {"public_key": public_pem(pem)})
            for key, pem in ((key, pems[str(key["kid"])]) for key in (api, worker))
        ]

    drawers: Drawers = {}
    await protected(drawers, signing_keys=keys("worker"), jwt_secret=None).set_result("task", result_of())
    assert (await protected(drawers, signing_keys=keys("api"), jwt_secret=None).get_result("task")).return_value == 6
    ignorant = protected(drawers, signing_keys=keys("api")[:1], jwt_secret=None)
    assert await refusal(ignorant) == "unknown_key"


# Rolling it out


@pytest.mark.parametrize("serializer", SERIALIZERS)
async def test_a_monitoring_process_reads_what_unprotected_workers_store(serializer: type[TaskiqSerializer]) -> None:
    drawers: Drawers = {}
    old = ShelfResultBackend(drawers, serializer=serializer())
    await old.set_result("task", result_of())
    await old.set_progress("task", TaskProgress(state="halfway", meta=None))
    backend = protected(drawers, serializer=serializer(), enforcement="monitor")
    assert (await backend.get_result("task")).return_value == 6
    assert (await backend.get_progress("task")) == TaskProgress(state="halfway", meta=None)


async def test_a_process_without_protection_reads_what_protected_workers_pickle() -> None:
    drawers: Drawers = {}
    backend = protected(drawers)
    await backend.set_result("task", result_of())
    await backend.set_progress("task", TaskProgress(state="halfway", meta=None))
    old = ShelfResultBackend(drawers)
    assert (await old.get_result("task")).return_value == 6
    assert await old.get_progress("task") == TaskProgress(state="halfway", meta=None)


@pytest.mark.parametrize("serializer", SERIALIZERS)
async def test_where_security_is_off_signed_results_are_read_and_unsigned_ones_are_stored(
    serializer: type[TaskiqSerializer],
) -> None:
    drawers: Drawers = {}
    await protected(drawers, serializer=serializer()).set_result("task", result_of())
    backend = protected(drawers, serializer=serializer(), security_enabled=False)
    assert (await backend.get_result("task")).return_value == 6
    await backend.set_result("task", result_of(7))
    assert (await ShelfResultBackend(drawers, serializer=serializer()).get_result("task")).return_value == 7


async def test_a_monitoring_process_records_what_it_believes_without_proof(caplog: pytest.LogCaptureFixture) -> None:
    drawers: Drawers = {}
    await ShelfResultBackend(drawers).set_result("task", result_of())
    backend = protected(drawers, enforcement="monitor")
    assert "Results that are not signed are unpickled" in caplog.text
    caplog.clear()
    await backend.get_result("task")
    [record] = [record for record in caplog.records if record.name == "taskiq_flow.audit"]
    assert (record.message, record.outcome, record.reason, record.rule, record.task_id) == (  # type: ignore[attr-defined]  # fields of audit records
        "result_shadow_deny",
        "deny",
        "unsigned",
        "result",
        "task",
    )


async def test_monitoring_lets_what_was_altered_or_exchanged_pass_too() -> None:
    drawers: Drawers = {}
    writer = protected(drawers, principal_audience="staging", serializer=JSONSerializer())
    await writer.set_result("other", result_of())
    drawers["task"] = drawers["other"].replace(b"6", b"7", 1)
    backend = protected(drawers, serializer=JSONSerializer(), enforcement="monitor")
    assert (await backend.get_result("task")).return_value == 7


# What is refused is recorded


async def test_each_refusal_is_an_audit_event(caplog: pytest.LogCaptureFixture) -> None:
    drawers: Drawers = {}
    await ShelfResultBackend(drawers).set_result("task", result_of())
    drawers[progress_key("task")] = b"{}"
    backend = protected(drawers)
    caplog.clear()
    assert await refusal(backend) == "unsigned"
    with pytest.raises(ResultVerificationError) as error:
        await backend.get_progress("task")
    assert error.value.reason == "unsigned"
    records = [record for record in caplog.records if record.name == "taskiq_flow.audit"]
    assert [(record.message, record.rule, record.task_id) for record in records] == [  # type: ignore[attr-defined]  # fields of audit records
        ("result_signature_fail", "result", "task"),
        ("result_signature_fail", "progress", "task"),
    ]


async def test_a_refusal_that_cannot_be_recorded_is_one_all_the_same() -> None:
    class FullDisk(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise OSError("no space left")

    drawers: Drawers = {}
    await ShelfResultBackend(drawers).set_result("task", result_of())
    logger, disk = logging.getLogger("taskiq_flow.audit"), FullDisk()
    logger.addHandler(disk)
    try:
        assert await refusal(protected(drawers)) == "unsigned"
    finally:
        logger.removeHandler(disk)


async def test_the_error_holds_nothing_of_what_was_read() -> None:
    backend = protected({"task": b"planted"})
    error = (await backend.get_result("task")).error
    assert error is not None
    assert "planted" not in repr(error) + str(error)
    assert error.__traceback__ is None
    assert error.__context__ is None


# What cannot be protected


class ObjectBackend(ShelfResultBackend):
    """Has no serializer."""

    def __init__(self) -> None:
        super().__init__({})
        del self.serializer


class FixedBackend(ShelfResultBackend):
    """Lets nobody change its serializer."""

    serializer = property(lambda self: PickleSerializer())

    def __init__(self) -> None:
        self.drawers = {}


class JsonModuleBackend(ShelfResultBackend):
    """Has a serializer by name only."""

    def __init__(self) -> None:
        super().__init__({})
        self.serializer = json  # type: ignore[assignment]  # what is tested


@pytest.mark.parametrize("backend", [ObjectBackend, FixedBackend, JsonModuleBackend, DummyResultBackend])
def test_a_backend_that_cannot_be_protected_is_refused_and_the_mend_named(
    backend: type[AsyncResultBackend[Any]],
) -> None:
    with pytest.raises(ConfigurationError, match=f"{backend.__name__} cannot be protected.*Use a backend that"):
        security().protect_results(backend())


def test_where_security_is_off_any_backend_will_do() -> None:
    for backend in (ObjectBackend, FixedBackend, JsonModuleBackend, DummyResultBackend):
        security(security_enabled=False).protect_results(backend())


def test_a_backend_is_protected_once() -> None:
    shelf = ShelfResultBackend({})
    backend = security().protect_results(shelf)
    for again in (shelf, backend):
        with pytest.raises(ConfigurationError):
            security().protect_results(again)


class SecretiveBackend(ShelfResultBackend):
    """Does not use the serializer that it shows."""

    def __init__(self) -> None:
        super().__init__({})
        self.results: dict[str, Any] = {}

    async def set_result(self, task_id: str, result: TaskiqResult[Any]) -> None:
        self.results[task_id] = result

    async def get_result(self, task_id: str, with_logs: bool = False) -> TaskiqResult[Any]:
        result: TaskiqResult[Any] = self.results[task_id]
        return result


async def test_what_has_not_passed_the_serializer_is_neither_stored_without_a_word_nor_believed() -> None:
    inner = SecretiveBackend()
    backend = security().protect_results(inner)
    with pytest.raises(ConfigurationError, match="SecretiveBackend cannot be protected"):
        await backend.set_result("task", result_of())
    inner.results["task"] = result_of()
    assert await refusal(backend) == "unsigned"


class PiecemealBackend(ShelfResultBackend):
    """Stores a result in two pieces."""

    async def set_result(self, task_id: str, result: TaskiqResult[Any]) -> None:
        await super().set_result(task_id, result)
        self.drawers[f"{task_id}/labels"] = self.serializer.dumpb(result.labels)


async def test_a_result_in_several_pieces_is_refused_because_they_could_be_exchanged() -> None:
    with pytest.raises(ConfigurationError, match="several pieces"):
        await security().protect_results(PiecemealBackend({})).set_result("task", result_of())


class ForgivingBackend(ShelfResultBackend):
    """Makes something of every error."""

    async def get_result(self, task_id: str, with_logs: bool = False) -> TaskiqResult[Any]:
        try:
            return await super().get_result(task_id, with_logs)
        except Exception:
            return result_of("made up")


class CoarseBackend(ShelfResultBackend):
    """Makes another error of every error."""

    async def get_result(self, task_id: str, with_logs: bool = False) -> TaskiqResult[Any]:
        try:
            return await super().get_result(task_id, with_logs)
        except Exception as error:
            raise LookupError from error


@pytest.mark.parametrize("backend", [ForgivingBackend, CoarseBackend])
async def test_a_refusal_reaches_the_waiter_whatever_the_backend_makes_of_it(backend: type[ShelfResultBackend]) -> None:
    assert await refusal(security().protect_results(backend({"task": b"forged"}))) == "unsigned"


async def test_a_serializer_that_is_set_later_is_wrapped_as_well() -> None:
    drawers: Drawers = {}
    shelf = ShelfResultBackend(drawers)
    backend = security().protect_results(shelf)
    shelf.serializer = JSONSerializer()
    await backend.set_result("task", result_of())
    assert drawers["task"].startswith(b'{"is_err"')
    assert (await backend.get_result("task")).return_value == 6
    shelf.serializer = PickleSerializer()
    drawers["task"] = b"not signed"
    assert await refusal(backend) == "unsigned"


@pytest.mark.parametrize("kind", [bytearray, memoryview])
async def test_a_backend_may_return_any_type_of_bytes(kind: type[Any]) -> None:
    drawers: Drawers = {}
    backend = protected(drawers, serializer=JSONSerializer())
    await backend.set_result("task", result_of())
    drawers["task"] = kind(drawers["task"])
    assert (await backend.get_result("task")).return_value == 6


async def test_the_inner_backend_can_no_longer_be_used_on_its_own() -> None:
    shelf = ShelfResultBackend({})
    await security().protect_results(shelf).set_result("task", result_of())
    with pytest.raises(ConfigurationError, match="used from outside"):
        await shelf.get_result("task")
    with pytest.raises(ConfigurationError, match="used from outside"):
        await shelf.set_result("task", result_of())


# TaskIQ's in-memory backend


async def test_the_in_memory_backend_keeps_objects_as_they_are() -> None:
    backend = security().protect_results(InmemoryResultBackend[Any]())
    value = object()
    await backend.set_result("task", result_of(value))
    assert await backend.is_result_ready("task")
    assert (await backend.get_result("task")).return_value is value
    await backend.set_progress("task", TaskProgress(state="halfway", meta=value))
    progress = await backend.get_progress("task")
    assert progress is not None
    assert progress.meta is value


async def test_of_the_in_memory_backend_too_nothing_unsigned_or_exchanged_is_believed() -> None:
    inner = InmemoryResultBackend[Any]()
    backend = security().protect_results(inner)
    await backend.set_result("one", result_of(1))
    await backend.set_progress("one", TaskProgress(state="halfway", meta=None))
    inner.results["two"] = inner.results["one"]
    inner.results["three"] = result_of()
    inner.results["one"] = inner.progress["one"]  # type: ignore[assignment]  # what is tested
    assert [await refusal(backend, name) for name in ("one", "two", "three")] == [
        "wrong_type",
        "wrong_task",
        "unsigned",
    ]


async def test_the_in_memory_backend_can_be_monitored_and_switched_off() -> None:
    inner = InmemoryResultBackend[Any]()
    await security().protect_results(inner).set_result("signed", result_of())
    inner.results["unsigned"] = result_of()
    for changes in ({"enforcement": "monitor"}, {"security_enabled": False}):
        backend = security(**changes).protect_results(inner)
        for name in ("signed", "unsigned"):
            assert (await backend.get_result(name)).return_value == 6


# Start-up


def verifying_only(**changes: Any) -> FlowSecurity:
    key = {"kid": "one", "alg": "HS256", "uses": ["verify"], "secret": SECRET}
    return security(signing_keys=[key], **changes)


async def start(broker: AsyncBroker, security: FlowSecurity) -> None:
    await broker.with_middlewares(SecurityMiddleware(security)).startup()


async def test_a_worker_that_cannot_sign_results_does_not_start_and_an_api_does() -> None:
    api = verifying_only()
    await start(InMemoryBroker().with_result_backend(api.protect_results(ShelfResultBackend({}))), api)
    worker = verifying_only()
    broker = InMemoryBroker().with_result_backend(worker.protect_results(ShelfResultBackend({})))
    broker.is_worker_process = True
    with pytest.raises(ConfigurationError, match="cannot sign results"):
        await start(broker, worker)


async def test_who_cannot_sign_stores_nothing() -> None:
    drawers: Drawers = {}
    backend = verifying_only().protect_results(ShelfResultBackend(drawers))
    with pytest.raises(AuthenticationError):
        await backend.set_result("task", result_of())
    assert drawers == {}


async def test_while_monitoring_who_cannot_sign_stores_unsigned_results() -> None:
    monitoring = verifying_only(enforcement="monitor")
    drawers: Drawers = {}
    broker = InMemoryBroker().with_result_backend(monitoring.protect_results(ShelfResultBackend(drawers)))
    broker.is_worker_process = True
    await start(broker, monitoring)
    await broker.result_backend.set_result("task", result_of())
    assert (await ShelfResultBackend(drawers).get_result("task")).return_value == 6
    assert await refusal(protected(drawers)) == "unsigned"


async def test_a_secured_broker_warns_where_anybodys_results_are_believed(caplog: pytest.LogCaptureFixture) -> None:
    own = security()
    await start(InMemoryBroker().with_result_backend(ShelfResultBackend({})), own)
    assert "Results are not protected" in caplog.text


async def test_a_secured_broker_does_not_warn_where_nobody_else_can_write(caplog: pytest.LogCaptureFixture) -> None:
    own = security()
    for backend in (
        InmemoryResultBackend[Any](),
        DummyResultBackend[Any](),
        own.protect_results(ShelfResultBackend({})),
    ):
        await start(InMemoryBroker().with_result_backend(backend), own)
    assert "Results are not protected" not in caplog.text
