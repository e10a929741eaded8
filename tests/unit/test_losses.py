"""A loss is logged at once, and then counted."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from taskiq_flow_security.losses import INTERVAL, Losses
from tests.integration.inmemory.harness import Clock


def test_a_thousand_losses_are_two_lines(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock(0.0)
    lost = Losses(logging.getLogger("test"), "things were lost", clock)
    for _ in range(1000):
        lost.add("so it goes")
    clock.now += INTERVAL
    lost.add("so it goes", 2)
    assert caplog.messages == ["1 things were lost: so it goes.", "1001 things were lost: so it goes."]


def test_each_cause_is_counted_by_itself(caplog: pytest.LogCaptureFixture) -> None:
    lost = Losses(logging.getLogger("test"), "things were lost")
    lost.add("one")
    lost.add("other")
    assert len(caplog.messages) == 2


def test_what_is_lost_while_a_loss_is_counted_is_counted_too(caplog: pytest.LogCaptureFixture) -> None:
    losses = Losses(logging.getLogger("tests.losses"), "things were lost")

    class Collected(dict[str, float]):
        """Where the garbage collector comes by once, and ends what is a loss itself."""

        def get(self, why: str, default: Any = None) -> Any:
            if not self:
                self["collected"] = 0.0
                losses.add(why, 2)
            return default

    losses._logged = Collected()
    losses.add("one cause")
    assert [message.split(" ")[0] for message in caplog.messages] == ["3"]
