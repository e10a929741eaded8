"""The signature against any single change of a message on its way, in every format."""

from __future__ import annotations

import asyncio
import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from taskiq import AsyncTaskiqDecoratedTask, InMemoryBroker
from taskiq.abc.serializer import TaskiqSerializer
from taskiq.formatters.json_formatter import JSONFormatter
from taskiq.message import TaskiqMessage
from taskiq.serializers import CBORSerializer, JSONSerializer, MSGPackSerializer, ORJSONSerializer
from taskiq.utils import maybe_awaitable

from taskiq_flow_security import FlowSecurity, Principal, SecurityMiddleware, TaskiqFlowConfig
from taskiq_flow_security.broker import delivery as deliveries
from tests.unit.broker.any_messages import Aliased, AlwaysAliased, messages, quick

SERIALIZERS: dict[str, Callable[[], TaskiqSerializer]] = {
    "json": JSONSerializer,
    "orjson": ORJSONSerializer,
    "msgpack": MSGPackSerializer,
    "cbor": CBORSerializer,
}
LOSSY: dict[str, Callable[[], TaskiqSerializer]] = {
    "orjson, keys sorted": lambda: ORJSONSerializer(option=orjson.OPT_SORT_KEYS),
    "msgpack, single precision": lambda: MSGPackSerializer(use_single_float=True),
    "cbor, canonical": lambda: CBORSerializer(canonical=True),
}

security = FlowSecurity(TaskiqFlowConfig(jwt_secret="x" * 32), clock=lambda: 1_800_000_000.0)  # tokens of one length
alice = Principal("alice", ["processor"], ["execute"])


@dataclass(frozen=True)
class Wire:
    """A broker's way from message to bytes and back, secured and not."""

    secured: InMemoryBroker
    plain: InMemoryBroker

    def send(self, message: TaskiqMessage) -> bytes:
        with security.acting_as(alice):
            return self.secured.formatter.dumps(message.model_copy(deep=True)).message

    def receive(self, data: bytes) -> TaskiqMessage | None:
        """The message, if it is genuine."""
        message = self.secured.formatter.loads(data)
        delivery = deliveries.current.get()
        assert delivery is not None
        return message if delivery.error is None else None

    def receive_unsecured(self, message: TaskiqMessage) -> TaskiqMessage:
        """What a worker without security would get to see."""
        return self.plain.formatter.loads(self.plain.formatter.dumps(message.model_copy(deep=True)).message)


async def anything() -> None: ...


def known_under_any_name(task_name: str) -> AsyncTaskiqDecoratedTask[[], Any]:
    return ANYTHING


ANYTHING = InMemoryBroker().register_task(anything)


def wire(name: str) -> Wire:
    brokers = []
    for middlewares in ([SecurityMiddleware(security)], []):
        broker = InMemoryBroker().with_middlewares(*middlewares)
        broker.find_task = known_under_any_name  # type: ignore[method-assign]  # of what nobody knows, nothing is kept
        if name == "json formatter":
            broker.with_formatter(JSONFormatter())
        else:
            broker.with_serializer((SERIALIZERS | LOSSY)[name]())
        for middleware in broker.middlewares:
            asyncio.run(maybe_awaitable(middleware.startup()))
        brokers.append(broker)
    return Wire(*brokers)


WIRES = {name: wire(name) for name in [*SERIALIZERS, *LOSSY, "json formatter"]}


def exactly(value: object) -> str:
    """Unlike ``==``, tells types, order and nan."""
    return repr(value)


@pytest.mark.parametrize("name", WIRES)
@quick
@given(message=messages())
def test_what_is_signed_arrives_as_it_would_without_security(name: str, message: TaskiqMessage) -> None:
    way = WIRES[name]
    try:
        expected = way.receive_unsecured(message)
    except Exception:
        assume(False)  # TaskIQ itself cannot carry it in this format
    arrived = way.receive(way.send(message))
    assert arrived is not None
    assert exactly(arrived) == exactly(expected)


