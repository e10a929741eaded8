"""Write access to the result backend gives nothing: no forged, altered or exchanged result is believed or decoded."""

from __future__ import annotations

import asyncio
import os
import pickle
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from time import monotonic
from typing import Any
from uuid import uuid4

import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st
from taskiq import AsyncResultBackend, AsyncTaskiqTask, TaskiqResult
from taskiq.abc.serializer import TaskiqSerializer
from taskiq.depends.progress_tracker import TaskProgress
from taskiq.serializers import CBORSerializer, JSONSerializer, PickleSerializer

from taskiq_flow_security import ResultVerificationError
from taskiq_flow_security.results.seal import MARK
from taskiq_flow_security.tokens import jws
from taskiq_flow_security.tokens.keyring import Keyring
from taskiq_flow_security.tokens.keys import Use
from taskiq_flow_security.tokens.message_signature import MessageSigner
from taskiq_flow_security.tokens.result_signature import Binding, Purpose
from tests.attacks.forging import SIGNATURE, read, write
from tests.integration.inmemory.fixtures import NewProcess
from tests.integration.inmemory.harness import SECRET, STRANGER_SECRET, AuditTrail, Process
from tests.result_stores import STORES, ResultStore, Shelf
from tests.services import require
from tests.shelf import ShelfResultBackend

RESULT: TaskiqResult[Any] = TaskiqResult(is_err=False, return_value=[1, 2, 3], execution_time=0.5)
PROGRESS: TaskProgress[Any] = TaskProgress(state="halfway", meta={"rows": 5})


class Bomb:
    """Runs code in whoever unpickles it: makes a file."""

    def __init__(self, canary: Path) -> None:
        self._canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._canary),)


@pytest_asyncio.fixture(params=STORES)
async def store(request: pytest.FixtureRequest) -> AsyncIterator[ResultStore]:
    """A store of each kind."""
    kind = STORES[request.param]
    if kind.service is not None:
        require(kind.service)
    store = kind()
    yield store
    await store.remove()


@asynccontextmanager
async def opened(process: Process, store: ResultStore, **options: Any) -> AsyncIterator[AsyncResultBackend[Any]]:
    """The protected result backend of a process."""
    backend = process.security.protect_results(store.backend(**options))
    await backend.startup()
    try:
        yield backend
    finally:
        await backend.shutdown()


@pytest_asyncio.fixture
async def results(process: Process, store: ResultStore) -> AsyncIterator[AsyncResultBackend[Any]]:
    """The waiter's result backend, with a genuine result for the task ``genuine``."""
    async with opened(process, store) as backend:
        await backend.set_result("genuine", RESULT)
        await backend.set_progress("genuine", PROGRESS)
        yield backend


async def refused(process: Process, backend: AsyncResultBackend[Any], task_id: str, reason: str) -> None:
    """Check that the waiter gets a typed error at once, and the audit log one event."""
    process.audit.take()
    task: AsyncTaskiqTask[Any] = AsyncTaskiqTask(task_id, backend, return_type=list)
    start = monotonic()
    result = await task.wait_result(timeout=30)
    assert monotonic() - start < 10
    assert result.is_err
    assert result.return_value is None
    with pytest.raises(ResultVerificationError) as refusal:
        result.raise_for_error()
    assert refusal.value.reason == reason
    assert [(entry.event, entry.outcome, entry.reason, entry.task_id) for entry in process.audit.take()] == [
        ("result_signature_fail", "deny", reason, task_id)
    ]


async def test_what_is_genuine_is_believed(process: Process, results: AsyncResultBackend[Any]) -> None:
    process.audit.take()
    assert await AsyncTaskiqTask("genuine", results).wait_result(timeout=30) == RESULT
    assert await results.get_progress("genuine") == PROGRESS
    assert process.audit.take() == []


