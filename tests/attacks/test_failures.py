"""Where something that a decision needs fails, the message is refused, and nothing of it is shown."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
from taskiq.message import TaskiqMessage

from taskiq_flow_security import AccessDeniedError, AuditLogger, FlowSecurity, SecurityMiddleware
from taskiq_flow_security.core.events import AuditEvent
from tests.attacks.forging import principal_of, read, relabelled, sign, signature_of, write
from tests.integration.inmemory.harness import Process, Queue, config


class FailingAudit(AuditLogger):
    """An audit sink that is full."""

    def record(self, event: AuditEvent) -> None:
        raise OSError("no space left")


class FailingWorker:
    """A worker whose audit sink fails."""

    def __init__(self, process: Process) -> None:
        self.ran: list[str] = []
        self.broker = Queue()
        security = FlowSecurity(config(), audit=FailingAudit(), clock=process.clock)
        self.broker.add_middlewares(SecurityMiddleware(security))

        @self.broker.task("clean", pipeline="data")
        async def clean(rows: list[int], scale: int = 1) -> None:
            self.ran.append("clean")


Change = Callable[[TaskiqMessage], TaskiqMessage]
CHANGES: dict[str, Change] = {
    "genuine": lambda message: message,
    "altered": lambda message: message.model_copy(update={"args": [[9]]}),
    "unsigned": lambda message: message.model_copy(update={"labels": {}, "labels_types": None}),
    "expired": lambda message: sign(message, header={"exp": 1_799_999_000}),
    "unknown ack type": lambda message: sign(relabelled(message, "ack_type", "never")),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
async def test_a_decision_that_cannot_be_recorded_is_a_refusal_that_shows_nothing(
    process: Process, caplog: pytest.LogCaptureFixture, change: Change
) -> None:
    message = change(read(await process.genuine()))
    worker = FailingWorker(process)
    with caplog.at_level(logging.DEBUG):
        outcome = await worker.broker.deliver(write(message))
    assert worker.ran == []
    assert outcome.acks == 1
    assert outcome.result.is_err
    if message.labels:
        assert principal_of(message) not in caplog.text
        assert signature_of(message) not in caplog.text


async def test_a_body_that_cannot_be_read_nor_recorded_shows_nothing(
    process: Process, caplog: pytest.LogCaptureFixture
) -> None:
    worker = FailingWorker(process)
    with caplog.at_level(logging.DEBUG):
        outcome = await worker.broker.deliver(b'{"password": "hunter2"')
    assert outcome.acks == 1
    assert "hunter2" not in caplog.text


async def test_a_policy_that_fails_refuses(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    message = await process.genuine()

    def broken(*_: object) -> None:
        raise LookupError("a bug in a policy")

    monkeypatch.setattr(process.security.authorization, "decide", broken)
    process.audit.take()
    outcome = await process.broker.deliver(message)
    assert process.ran == []
    assert outcome.acks == 1
    assert outcome.reason == "internal_error"
    assert [(entry.outcome, entry.reason) for entry in process.audit.take()] == [("deny", "internal_error")]


@pytest.mark.parametrize("part", ["messages.read", "principals.read"])
async def test_a_verifier_that_fails_refuses(process: Process, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    message = await process.genuine()
    owner, name = part.split(".")

    def broken(*_: object) -> None:
        raise LookupError("a bug in a verifier")

    with monkeypatch.context() as patch:
        patch.setattr(getattr(process.security, owner), name, broken)
        await process.refuses(message, "internal_error", AccessDeniedError, serves=False)
    await process.serves()


async def test_a_refusal_because_of_a_bug_is_joined_to_its_kick(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    process.audit.take()
    message = await process.genuine()
    (kicked,) = process.audit.take()

    def broken(*_: object) -> None:
        raise LookupError("a bug in a policy")

    monkeypatch.setattr(process.security.authorization, "decide", broken)
    await process.broker.deliver(message)
    (refused,) = process.audit.take()
    assert (refused.txn, refused.jti) == (kicked.txn, kicked.jti)
