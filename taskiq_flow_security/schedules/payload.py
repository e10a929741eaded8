"""What is signed of a schedule: all of it, however a store may write it down."""

from __future__ import annotations

import json

from taskiq import ScheduledTask

from taskiq_flow_security.broker.wire import SCHEDULE_LABEL
from taskiq_flow_security.errors import UnsignableMessageError
from taskiq_flow_security.tokens.message_signature import SIGNATURE_LABEL

_ADDED = frozenset({SIGNATURE_LABEL, SCHEDULE_LABEL})
"""Labels that are put on after a schedule was signed."""


def payload_of(schedule: ScheduledTask) -> bytes:
    """The bytes to sign, the principal's label among them. Stores may sort what is in a schedule, and so does this.

    Raises `UnsignableMessageError` for a value that JSON cannot hold.
    """
    try:
        plain = schedule.model_dump(mode="json")
        plain["labels"] = {name: value for name, value in plain["labels"].items() if name not in _ADDED}
        return json.dumps(plain, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
    except (ValueError, TypeError, RecursionError):
        raise UnsignableMessageError(
            "The schedule holds a value that cannot be signed; give it what JSON can hold."
        ) from None