async def test_a_pickle_bomb_under_a_pending_task_id_does_nothing(
    process: Process, results: AsyncResultBackend[Any], store: ResultStore, tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    await store.write("pending", pickle.dumps(Bomb(canary)))
    await refused(process, results, "pending", "unsigned")
    assert not canary.exists()
    pickle.loads(pickle.dumps(Bomb(canary)))
    assert canary.exists()  # as it would have been


async def test_a_pickle_bomb_as_progress_does_nothing(
    process: Process, results: AsyncResultBackend[Any], store: ResultStore, tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    await store.write(store.progress_key("pending"), pickle.dumps(Bomb(canary)))
    process.audit.take()
    with pytest.raises(ResultVerificationError) as refusal:
        await results.get_progress("pending")
    assert refusal.value.reason == "unsigned"
    assert [(entry.event, entry.rule) for entry in process.audit.take()] == [("result_signature_fail", "progress")]
    assert not canary.exists()


async def test_a_pickle_bomb_with_a_genuine_signature_behind_it_does_nothing(
    process: Process, results: AsyncResultBackend[Any], store: ResultStore, tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    stored = await store.read("genuine")
    signature = stored[stored.rindex(MARK) :]
    for forged in (pickle.dumps(Bomb(canary)) + signature, pickle.dumps(Bomb(canary)) + stored):
        await store.write("genuine", forged)
        await refused(process, results, "genuine", "bad_signature")
    assert not canary.exists()


async def test_after_a_forgery_the_genuine_result_is_still_believed(
    process: Process, results: AsyncResultBackend[Any], store: ResultStore
) -> None:
    await store.write("pending", b"forged")
    await refused(process, results, "pending", "unsigned")
    await results.set_result("pending", RESULT)
    assert await results.get_result("pending") == RESULT


async def test_two_results_exchanged_are_both_refused(
    process: Process, results: AsyncResultBackend[Any], store: ResultStore
) -> None:
    await results.set_result("other", RESULT)
    genuine, other = await store.read("genuine"), await store.read("other")
    await store.write("genuine", other)
    await store.write("other", genuine)
    await refused(process, results, "genuine", "wrong_task")
    await refused(process, results, "other", "wrong_task")


async def test_progress_is_no_result_and_a_result_no_progress(
    process: Process, results: AsyncResultBackend[Any], store: ResultStore
) -> None:
    result, progress = await store.read("genuine"), await store.read(store.progress_key("genuine"))
    await store.write("genuine", progress)
    await refused(process, results, "genuine", "wrong_type")
    await store.write(store.progress_key("genuine"), result)
    with pytest.raises(ResultVerificationError) as refusal:
        await results.get_progress("genuine")
    assert refusal.value.reason == "wrong_type"


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"principal_audience": "staging"}, "wrong_audience"),
        ({"jwt_secret": STRANGER_SECRET}, "unknown_key"),
        ({"enforcement": "monitor", "principal_audience": "staging"}, "wrong_audience"),
        ({"security_enabled": False}, "unsigned"),
    ],
)
async def test_a_result_of_another_environment_is_refused(
    process: Process, new_process: NewProcess, store: ResultStore, settings: dict[str, Any], reason: str
) -> None:
    async with AsyncExitStack() as stack:
        foreign = await stack.enter_async_context(opened(new_process(**settings), store))
        results = await stack.enter_async_context(opened(process, store))
        await foreign.set_result("task", RESULT)
        await refused(process, results, "task", reason)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "unsigned"),
        (b"\x80\x04N.", "unsigned"),
        (MARK, "malformed"),
        (b"{}" + MARK + b"..", "malformed"),
        (b"{}" + MARK + b"\xff" * 20, "malformed"),
        (b"{}" + MARK + b"A" * jws.MAX_BYTES, "malformed"),
        (b"{}" + MARK + b"A" * (jws.MAX_BYTES + 1), "unsigned"),
        (b"x" * 20_000_000, "unsigned"),
        (MARK * 100_000, "malformed"),
    ],
    ids=["empty", "a pickle", "a mark", "dots", "no ASCII", "long", "too long", "huge", "marks"],
)
async def test_what_is_no_signed_result_is_refused(
    process: Process, results: AsyncResultBackend[Any], store: ResultStore, data: bytes, reason: str
) -> None:
    await store.write("genuine", data)
    await refused(process, results, "genuine", reason)


async def test_what_is_forged_is_refused_also_where_reading_deletes(process: Process, store: ResultStore) -> None:
    async with opened(process, store, keep_results=False) as results:
        await store.write("task", pickle.dumps({"is_err": False}))
        await refused(process, results, "task", "unsigned")
        await results.set_result("task", RESULT)
        assert await results.get_result("task") == RESULT
        assert not await results.is_result_ready("task")


