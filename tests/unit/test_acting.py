"""Who acts does so in one context, and in no other process."""

from __future__ import annotations

import multiprocessing
import sys
from contextvars import copy_context

import pytest

from taskiq_flow_security import Principal, acting
from taskiq_flow_security.acting import Acting


def _leave_if_somebody_acts() -> None:
    sys.exit(int(acting.current() is not None or acting.firing("nightly") is not None))


def _fork() -> int | None:
    actor = Acting(Principal("alice"), "txn", owner=None, schedule="nightly")
    acting.become(actor)
    acting.fire(actor)
    child = multiprocessing.get_context("fork").Process(target=_leave_if_somebody_acts)
    child.start()
    child.join(30)
    return child.exitcode


@pytest.mark.skipif(sys.platform == "win32", reason="nothing is forked there")
def test_nobody_acts_in_a_process_that_was_forked_while_somebody_did() -> None:
    assert copy_context().run(_fork) == 0