@pytest.mark.parametrize("name", WIRES)
@pytest.mark.parametrize("model", [Aliased, AlwaysAliased])
def test_models_within_arguments_arrive_as_they_would_without_security(name: str, model: type[Aliased]) -> None:
    message = TaskiqMessage(
        task_id="1", task_name="save", labels={}, args=[[model(user_id=1)]], kwargs={"by": {"id": model(user_id=2)}}
    )
    arrived = WIRES[name].receive(WIRES[name].send(message))
    assert exactly(arrived) == exactly(WIRES[name].receive_unsecured(message))


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something can be changed."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, inner in items for found in paths(inner, (*path, key)))]


def changed(body: Any, path: tuple[Any, ...], change: Callable[[Any], Any]) -> Any:
    """A copy in which one thing is another."""
    if not path:
        return change(body)
    result = copy.deepcopy(body)
    holder = result
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = change(holder[path[-1]])
    return result


CHANGES: dict[str, Callable[[Any], Any]] = {
    "nothing": lambda _: None,
    "true": lambda _: True,
    "zero": lambda _: 0,
    "one more": lambda value: value + 1 if isinstance(value, (int, float)) else 1,
    "the other number": lambda value: float(value) if type(value) is int and abs(value) < 2**53 else 1.5,
    "text": lambda _: "x",
    "its text": str,
    "bytes": lambda value: value.encode() if isinstance(value, str) else b"x",
    "wrapped": lambda value: [value],
    "reversed": lambda value: value[::-1] if isinstance(value, (str, list)) else [],
    "reordered": lambda value: dict(reversed(value.items())) if isinstance(value, dict) else {},
    "with one key more": lambda value: {**value, "x": "1"} if isinstance(value, dict) else {"x": 1},
    "with one key less": lambda value: dict(list(value.items())[:-1]) if isinstance(value, dict) else {},
    "with a key of another type": lambda value: {7: 7, **value} if isinstance(value, dict) else {7: 7},
    "with one item less": lambda value: value[:-1] if isinstance(value, (str, list)) else None,
}


@pytest.mark.parametrize("name", SERIALIZERS)
@quick
@given(message=messages(), data=st.data())
def test_a_message_with_anything_changed_is_refused_or_means_the_same(
    name: str, message: TaskiqMessage, data: st.DataObject
) -> None:
    way = WIRES[name]
    try:
        sent = way.send(message)
    except Exception:
        return
    original = way.receive(sent)
    assert original is not None
    serializer = way.secured.serializer
    body = serializer.loadb(sent)
    path = data.draw(st.sampled_from(paths(body)), label="path")
    change = data.draw(st.sampled_from(sorted(CHANGES)), label="change")
    try:
        altered = serializer.dumpb(changed(body, path, CHANGES[change]))
    except Exception:
        return  # not to be said in this format
    arrived = way.receive(altered)
    assert arrived is None or exactly(arrived) == exactly(original)


@pytest.mark.parametrize("name", SERIALIZERS)
@quick
@given(message=messages(), data=st.data())
def test_a_message_with_any_byte_changed_is_refused_or_means_the_same(
    name: str, message: TaskiqMessage, data: st.DataObject
) -> None:
    way = WIRES[name]
    try:
        sent = bytearray(way.send(message))
    except Exception:
        return
    original = way.receive(bytes(sent))
    assert original is not None
    position = data.draw(st.integers(0, len(sent) - 1), label="position")
    sent[position] = data.draw(st.integers(0, 255), label="byte")
    arrived = way.receive(bytes(sent))
    assert arrived is None or exactly(arrived) == exactly(original)


@pytest.mark.parametrize("name", SERIALIZERS)
def test_a_number_that_is_none_arrives_as_json_says_it(name: str) -> None:
    message = TaskiqMessage(task_id="a", task_name="b", labels={}, args=[math.nan, math.inf], kwargs={})
    arrived = WIRES[name].receive(WIRES[name].send(message))
    assert arrived is not None
    assert exactly(arrived.args) == exactly(WIRES[name].receive_unsecured(message).args)