# Without services: what is stored is the same everywhere


def stored_and_waiter(new_process: NewProcess, serializer: TaskiqSerializer) -> tuple[bytes, Process]:
    async def store() -> bytes:
        shelf = Shelf()
        await process.security.protect_results(shelf.backend(serializer)).set_result("task", RESULT)
        return await shelf.read("task")

    process = new_process()
    return asyncio.run(store()), process


class Untouched(TaskiqSerializer):
    """Fails the test if it is asked to decode anything."""

    def dumpb(self, value: Any) -> bytes:
        raise AssertionError

    def loadb(self, value: bytes) -> Any:
        raise AssertionError("decoded, though it was not verified")


def refusal_of(process: Process, data: bytes) -> str:
    """Why these bytes are no result of the task ``task``; nothing of them may have been decoded."""
    shelf = ShelfResultBackend({"task": data}, serializer=Untouched())
    result = asyncio.run(process.security.protect_results(shelf).get_result("task"))
    assert isinstance(result.error, ResultVerificationError), result
    return result.error.reason


@pytest.mark.parametrize("serializer", [PickleSerializer, JSONSerializer, CBORSerializer])
def test_no_bit_can_be_flipped(new_process: NewProcess, serializer: type[TaskiqSerializer]) -> None:
    data, process = stored_and_waiter(new_process, serializer())
    for place in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[place] ^= 1 << bit
            refusal_of(process, bytes(flipped))


def test_nothing_can_be_cut_off_or_put_in(new_process: NewProcess) -> None:
    data, process = stored_and_waiter(new_process, PickleSerializer())

    @given(st.integers(0, len(data)), st.integers(0, len(data)), st.binary(max_size=40))
    def splice(start: int, end: int, filling: bytes) -> None:
        spliced = data[:start] + filling + data[end:]
        if spliced != data:
            refusal_of(process, spliced)

    splice()
    for length in range(len(data)):
        refusal_of(process, data[:length])


@given(data=st.binary(max_size=300))
def test_no_bytes_that_an_attacker_makes_up_are_decoded(data: bytes) -> None:
    process = Process(AuditTrail(), lambda: 1_800_000_000.0)  # type: ignore[arg-type]  # a clock that stands still
    refusal_of(process, data)
    refusal_of(process, data + MARK + data)


async def test_the_signature_of_a_message_signs_no_result(process: Process) -> None:
    signature = str(read(await process.genuine()).labels[SIGNATURE]).encode()
    body = pickle.dumps(RESULT.model_dump(mode="json"))
    shelf = ShelfResultBackend({"task": body + MARK + signature}, serializer=Untouched())
    await refused(process, process.security.protect_results(shelf), "task", "malformed")


async def test_who_sees_messages_signed_cannot_have_a_result_signed_as_one(process: Process) -> None:
    """The key for messages, of the same secret, is not the one for results."""
    keys, now = Keyring.derived(SECRET), process.clock.now
    messages = keys.signer(Use.SEND, now)
    body = b"{}"
    genuine = process.security.results.close(body, Binding(Purpose.RESULT, "task"))
    protected, payload, _ = genuine.removeprefix(body + MARK).split(b".")
    forged = body + MARK + b".".join((protected, payload, jws.sign(messages, protected, payload)))
    shelf = ShelfResultBackend({"task": forged}, serializer=Untouched())
    await refused(process, process.security.protect_results(shelf), "task", "bad_signature")
    text, _ = MessageSigner(keys, 10).sign(payload, now, now + 60)
    shelf = ShelfResultBackend({"other": body + MARK + text.encode()}, serializer=Untouched())
    await refused(process, process.security.protect_results(shelf), "other", "malformed")


async def test_a_refusal_comes_back_protected_through_the_whole_receiver(process: Process) -> None:
    shelf = Shelf()
    process.broker.result_backend = process.security.protect_results(shelf.backend())  # type: ignore[assignment]  # the harness only knows the one of TaskIQ
    data = await process.genuine()
    forged = read(data).model_copy(update={"args": [[9]], "task_id": uuid4().hex})
    await process.broker.receiver.callback(write(forged))
    result = await process.broker.result_backend.get_result(forged.task_id)
    assert result.is_err
    assert type(result.error).__name__ == "AuthenticationError"
    assert MARK in await shelf.read(forged.task_id)
