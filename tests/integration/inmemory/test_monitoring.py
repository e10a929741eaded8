"""Where security is only monitored, everything runs as without it, and what would be refused is recorded."""

from __future__ import annotations

import json
import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone

import pytest
from taskiq import TaskiqDepends
from taskiq.abc.serializer import TaskiqSerializer
from taskiq.exceptions import SendTaskError
from taskiq.formatters.json_formatter import JSONFormatter
from taskiq.message import BrokerMessage, TaskiqMessage
from taskiq.serializers import JSONSerializer, ORJSONSerializer

from taskiq_flow_security import Principal, current_principal, guard
from taskiq_flow_security.core.principal import ANONYMOUS
from tests.attacks.forging import (
    ABSENT,
    PRINCIPAL,
    SIGNATURE,
    STRANGER_SEND_KEY,
    principal_of,
    read,
    relabelled,
    sign,
    signature_of,
    write,
)
from tests.integration.inmemory.fixtures import NewProcess
from tests.integration.inmemory.harness import PROCESSOR, SECRET, VIEWER, Process

SHADOW = "task_authz_shadow_deny"


@pytest.fixture
def monitored(new_process: NewProcess) -> Process:
    """A process that only watches."""
    return new_process(enforcement="monitor")


async def _runs_though(process: Process, data: bytes, reason: str) -> None:
    """Check that a message runs, is recorded once as one that would be refused, and keeps no label of ours."""
    process.audit.take()
    outcome = await process.broker.deliver(data)
    assert outcome.acks == 1
    assert not outcome.result.is_err, outcome.result.error
    assert len(process.ran) == 1
    assert [(entry.event, entry.outcome, entry.reason) for entry in process.audit.take()] == [(SHADOW, "deny", reason)]
    assert not {PRINCIPAL, SIGNATURE} & outcome.result.labels.keys()
    process.ran.clear()


async def test_an_allowed_message_runs_and_is_recorded_as_allowed(monitored: Process) -> None:
    await monitored.runs(await monitored.genuine())


@pytest.mark.parametrize("missing", [(PRINCIPAL, SIGNATURE), (SIGNATURE,), (PRINCIPAL,)])
async def test_an_unsigned_message_runs(monitored: Process, missing: tuple[str, ...]) -> None:
    message = read(await monitored.genuine())
    for label in missing:
        message = relabelled(message, label, ABSENT)
    await _runs_though(monitored, write(message), "unsigned")


async def test_a_plain_taskiq_message_runs(monitored: Process) -> None:
    message = TaskiqMessage(task_id="plain", task_name="clean", labels={}, args=[[1]], kwargs={"scale": 2})
    await _runs_though(monitored, write(message), "unsigned")


async def test_an_altered_message_runs_as_it_arrived(monitored: Process) -> None:
    message = read(await monitored.kick(monitored.echo, "sent"))
    outcome = await monitored.broker.deliver(write(message.model_copy(update={"args": ["arrived"]})))
    assert monitored.ran == [("echo", "arrived")]
    assert outcome.result.return_value == "arrived"


async def test_an_altered_message_is_recorded(monitored: Process) -> None:
    message = read(await monitored.genuine()).model_copy(update={"args": [[9]]})
    await _runs_though(monitored, write(message), "bad_signature")


async def test_a_message_signed_by_a_stranger_runs(monitored: Process) -> None:
    await _runs_though(monitored, write(sign(read(await monitored.genuine()), STRANGER_SEND_KEY)), "unknown_key")


@pytest.mark.parametrize("text", ["", "...", 7, None, ["x"], "A" * 10_000])
async def test_a_message_with_a_broken_label_of_ours_runs(monitored: Process, text: object) -> None:
    message = relabelled(read(await monitored.genuine()), SIGNATURE, text)
    outcome = await monitored.broker.deliver(write(message))
    assert not outcome.result.is_err
    assert len(monitored.ran) == 1


@pytest.mark.parametrize(
    ("label", "value", "label_type"),
    [("note", "seven", 2), ("note", [], 4), ("note", "7", 99), ("ack_type", "never", 3), ("ack_type", [], 1)],
)
@pytest.mark.parametrize("signed", [True, False])
async def test_a_message_with_a_label_that_taskiq_cannot_read_runs_and_no_token_is_logged(
    monitored: Process, caplog: pytest.LogCaptureFixture, label: str, value: object, label_type: int, signed: bool
) -> None:
    genuine = read(await monitored.genuine())
    message = relabelled(genuine, label, value).model_copy(
        update={"labels_types": {**(genuine.labels_types or {}), label: label_type}}
    )
    message = sign(message) if signed else message
    with caplog.at_level(logging.DEBUG):
        await _runs_though(monitored, write(message), "invalid_label" if signed else "bad_signature")
    for text in (principal_of(message), signature_of(message)):
        assert text not in caplog.text


