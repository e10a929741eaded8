"""Audit events in a file, written in batches."""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from io import FileIO

from taskiq_flow_security.audit.fields import lines_of
from taskiq_flow_security.core.events import AuditEvent, Outcome
from taskiq_flow_security.errors import ConfigurationError
from taskiq_flow_security.losses import Losses

_logger = logging.getLogger(__name__)

_FULL = 256
"""How many events make a batch that waits for no more."""

_URGENT = Outcome.DENY
"""What does not wait for others."""

_KEPT = 100_000
"""How many events wait at most for a file that cannot be written to."""


class AuditFile:
    """Appends events to a file, one JSON object a line. Several processes may share it.

    A denial is written at once, with all that came before it. What was allowed waits for others, `flush_interval`
    seconds at most: those are the lines that a process loses when it is killed. 0 writes each line at once. The file
    may be moved away at any time, as log rotation does. Where it cannot be written to, lines wait until it can; the
    oldest of too many are dropped, and the log says so.

    Raises `ConfigurationError` if the file cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str], *, flush_interval: float = 0.1) -> None:
        self._path = path
        self._interval = flush_interval
        self._full = _FULL if flush_interval > 0 else 1
        self._begin()
        try:
            self._file = self._open()
        except OSError as error:
            raise ConfigurationError(f"audit_file: {path} cannot be opened to append to ({error.strerror}).") from None
        atexit.register(self.flush)

    def write(self, event: AuditEvent) -> None:
        """Add a line for this event."""
        if self._process != os.getpid():  # a child that was forked: it has no thread, and not its parent's events
            self._begin()
        self._events.append(event)  # without the lock: what was allowed does not wait while a batch is written
        if event.outcome is _URGENT or len(self._events) >= self._full:
            self.flush()
        elif not self._waiting.is_set():
            self._wait()

    def flush(self) -> None:
        """Write what is waiting."""
        if self._process == os.getpid():
            with self._lock:
                self._append()

    def _begin(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._events: list[AuditEvent] = []
        """Those that are no lines yet: made one after the other, lines take half the time."""
        self._rest = b""
        """What is still to be written of a batch."""
        self._failures = Losses(_logger, f"times, {self._path} could not be written to, and audit events wait")
        self._dropped = Losses(_logger, f"audit events were dropped that should stand in {self._path}")
        self._waiting = threading.Event()
        self._writer: threading.Thread | None = None

    def _wait(self) -> None:
        if self._writer is None:
            with self._lock:
                if self._writer is None:
                    self._writer = threading.Thread(target=self._run, name="taskiq-flow-audit", daemon=True)
                    self._writer.start()
        self._waiting.set()

    def _run(self) -> None:
        while True:
            self._waiting.wait()
            time.sleep(self._interval)
            self._waiting.clear()
            self.flush()

    def _append(self) -> None:
        if not (self._events or self._rest):
            return
        try:
            if not self._in_place():
                opened = self._open()
                self._file.close()
                self._file = opened
            self._write_rest()
            events = self._events.copy()
            self._rest = "".join(lines_of(events)).encode()
            del self._events[: len(events)]
            self._write_rest()
        except OSError as error:
            self._failures.add(error.strerror or type(error).__name__)
            too_many = len(self._events) - _KEPT
            if too_many > 0:
                self._dropped.add("too many were waiting for the file", too_many)
                del self._events[:too_many]

    def _write_rest(self) -> None:
        while self._rest:
            self._rest = self._rest[self._file.write(self._rest) :]

    def _open(self) -> FileIO:
        return FileIO(self._path, "a", opener=_for_owner_only)

    def _in_place(self) -> bool:
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(self._file.fileno()))
        except FileNotFoundError:
            return False


def _for_owner_only(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
