"""Events in a file: all of them, whole, in order."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from taskiq_flow_security import AuditLogger, ConfigurationError, FlowSecurity, TaskiqFlowConfig
from taskiq_flow_security.audit import AuditFile, fields
from taskiq_flow_security.core.events import AuditEvent
from tests.unit.audit.events import allowed, denied

NEVER = 3600.0
"""Seconds for which no test waits: lines are only written for another reason."""


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def ids(path: Path) -> list[str]:
    return [line["task_id"] for line in lines(path)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


def test_a_line_has_the_fields_that_the_event_has(path: Path) -> None:
    AuditFile(path).write(denied())
    assert lines(path) == [
        {
            "event": "task_authz_deny",
            "time": "2026-11-24T16:33:18.250000+00:00",
            "outcome": "deny",
            "reason": "acl",
            "sub": "alice",
            "roles": ["processor", "viewer"],
            "task_id": "1",
        }
    ]


@pytest.mark.parametrize("make", [allowed, denied])
@pytest.mark.parametrize("field", AuditEvent._fields[3:])
def test_each_line_has_the_fields_of_its_own_event(path: Path, make: Callable[..., AuditEvent], field: str) -> None:
    file = AuditFile(path)
    values: list[Any] = [frozenset({"a"}), frozenset({"b"})] if field == "roles" else ["a", "b"]
    for value in (*values, *values):
        file.write(make(**{field: value}))
    file.flush()
    expected = [["a"], ["b"]] if field == "roles" else ["a", "b"]
    assert [line[field] for line in lines(path)] == expected * 2


def test_each_line_has_the_time_of_its_own_event(path: Path) -> None:
    file = AuditFile(path)
    for second in (1.0, 2.0, 2.0, 1.0):
        file.write(allowed(time=second))
    file.flush()
    assert [line["time"][17:19] for line in lines(path)] == ["01", "02", "02", "01"]


def test_a_line_tells_a_change_to_its_end(path: Path) -> None:
    AuditFile(path, flush_interval=0).write(allowed(change="x" * 1000 + "the end", sub="x" * 1000))
    [line] = lines(path)
    assert (line["change"][-7:], len(line["sub"])) == ("the end", 203)


@pytest.mark.parametrize("field", ["txn", "task_id", "jti", "ip", "change", "sub"])
@pytest.mark.parametrize(
    "text", ['"', "\\", '\\",x":"', "é", "\U0001f600", "\u2028", "\n", "\x00", "\ud800", "x" * 20_000]
)
def test_a_line_says_the_same_as_the_fields_whatever_they_hold(path: Path, field: str, text: str) -> None:
    event = allowed(**{field: text})
    AuditFile(path, flush_interval=0).write(event)
    [line] = lines(path)
    assert line == {name: value for name, value in fields.fields_of(event).items() if value}


def test_nothing_that_was_denied_is_remembered(path: Path) -> None:
    before = fields._common.cache_info().currsize
    for number in range(10):
        AuditFile(path).write(denied(sub=f"invented-{number}"))
    assert fields._common.cache_info().currsize == before


def test_what_is_denied_is_written_at_once_after_all_that_came_before(path: Path) -> None:
    file = AuditFile(path, flush_interval=NEVER)
    file.write(allowed(task_id="1"))
    assert ids(path) == []
    file.write(denied(task_id="2"))
    assert ids(path) == ["1", "2"]


def test_what_is_allowed_is_written_soon_without_more_ado(path: Path) -> None:
    written = threading.Event()

    class Watched(AuditFile):
        def flush(self) -> None:
            super().flush()
            written.set()

    Watched(path, flush_interval=0.001).write(allowed())
    assert written.wait(30)
    assert ids(path) == ["1"]


def test_an_interval_of_nothing_writes_each_line_at_once(path: Path) -> None:
    AuditFile(path, flush_interval=0).write(allowed())
    assert ids(path) == ["1"]


def test_a_full_batch_is_written_at_once(path: Path) -> None:
    file = AuditFile(path, flush_interval=NEVER)
    for number in range(256):
        file.write(allowed(task_id=str(number)))
    assert ids(path) == [str(number) for number in range(256)]


def test_a_file_that_is_there_is_appended_to(path: Path) -> None:
    AuditFile(path).write(denied(task_id="1"))
    AuditFile(path).write(denied(task_id="2"))
    assert ids(path) == ["1", "2"]


def test_only_its_owner_may_read_a_file_that_is_made(path: Path) -> None:
    AuditFile(path)
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_file_that_was_moved_away_is_made_anew(path: Path) -> None:
    file = AuditFile(path)
    file.write(denied(task_id="1"))
    moved = path.rename(path.with_suffix(".1"))
    file.write(denied(task_id="2"))
    assert (ids(moved), ids(path)) == (["1"], ["2"])


def test_lines_wait_while_the_file_cannot_be_written_to(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    directory = tmp_path / "mounted"
    directory.mkdir()
    file = AuditFile(directory / "audit.jsonl")
    away = directory.rename(tmp_path / "away")
    for _ in range(1000):
        file.write(denied(task_id="1"))
    [message] = caplog.messages
    assert "could not be written to" in message
    away.rename(directory)
    file.write(denied(task_id="2"))
    assert ids(directory / "audit.jsonl") == ["1"] * 1000 + ["2"]


def test_of_lines_that_wait_too_long_the_oldest_are_dropped_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskiq_flow_security.audit.file._KEPT", 2)
    directory = tmp_path / "mounted"
    directory.mkdir()
    file = AuditFile(directory / "audit.jsonl")
    away = directory.rename(tmp_path / "away")
    for number in range(3):
        file.write(denied(task_id=str(number)))
    assert "1 audit events were dropped" in caplog.text
    away.rename(directory)
    file.flush()
    assert ids(directory / "audit.jsonl") == ["1", "2"]


def test_what_is_allowed_does_not_wait_while_a_batch_is_written(path: Path) -> None:
    file = AuditFile(path, flush_interval=NEVER)
    file.write(allowed(task_id="1"))
    with file._lock:  # as whoever writes the batch has it
        file.write(allowed(task_id="2"))
    file.flush()
    assert ids(path) == ["1", "2"]


def test_threads_share_a_file(path: Path) -> None:
    file = AuditFile(path)

    def write() -> None:
        for number in range(500):
            file.write(allowed(task_id=str(number)))

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    file.flush()
    assert sorted(ids(path)) == sorted(4 * [str(number) for number in range(500)])


def _write_in_a_child(file: AuditFile) -> None:
    file.write(allowed(task_id="child"))
    file.flush()


@pytest.mark.skipif(sys.platform == "win32", reason="nothing is forked there")
def test_a_forked_child_writes_its_own_lines_only(path: Path) -> None:
    file = AuditFile(path, flush_interval=NEVER)
    file.write(allowed(task_id="parent"))
    child = multiprocessing.get_context("fork").Process(target=_write_in_a_child, args=(file,))
    child.start()
    child.join(30)
    assert ids(path) == ["child"]
    file.flush()
    assert ids(path) == ["child", "parent"]


def test_nothing_is_lost_when_a_program_ends(path: Path) -> None:
    program = (
        "from taskiq_flow_security.audit import AuditFile\n"
        "from tests.unit.audit.events import allowed\n"
        f"AuditFile({str(path)!r}, flush_interval={NEVER}).write(allowed())\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    assert ids(path) == ["1"]


def test_a_path_that_cannot_be_opened_is_wrong_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="audit_file"):
        AuditFile(tmp_path / "missing" / "audit.jsonl")


async def test_the_setting_writes_what_the_logger_gets(path: Path) -> None:
    config = TaskiqFlowConfig(jwt_secret="x" * 32, audit_file=path)
    with pytest.raises(ConfigurationError, match="audit_file"):
        FlowSecurity(config, audit=AuditLogger())  # which would not write there
    security = FlowSecurity(config)
    with pytest.raises(Exception, match="no_credentials"):
        await security.authenticate()
    [line] = lines(path)
    assert (line["event"], line["reason"]) == ("authn_login_fail", "no_credentials")