async def test_an_expired_message_runs(monitored: Process) -> None:
    message = await monitored.genuine()
    monitored.clock.now += 100_000
    await _runs_though(monitored, message, "expired")


async def test_a_denied_message_runs(monitored: Process, new_process: NewProcess) -> None:
    api = new_process(pipeline_acls={"data": {"execute": ["viewer"]}})
    await _runs_though(monitored, await api.kick(api.clean, [1], principal=VIEWER), "acl")


async def test_a_guarded_task_runs_for_whom_its_guard_would_deny(monitored: Process, new_process: NewProcess) -> None:
    api = new_process(enforcement="monitor")
    await _runs_though(monitored, await api.kick(api.guarded, [1], principal=VIEWER), "acl")


async def test_a_guarded_task_runs_for_an_unsigned_message(monitored: Process) -> None:
    message = TaskiqMessage(task_id="plain", task_name="guarded", labels={}, args=[[1]], kwargs={})
    await _runs_though(monitored, write(message), "unsigned")


async def test_a_kick_without_a_principal_is_sent_and_recorded(monitored: Process) -> None:
    await monitored.clean.kiq([1])
    entries = [(entry.event, entry.reason) for entry in monitored.audit.take()]
    assert entries == [(SHADOW, "no_principal")]
    await _runs_though(monitored, monitored.broker.take(), "unsigned")


async def test_a_kick_that_would_be_denied_is_sent_signed_and_recorded_on_both_sides(monitored: Process) -> None:
    message = await monitored.kick(monitored.report)
    assert [(entry.event, entry.reason) for entry in monitored.audit.take()] == [
        (SHADOW, "acl"),
        ("task_enqueued", None),
    ]
    await _runs_though(monitored, message, "acl")


async def test_a_kick_with_somebody_elses_labels_is_sent_and_recorded(monitored: Process) -> None:
    await monitored.clean.kicker().with_labels(**{PRINCIPAL: "not a principal"}).kiq([1])
    assert [entry.event for entry in monitored.audit.take()] == [SHADOW]
    assert "not a principal" not in monitored.broker.sent[0].decode()
    await _runs_though(monitored, monitored.broker.take(), "unsigned")


async def test_a_kick_that_the_rate_limit_would_refuse_is_sent_and_recorded_once(monitored: Process) -> None:
    @monitored.broker.task("rare", pipeline="data")
    @guard(rate_limit="1/hour")
    async def rare() -> None: ...

    for _ in range(2):
        await monitored.broker.deliver(await monitored.kick(rare))
    shadows = [(entry.event, entry.reason) for entry in monitored.audit.take() if entry.outcome == "deny"]
    assert shadows == [(SHADOW, "rate_limit")]


async def test_a_kick_that_cannot_be_signed_is_sent_as_without_security(monitored: Process) -> None:
    nest: list[object] = []
    for _ in range(240):
        nest = [nest]
    plain = TaskiqMessage(task_id="x", task_name="echo", labels={}, args=[nest], kwargs={})
    assert monitored.broker.serializer.loadb(monitored.broker.serializer.dumpb(plain.model_dump(mode="json")))
    await monitored.kick(monitored.echo, nest)


@dataclass
class _Page:
    """Is dumped by its fields, and not by what it can be iterated over for."""

    numbers: Iterator[int]

    def __iter__(self) -> Iterator[int]:
        return self.numbers

    def __next__(self) -> int:
        return next(self.numbers)


async def test_iterators_that_cannot_be_signed_are_sent_whole(monitored: Process) -> None:
    texts = ["a", "\ud800"]
    for _ in range(4):
        values = [iter(texts), OrderedDict(all=(text for text in texts)), deque([iter(texts)]), _Page(iter([1, 2]))]
        sent = json.loads(await monitored.kick(monitored.echo, values))
        assert sent["args"] == [[texts, {"all": texts}, [texts], {"numbers": [1, 2]}]]


async def test_iterators_that_cannot_be_signed_are_sent_whole_however_often_something_was_allowed(
    monitored: Process,
) -> None:
    with monitored.security.acting_as(PROCESSOR):
        for _ in range(4):
            await monitored.clean.kiq([1])
            monitored.broker.take()
        await monitored.clean.kiq(iter(["a", "\ud800"]))
    assert json.loads(monitored.broker.take())["args"] == [["a", "\ud800"]]


