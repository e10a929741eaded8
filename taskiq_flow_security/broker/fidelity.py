"""Whether a broker's format gives back what it was given."""

from __future__ import annotations

from taskiq.abc.broker import AsyncBroker
from taskiq.abc.formatter import TaskiqFormatter
from taskiq.message import TaskiqMessage

from taskiq_flow_security.broker.wire import to_wire

_PROBE = [
    {"b": None, "a": True, "\u00e9\u4e2d\U0001f511": "\u00e9\u4e2d\U0001f511\x00\n"},
    [0.1, -0.0, 1e-300, 2.5, float("nan"), float("inf"), 2**53 + 1, -(2**63), 2**63 - 1, "", [], {}],
]
"""What formats are known to change: the order of keys, the precision of numbers, text beyond ASCII."""


class Fidelity:
    """Tests a format once with a message of every kind of value.

    A format that sorts keys or rounds numbers changes a message on its way. What is signed then is what will arrive.
    """

    def __init__(self, broker: AsyncBroker) -> None:
        self._broker = broker
        self._tested: object = None
        self._holds = False

    def holds(self, formatter: TaskiqFormatter) -> bool:
        """Whether the formatter, with the broker's present serializer, changes nothing."""
        combination = (formatter, self._broker.serializer)
        if combination != self._tested:
            self._holds = _changes_nothing(formatter)
            self._tested = combination
        return self._holds


def _changes_nothing(formatter: TaskiqFormatter) -> bool:
    probe = TaskiqMessage(
        task_id="probe",
        task_name="probe",
        labels={"b": "1", "a": "2"},
        args=_PROBE,
        kwargs={"b": 1, "a": 2},
    )
    try:
        arrived = formatter.loads(formatter.dumps(probe).message)
        return repr(to_wire(arrived)) == repr(to_wire(probe))  # unlike ==, sees order and types
    except Exception:  # noqa: BLE001 (a format that cannot even carry the probe changes something)
        return False
