"""Whether a broker's format gives back what it was given."""

from __future__ import annotations

import pickletools

from taskiq.abc.broker import AsyncBroker
from taskiq.abc.formatter import TaskiqFormatter
from taskiq.abc.serializer import TaskiqSerializer
from taskiq.message import TaskiqMessage

from taskiq_flow_security.broker.wire import to_wire

_PROBE = [
    {"b": None, "a": True, "\u00e9\u4e2d\U0001f511": "\u00e9\u4e2d\U0001f511\x00\n"},
    [0.1, -0.0, 1e-300, 2.5, float("nan"), float("inf"), 2**53 + 1, -(2**63), 2**63 - 1, "", [], {}],
]
"""What formats are known to change: the order of keys, the precision of numbers, text beyond ASCII."""


class Fidelity:
    """Tests a format once, with a message of every kind of value that is never sent.

    A format that sorts keys or rounds numbers changes a message on its way. What is signed then is what will arrive.
    """

    def __init__(self, broker: AsyncBroker) -> None:
        self._broker = broker
        self._formatter: TaskiqFormatter | None = None
        self._serializer: TaskiqSerializer | None = None
        self._holds = False
        self._pickles = False

    def holds(self, formatter: TaskiqFormatter) -> bool:
        """Whether the formatter, with the broker's present serializer, changes nothing."""
        if formatter is not self._formatter or self._broker.serializer is not self._serializer:
            self._test(formatter)
        return self._holds

    def pickles(self, formatter: TaskiqFormatter) -> bool:
        """Whether what it makes is pickle, whatever it is called: to read that runs code."""
        if formatter is not self._formatter or self._broker.serializer is not self._serializer:
            self._test(formatter)
        return self._pickles

    def _test(self, formatter: TaskiqFormatter) -> None:
        self._pickles = _is_pickle(formatter)
        self._holds = not self._pickles and _changes_nothing(formatter)
        self._formatter, self._serializer = formatter, self._broker.serializer


def _probe() -> TaskiqMessage:
    return TaskiqMessage(
        task_id="probe",
        task_name="probe",
        labels={"b": "1", "a": "2"},
        args=_PROBE,
        kwargs={"b": 1, "a": 2},
    )


def _is_pickle(formatter: TaskiqFormatter) -> bool:
    try:
        for _ in pickletools.genops(formatter.dumps(_probe()).message):
            pass
    except Exception:  # noqa: BLE001 (any other bytes end somewhere in an error, and formats raise what they like)
        return False
    return True


def _changes_nothing(formatter: TaskiqFormatter) -> bool:
    probe = _probe()
    try:
        arrived = formatter.loads(formatter.dumps(probe).message)
        return repr(to_wire(arrived)) == repr(to_wire(probe))  # unlike ==, sees order and types
    except Exception:  # noqa: BLE001 (a format that cannot even carry the probe changes something)
        return False
