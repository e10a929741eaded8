"""What the hooks of other middlewares see of a message, and that they cannot be made to fail by a refused one."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from taskiq import TaskiqMessage, TaskiqMiddleware, TaskiqResult
from taskiq.result_backends.dummy import DummyResultBackend

from taskiq_flow_security import AccessDeniedError, Principal, current_principal
from tests.attacks.forging import PRINCIPAL, SIGNATURE, principal_of, read, signature_of, write
from tests.integration.inmemory.fixtures import NewProcess
from tests.integration.inmemory.harness import PROCESSOR, VIEWER, Process

PLANTED = "planted-by-somebody"


class Recorder(TaskiqMiddleware):
    """Writes down what its hooks are shown, as plain data."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, dict[str, Any]] = {}

    def _see(self, hook: str, message: TaskiqMessage, result: TaskiqResult[Any] | None = None) -> None:
        content = message.model_dump(mode="json")
        self.seen[hook] = content | ({} if result is None else {"result": repr(result)})

    def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
        self._see("pre_send", message)
        return message

    def post_send(self, message: TaskiqMessage) -> None:
        self._see("post_send", message)

    def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
        self._see("pre_execute", message)
        return message

    def post_execute(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:
        self._see("post_execute", message, result)

    def post_save(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:
        self._see("post_save", message, result)

    def on_error(self, message: TaskiqMessage, result: TaskiqResult[Any], exception: BaseException) -> None:
        self._see("on_error", message, result)


class Discards(DummyResultBackend[Any]):
    """TaskIQ's default, under which every result counts as being there already."""

    results: Mapping[str, TaskiqResult[Any]] = {}


@pytest.fixture
def recorders() -> tuple[Recorder, Recorder]:
    """One that stands before the middleware, one that stands after it."""
    return Recorder(), Recorder()


@pytest.fixture
def worker(new_process: NewProcess, recorders: tuple[Recorder, Recorder]) -> Process:
    """A process with both."""
    before, after = recorders
    return new_process(before=(before,), after=(after,))


async def _planted(api: Process, principal: Principal = PROCESSOR) -> bytes:
    return await api.kick(api.clean.kicker().with_labels(note=PLANTED), [1], planted=PLANTED, principal=principal)


WORKER_HOOKS = {"pre_execute", "post_execute", "post_save", "on_error"}


async def test_hooks_see_nothing_of_what_a_forged_message_brought(
    process: Process, worker: Process, recorders: tuple[Recorder, Recorder]
) -> None:
    message = read(await _planted(process))
    await worker.broker.deliver(write(message.model_copy(update={"args": [PLANTED]})))
    for recorder in recorders:
        assert recorder.seen.keys() == WORKER_HOOKS
        assert PLANTED not in json.dumps(recorder.seen)
        for content in recorder.seen.values():
            assert content["labels"].keys() <= {"retry_on_error", "ack_type"}
            assert not content["labels_types"]
            assert content["args"] == []
            assert content["kwargs"] == {}


async def test_hooks_see_the_labels_of_a_denied_message(
    new_process: NewProcess, worker: Process, recorders: tuple[Recorder, Recorder]
) -> None:
    api = new_process(pipeline_acls={"data": {"execute": ["viewer"]}})
    outcome = await worker.broker.deliver(await _planted(api, principal=VIEWER))
    assert isinstance(outcome.error, AccessDeniedError)
    for recorder in recorders:
        assert recorder.seen.keys() == WORKER_HOOKS
        for content in recorder.seen.values():
            assert content["labels"]["note"] == PLANTED
            assert content["labels"]["pipeline"] == "data"


async def test_hooks_see_the_labels_of_a_denied_message_where_no_results_are_kept(
    new_process: NewProcess, worker: Process, recorders: tuple[Recorder, Recorder]
) -> None:
    worker.broker.with_result_backend(Discards())
    api = new_process(pipeline_acls={"data": {"execute": ["viewer"]}})
    await worker.broker.deliver(await _planted(api, principal=VIEWER))
    for recorder in recorders:
        assert recorder.seen["on_error"]["labels"]["note"] == PLANTED


async def test_hooks_see_the_labels_of_an_expired_message(
    process: Process, worker: Process, recorders: tuple[Recorder, Recorder]
) -> None:
    data = await _planted(process)
    worker.clock.now += 100_000
    await worker.broker.deliver(data)
    for recorder in recorders:
        assert {content["labels"].get("note") for content in recorder.seen.values()} == {PLANTED}


async def test_hooks_see_all_of_an_allowed_message(worker: Process, recorders: tuple[Recorder, Recorder]) -> None:
    await worker.broker.deliver(await worker.kick(worker.clean.kicker().with_labels(note=PLANTED), [1], scale=2))
    for recorder in recorders:
        assert recorder.seen.keys() == {"pre_send", "post_send", "pre_execute", "post_execute", "post_save"}
        for content in recorder.seen.values():
            assert content["labels"]["note"] == PLANTED
            assert (content["args"], content["kwargs"]) == ([[1]], {"scale": 2})


@pytest.mark.parametrize("explicit", [False, True], ids=["acting", "explicit labels"])
async def test_no_hook_but_pre_send_ever_sees_a_label_of_ours(
    worker: Process, recorders: tuple[Recorder, Recorder], explicit: bool
) -> None:
    if explicit:
        await worker.clean.kicker().with_labels(**worker.security.labels_for(PROCESSOR)).kiq([1])
        message = read(worker.broker.take())
    else:
        message = read(await worker.genuine())
    await worker.broker.deliver(write(message))
    await worker.broker.deliver(write(message.model_copy(update={"args": [[9]], "task_id": "forged"})))
    for recorder in recorders:
        assert recorder.seen.keys() == WORKER_HOOKS | {"pre_send", "post_send"}
        del recorder.seen["pre_send"]
        assert all(not {PRINCIPAL, SIGNATURE} & content["labels"].keys() for content in recorder.seen.values())
        for secret in (principal_of(message), signature_of(message)):
            assert secret not in json.dumps(recorder.seen)


Read = Callable[[Mapping[str, Any]], object]

READINGS: dict[str, Read] = {
    "len": len,
    "bool": bool,
    "repr": repr,
    "str": str,
    "get": lambda kwargs: kwargs.get("rows"),
    "in": lambda kwargs: "rows" in kwargs,
    "items": lambda kwargs: list(kwargs.items()),
    "values": lambda kwargs: list(kwargs.values()),
    "keys": lambda kwargs: list(kwargs.keys()),
    "iteration": lambda kwargs: list(kwargs),
    "dict": lambda kwargs: dict(kwargs),
    "unpacking": lambda kwargs: {**kwargs},
    "a call": lambda kwargs: (lambda **_: None)(**kwargs),
    "comparison": lambda kwargs: kwargs == {},
    "json": json.dumps,
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": pickle.dumps,
}


class Reader(TaskiqMiddleware):
    """Reads the arguments of a message in one way in all hooks."""

    def __init__(self, look: Read) -> None:
        super().__init__()
        self._look = look

    def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
        self._look(message.kwargs)
        return message

    def post_execute(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:
        self._look(message.kwargs)

    def post_save(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:
        self._look(message.kwargs)

    def on_error(self, message: TaskiqMessage, result: TaskiqResult[Any], exception: BaseException) -> None:
        self._look(message.kwargs)


each_reading = pytest.mark.parametrize("look", READINGS.values(), ids=READINGS)
each_position = pytest.mark.parametrize("position", ["before", "after"])


def _reading(new_process: NewProcess, look: Read, position: str) -> Process:
    reader = (Reader(look),)
    return new_process(before=reader) if position == "before" else new_process(after=reader)


@each_reading
@each_position
async def test_a_middleware_may_read_the_arguments_of_a_forged_message(
    new_process: NewProcess, look: Read, position: str
) -> None:
    process = _reading(new_process, look, position)
    message = read(await process.genuine())
    await process.refuses(write(message.model_copy(update={"args": [[9]]})), "bad_signature")


@each_reading
@each_position
async def test_a_middleware_may_read_the_arguments_of_a_denied_message(
    new_process: NewProcess, look: Read, position: str
) -> None:
    process = _reading(new_process, look, position)
    api = new_process(pipeline_acls={"data": {"execute": ["viewer"]}})
    await process.refuses(await api.kick(api.clean, [1], principal=VIEWER), "acl", AccessDeniedError)


class Replacer(TaskiqMiddleware):
    """Hands on a copy of the message."""

    def __init__(self, deep: bool) -> None:
        super().__init__()
        self._deep = deep

    def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
        return message.model_copy(deep=self._deep)


class Rebuilder(TaskiqMiddleware):
    """Hands on a message made of the data of the message."""

    def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
        return TaskiqMessage.model_validate(message.model_dump())


REPLACERS: dict[str, Callable[[], TaskiqMiddleware]] = {
    "copies": lambda: Replacer(deep=False),
    "deep copies": lambda: Replacer(deep=True),
    "rebuilds": Rebuilder,
}


each_replacer = pytest.mark.parametrize("make", REPLACERS.values(), ids=REPLACERS)


def _replacing(new_process: NewProcess, make: Callable[[], TaskiqMiddleware], position: str) -> Process:
    return new_process(before=(make(),)) if position == "before" else new_process(after=(make(),))


@each_replacer
@each_position
async def test_a_middleware_that_hands_on_another_message_object_does_not_let_a_forged_message_run(
    new_process: NewProcess, make: Callable[[], TaskiqMiddleware], position: str
) -> None:
    process = _replacing(new_process, make, position)
    message = read(await process.kick(process.echo))
    await process.refuses(write(message.model_copy(update={"args": ["x"]})), "bad_signature")


@each_replacer
@each_position
async def test_a_middleware_that_hands_on_another_message_object_does_not_let_a_denied_message_run(
    new_process: NewProcess, make: Callable[[], TaskiqMiddleware], position: str
) -> None:
    process = _replacing(new_process, make, position)
    api = new_process(pipeline_acls={"data": {"execute": ["viewer"]}})
    await process.refuses(await api.kick(api.echo, principal=VIEWER), "acl", AccessDeniedError)


@each_replacer
@each_position
async def test_a_middleware_that_hands_on_another_message_object_lets_an_allowed_message_run(
    new_process: NewProcess, make: Callable[[], TaskiqMiddleware], position: str
) -> None:
    process = _replacing(new_process, make, position)
    await process.runs(await process.kick(process.echo))
    await process.runs(await process.kick(process.guarded, [1]))


class Asker(TaskiqMiddleware):
    """Asks in its hooks who acts."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: dict[str, str] = {}

    def post_execute(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:
        self.answers["post_execute"] = current_principal().subject

    def post_save(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:
        self.answers["post_save"] = current_principal().subject

    def on_error(self, message: TaskiqMessage, result: TaskiqResult[Any], exception: BaseException) -> None:
        self.answers["on_error"] = current_principal().subject


@each_position
async def test_hooks_know_in_whose_name_a_task_has_run(new_process: NewProcess, position: str) -> None:
    asker = Asker()
    process = new_process(before=(asker,)) if position == "before" else new_process(after=(asker,))

    @process.broker.task("failing", pipeline="data")
    async def failing() -> None:
        raise LookupError("no such row")

    await process.broker.deliver(await process.kick(failing))
    assert asker.answers == {"post_execute": "alice", "post_save": "alice", "on_error": "alice"}


class Requires(TaskiqMiddleware):
    """Cannot do without a label that all messages of the application have."""

    def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
        assert message.labels["note"] is not None
        return message


@pytest.mark.xfail(strict=True, reason="what is not authentic has no labels for hooks to see: see the README")
@pytest.mark.parametrize("position", ["before", "after"])
async def test_a_middleware_that_needs_a_label_keeps_no_forged_message_from_being_acked(
    new_process: NewProcess, position: str
) -> None:
    requires = (Requires(),)
    process = new_process(before=requires) if position == "before" else new_process(after=requires)
    message = read(await process.genuine())
    outcome = await process.broker.deliver(write(message.model_copy(update={"args": [[9]]})))
    assert outcome.acks == 1
