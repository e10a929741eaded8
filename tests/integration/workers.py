"""Runs the real ``taskiq worker`` command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from time import monotonic

from tests.integration.ledger import wait_for
from tests.integration.transports import Transport, redis_client

ROOT = Path(__file__).parents[2]
APP = "tests.integration.worker_app:broker"
START_SECONDS = 60
STOP_SECONDS = 30


class Worker:
    """A ``taskiq worker`` with one worker process, which is ready when this object is made."""

    def __init__(
        self,
        transport: Transport,
        settings: Mapping[str, str],
        log: Path,
        *options: str,
        app: str = APP,
    ) -> None:
        self.log = log
        self._ended = False
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("TASKIQ_FLOW_")}
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "taskiq", "worker", "--workers", "1"),
                    *options,
                    app,
                ],
                cwd=ROOT,
                env={**inherited, **transport.environment(), **settings},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that all its processes can be killed at once
            )
        try:
            self.pid = self._wait_until_ready(transport)
        except BaseException:
            self.kill()
            raise

    @property
    def output(self) -> str:
        """All that it has written so far."""
        return self.log.read_text(errors="replace")

    def stop(self) -> None:
        """Stop it as a supervisor does; tasks that run are finished first."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"The worker does not stop.\n{self.output}") from None
        finally:
            self.kill()

    def kill(self) -> None:
        """``kill -9`` all its processes."""
        if self._ended:
            return  # by now, the number of its process group may be another's
        self._ended = True
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _wait_until_ready(self, transport: Transport) -> int:
        deadline = monotonic() + START_SECONDS
        with redis_client() as redis:
            while self._process.poll() is None and monotonic() < deadline:
                pid = wait_for(redis, f"{transport.name}:ready", 0.5)
                if pid is not None:
                    return int(pid)
        raise AssertionError(f"The worker does not start.\n{self.output}")
