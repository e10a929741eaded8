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


def test_who_leaves_another_context_than_they_have_entered_changes_nothing_there() -> None:
    entered, left = copy_context(), copy_context()
    scope = acting.scope(Acting(Principal("alice"), "txn", owner=None))
    entered.run(scope.__enter__)
    left.run(acting.become, bob := Acting(Principal("bob"), "txn", owner=None))
    left.run(scope.__exit__, None, None, None)
    assert left.run(acting.current) is bob
