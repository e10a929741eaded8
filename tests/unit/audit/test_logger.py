"""Events as records of a logger that everybody knows how to listen to."""

from __future__ import annotations

import json
import logging
from typing import Any
from uuid import uuid4

import pytest
import structlog

from taskiq_flow_security.audit import AuditFormatter, AuditLogger
from taskiq_flow_security.core.events import AuditEvent, Outcome
from taskiq_flow_security.core.principal import Permission
from taskiq_flow_security.core.reasons import Reason
from tests.unit.audit.events import allowed, denied


class Records(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.taken: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.taken.append(record)


class Listened:
    """A logger of its own, and what was heard."""

    def __init__(self) -> None:
        self.logger = logging.getLogger(f"test.{uuid4().hex}")
        self.logger.propagate = False
        self.handler = Records()
        self.logger.addHandler(self.handler)

    @property
    def records(self) -> list[logging.LogRecord]:
        return self.handler.taken


@pytest.fixture
def heard() -> Listened:
    return Listened()


def test_what_is_allowed_is_information_and_what_is_denied_a_warning(heard: Listened) -> None:
    audit = AuditLogger(heard.logger.name)
    audit.record(allowed())
    audit.record(denied())
    assert [(record.levelname, record.getMessage()) for record in heard.records] == [
        ("INFO", "task_authz_allow"),
        ("WARNING", "task_authz_deny"),
    ]


def test_each_field_is_an_attribute_of_the_record(heard: Listened) -> None:
    AuditLogger(heard.logger.name).record(allowed())
    [record] = heard.records
    attributes = vars(record)
    assert set(AuditEvent._fields) <= set(attributes)
    assert attributes["roles"] == ["processor", "viewer"]
    assert attributes["time"] == "2026-11-24T16:33:18.250000+00:00"
    assert attributes["pipeline"] is None
    assert type(attributes["event"]) is type(attributes["outcome"]) is str


def test_fields_are_plain_text_whatever_they_were_made_of(heard: Listened) -> None:
    event = allowed(reason=Reason.ACL, permission=Permission.EXECUTE, rule="x\n")
    AuditLogger(heard.logger.name).record(event)
    [record] = heard.records
    assert {type(vars(record)[name]) for name in ("event", "outcome", "reason", "permission", "rule", "sub")} == {str}


def test_processors_see_the_fields_and_may_change_them(heard: Listened) -> None:
    def add(_logger: Any, name: str, fields: Any) -> Any:
        return {**fields, "region": "eu", "seen": name}

    AuditLogger(heard.logger.name, processors=[add]).record(allowed())
    assert vars(heard.records[0])["region"] == "eu"
    assert vars(heard.records[0])["seen"] == "info"


def test_processors_of_structlog_work_as_they_do_elsewhere(heard: Listened) -> None:
    processors = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
    ]
    with structlog.contextvars.bound_contextvars(region="eu"):
        AuditLogger(heard.logger.name, processors=processors).record(denied())
    [record] = heard.records
    assert vars(record)["region"] == "eu"
    assert (vars(record)["logger"], vars(record)["level"]) == (heard.logger.name, "warning")


def test_what_a_renderer_makes_of_an_event_is_the_message(heard: Listened) -> None:
    AuditLogger(heard.logger.name, processors=[structlog.processors.JSONRenderer()]).record(allowed())
    assert json.loads(heard.records[0].getMessage())["sub"] == allowed().sub


def test_structlog_captures_events_with_their_fields_in_tests(heard: Listened) -> None:
    audit = AuditLogger(heard.logger.name)
    with structlog.testing.capture_logs() as captured:
        audit.record(denied())
    assert heard.records == []
    [event] = captured
    assert (event["event"], event["log_level"], event["sub"]) == ("task_authz_deny", "warning", denied().sub)
    audit.record(denied())
    assert len(heard.records) == 1


def test_a_configuration_of_structlog_changes_no_record(heard: Listened) -> None:
    before = structlog.get_config()
    structlog.configure(processors=[structlog.processors.JSONRenderer()], logger_factory=structlog.PrintLoggerFactory())
    try:
        AuditLogger(heard.logger.name).record(allowed())
    finally:
        structlog.configure(**before)
    assert heard.records[0].getMessage() == "task_authz_allow"
    assert vars(heard.records[0])["sub"] == allowed().sub


def test_a_processor_may_drop_an_event(heard: Listened) -> None:
    def drop(_logger: Any, _name: str, _fields: Any) -> Any:
        raise structlog.DropEvent

    AuditLogger(heard.logger.name, processors=[drop]).record(allowed())
    assert heard.records == []


def test_a_level_that_was_set_holds(heard: Listened) -> None:
    heard.logger.setLevel(logging.ERROR)
    audit = AuditLogger(heard.logger.name)
    audit.record(denied())
    assert heard.records == []
    assert not audit.records(Outcome.ALLOW)
    assert not audit.records(Outcome.DENY)


def test_no_record_is_made_of_what_is_allowed_where_nobody_listens() -> None:
    silent = Listened()
    silent.logger.removeHandler(silent.handler)
    audit = AuditLogger(silent.logger.name)
    assert not audit.records(Outcome.ALLOW)
    assert audit.records(Outcome.DENY)  # logging prints warnings then


def test_a_sink_gets_every_event_whatever_the_logger_does(heard: Listened) -> None:
    class Sink:
        def __init__(self) -> None:
            self.events: list[AuditEvent] = []
            self.flushed = False

        def write(self, event: AuditEvent) -> None:
            self.events.append(event)

        def flush(self) -> None:
            self.flushed = True

    sink = Sink()
    heard.logger.setLevel(logging.CRITICAL)
    audit = AuditLogger(heard.logger.name, sinks=[sink])
    assert audit.records(Outcome.ALLOW)
    audit.record(allowed())
    audit.record(denied())
    audit.flush()
    assert sink.events == [allowed(), denied()]
    assert sink.flushed


@pytest.mark.parametrize("text", ["a\nb", "a\x1b[2Jb", "a\u2028b", "x" * 201, "\ud800"])
def test_text_from_outside_cannot_break_a_line(heard: Listened, text: str) -> None:
    AuditLogger(heard.logger.name).record(denied(task=text, sub=text, roles=frozenset({text})))
    [record] = heard.records
    for value in (vars(record)["task"], vars(record)["sub"], *vars(record)["roles"]):
        assert value.isprintable()
        assert len(value) <= 203


def test_a_change_is_told_to_its_end_and_cannot_break_a_line_either(heard: Listened) -> None:
    audit = AuditLogger(heard.logger.name)
    for change in ("x" * 16_000 + "the end", "a\nb", "x" * 20_000):
        audit.record(allowed(change=change))
    whole, escaped, cut = (str(vars(record)["change"]) for record in heard.records)
    assert whole.endswith("the end")
    assert escaped == "a\\nb"
    assert len(cut) == 16 * 1024 + 3


def test_the_formatter_makes_one_json_object_of_the_fields_that_there_are(heard: Listened) -> None:
    AuditLogger(heard.logger.name).record(allowed(sub="\u00e9"))
    line = AuditFormatter().format(heard.records[0])
    assert "\n" not in line
    assert json.loads(line)["sub"] == "\u00e9"
    assert "pipeline" not in json.loads(line)