@pytest.mark.parametrize("serializer", [JSONSerializer, ORJSONSerializer])
async def test_iterators_that_cannot_be_sent_are_not(
    monitored: Process, serializer: Callable[[], TaskiqSerializer]
) -> None:
    monitored.broker.with_serializer(serializer())
    for _ in range(4):
        with pytest.raises(SendTaskError):
            await monitored.kick(monitored.echo, iter([object(), 1]))


@pytest.fixture
def keyless(new_process: NewProcess) -> Process:
    """A process that only watches, and whose key signs no more."""
    key = {"kid": "key", "alg": "HS256", "uses": ["issue", "send"], "secret": SECRET}
    keyless = new_process(enforcement="monitor", signing_keys=[{**key, "not_after": "2027-01-16T00:00:00Z"}])
    keyless.clock.now += 86_400
    return keyless


async def test_iterators_are_sent_whole_where_no_key_signs_any_more(keyless: Process) -> None:
    assert read(await keyless.kick(keyless.echo, iter([1, 2]))).args == [[1, 2]]


async def test_a_formatter_of_ones_own_gets_what_cannot_be_signed_as_it_is(keyless: Process) -> None:
    formatted: list[object] = []

    class Own(JSONFormatter):
        def dumps(self, message: TaskiqMessage) -> BrokerMessage:
            formatted.append(message.args)
            return super().dumps(message)

    keyless.broker.with_formatter(Own())
    day = datetime(2027, 1, 1, tzinfo=timezone.utc)
    await keyless.kick(keyless.echo, day)
    assert formatted[-1] == [day]


@pytest.mark.parametrize("label", ["delay", "queue_ttl"])
async def test_a_label_that_says_no_time_does_not_keep_a_kick_from_being_sent(monitored: Process, label: str) -> None:
    await monitored.kick(monitored.echo.kicker().with_labels(**{label: "tomorrow"}), 1)


async def test_a_task_of_somebody_unknown_runs_as_anonymous(monitored: Process) -> None:
    seen: list[Principal] = []

    @monitored.broker.task("who", pipeline="data")
    async def who(caller: Principal = TaskiqDepends(current_principal)) -> None:
        seen.extend([caller, current_principal()])

    message = TaskiqMessage(task_id="plain", task_name="who", labels={}, args=[], kwargs={})
    await monitored.broker.deliver(write(message))
    assert seen == [ANONYMOUS, ANONYMOUS]


async def test_a_task_of_somebody_denied_runs_in_their_own_name(monitored: Process) -> None:
    seen: list[Principal] = []

    @monitored.broker.task("who", pipeline="data")
    async def who() -> None:
        seen.append(current_principal())

    await monitored.broker.deliver(await monitored.kick(who, principal=VIEWER))
    assert seen == [VIEWER]


async def test_a_forged_principal_is_not_believed_though_its_message_runs(monitored: Process) -> None:
    seen: list[str] = []

    @monitored.broker.task("who", pipeline="data")
    async def who() -> None:
        seen.append(current_principal().subject)

    message = read(await monitored.kick(who)).model_copy(update={"kwargs": {}, "task_id": "another"})
    await monitored.broker.deliver(write(message))
    assert seen == ["anonymous"]


async def test_a_child_of_a_task_of_somebody_unknown_runs_too(monitored: Process) -> None:
    @monitored.broker.task("parent", pipeline="data")
    async def parent() -> None:
        await monitored.clean.kiq([1])

    await monitored.broker.deliver(
        write(TaskiqMessage(task_id="plain", task_name="parent", labels={}, args=[], kwargs={}))
    )
    outcome = await monitored.broker.deliver(monitored.broker.take())
    assert not outcome.result.is_err
    assert len(monitored.ran) == 1


async def test_what_anonymous_has_kicked_is_refused_once_security_is_enforced(
    monitored: Process, process: Process
) -> None:
    @monitored.broker.task("parent", pipeline="data")
    async def parent() -> None:
        await monitored.loose.kiq()

    await monitored.broker.deliver(
        write(TaskiqMessage(task_id="plain", task_name="parent", labels={}, args=[], kwargs={}))
    )
    outcome = await process.broker.deliver(monitored.broker.take())
    assert process.ran == []
    assert outcome.result.is_err


async def test_explain_answers_as_if_it_were_enforced(monitored: Process, process: Process) -> None:
    for principal in (PROCESSOR, VIEWER):
        assert monitored.security.explain(principal, pipeline="data") == process.security.explain(
            principal, pipeline="data"
        )
