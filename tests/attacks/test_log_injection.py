"""What a forged message calls itself cannot write a line of its own into any log, nor break a record."""

from __future__ import annotations

import json
import logging

import pytest
from taskiq.message import TaskiqMessage

from taskiq_flow_security import AccessDeniedError, Principal, UnsignableMessageError
from taskiq_flow_security.audit import AuditFormatter
from taskiq_flow_security.broker import wire
from taskiq_flow_security.tokens.message_signature import Denial
from tests.attacks.forging import SIGNATURE, read, sign, write
from tests.integration.inmemory.harness import AuditTrail, Process

INJECTIONS = {
    "a newline": "x\n2026-01-01 authn_login_success sub=root",
    "a carriage return": "x\rauthn_login_success",
    "both": "x\r\n\r\n{}",
    "a line separator": "x\u2028authn_login_success",
    "a next line": "x\u0085authn_login_success",
    "an escape sequence": "x\x1b[2J\x1b[31mred",
    "a null byte": "x\x00y",
    "a backspace": "x\b\b\b",
    "a right-to-left override": "x\u202eyx",
    "a closing quote": 'x","event":"authn_login_success","y":"',
    "a format": "%s%s%n%(asctime)s{0}{event}",
    "a huge text": "x" * 10_000,
}

each_injection = pytest.mark.parametrize("text", INJECTIONS.values(), ids=INJECTIONS)


def _is_one_line(text: str) -> bool:
    return text.isprintable() and len(text.splitlines()) <= 1


def _check(records: list[logging.LogRecord]) -> None:
    for record in records:
        line = AuditFormatter().format(record)
        assert _is_one_line(line)
        assert len(line) < 2_000
        assert json.loads(line)["event"] == record.getMessage()
        assert _is_one_line(record.getMessage())
        for field in ("task", "task_id", "sub", "pipeline", "rule", "reason"):
            value = getattr(record, field)
            assert value is None or (_is_one_line(str(value)) and len(str(value)) < 1_000)


def _audit_records(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == "taskiq_flow.audit"]


@each_injection
@pytest.mark.parametrize("field", ["task_id", "task_name"])
async def test_the_names_in_a_forged_message_are_made_harmless_in_the_audit_log(
    process: Process, caplog: pytest.LogCaptureFixture, field: str, text: str
) -> None:
    names = {"task_id": "forged", "task_name": "clean", field: text}
    forged = TaskiqMessage(**names, labels={"pipeline": text}, args=[], kwargs={})
    await process.broker.deliver(write(forged))
    records = _audit_records(caplog)
    assert len(records) == 1
    _check(records)


@each_injection
async def test_the_names_in_a_principal_are_made_harmless_in_the_audit_log(
    process: Process, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    principal = Principal(text[:2000], roles=[text[:2000]], permissions=["read"], pipelines=[text[:2000]], txn=text)
    with pytest.raises(AccessDeniedError):
        await process.kick(process.loose.kicker().with_labels(pipeline=text), principal=principal)
    _check(_audit_records(caplog))


@each_injection
@pytest.mark.parametrize("field", ["task_id", "task_name"])
async def test_the_names_in_a_forged_message_are_made_harmless_in_every_log(
    process: Process, caplog: pytest.LogCaptureFixture, field: str, text: str
) -> None:
    names = {"task_id": "forged", "task_name": "clean", field: text}
    forged = TaskiqMessage(**names, labels={}, args=[], kwargs={})
    with caplog.at_level(logging.INFO):
        await process.broker.deliver(write(forged))
    for record in caplog.records:
        assert _is_one_line(record.getMessage()), record.name
        assert len(record.getMessage()) < 2_000


async def test_a_surrogate_in_a_forged_name_breaks_no_record(process: Process, audit: AuditTrail) -> None:
    body = b'{"task_id": "\\ud800", "task_name": "\\udfff", "labels": {}, "args": [], "kwargs": {}}'
    outcome = await process.broker.deliver(body)
    assert process.ran == []
    assert outcome.acks == 1
    assert len(audit.take()) == 1


async def test_the_id_of_a_signature_is_made_harmless_in_the_audit_log(process: Process, audit: AuditTrail) -> None:
    message = sign(read(await process.genuine()), header={"jti": "1\nINFO all is well"})
    audit.take()
    await process.broker.deliver(write(message))
    assert not any("\n" in str(entry.jti) for entry in audit.take())


async def test_a_task_id_that_would_begin_a_line_in_a_log_cannot_be_sent(process: Process) -> None:
    with pytest.raises(UnsignableMessageError):
        await process.kick(process.clean.kicker().with_task_id("1\nINFO all is well"), [1])
    assert process.broker.sent == []


async def test_the_reason_that_a_sender_gives_is_made_harmless_in_audit_records(process: Process) -> None:
    message = read(await process.genuine())
    signature = message.labels.pop(SIGNATURE)
    signer, now = process.security.messages, process.clock.now
    payload = wire.signed_payload(wire.to_wire(message))
    message.labels[SIGNATURE], _ = signer.sign(payload, now, now + 60, denied=Denial("so\nsays\x1b[2J an attacker"))
    assert message.labels[SIGNATURE] != signature
    process.audit.take()
    await process.broker.deliver(write(message))
    [entry] = process.audit.take()
    assert entry.outcome == "deny"
    assert entry.reason is not None
    assert entry.reason.isprintable()
    assert process.ran == []
