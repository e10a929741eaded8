"""A disk that fills up, and whoever fills it, leaves the audit file readable and complete."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from taskiq_flow_security.audit import AuditFile
from taskiq_flow_security.core.events import AuditEvent, EventName, Outcome

resource = pytest.importorskip("resource", reason="not on Windows")


@contextmanager
def _largest_file(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_line_that_was_written_in_part_is_completed(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    file = AuditFile(path, flush_interval=0)
    tasks = ["first", "second", "third"]
    events = [AuditEvent(EventName.TASK_AUTHZ_DENY, 1.0, Outcome.DENY, task=task) for task in tasks]
    file.write(events[0])
    with _largest_file(os.path.getsize(path) * 3 // 2):
        file.write(events[1])
    file.write(events[2])
    assert [json.loads(line)["task"] for line in path.read_text().splitlines()] == tasks
