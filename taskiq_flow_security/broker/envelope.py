"""What messages have in common that are kicked in one name, for one task, with the same labels."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic_core import to_json
from taskiq.message import TaskiqMessage

from taskiq_flow_security.broker import wire
from taskiq_flow_security.broker.wire import WireMessage

_ID = b'{"task_id":'
_NO_ARGUMENTS = b'"args":[],"kwargs":{}}'
_VARYING = {"args", "kwargs"}


@dataclass(frozen=True, slots=True)
class Envelope:
    """The part of the bytes to sign that stands between a message's id and its arguments."""

    common: bytes

    @classmethod
    def of(cls, task_name: str, labels: dict[str, str], labels_types: dict[str, int] | None) -> Envelope:
        """The envelope of messages for this task with these labels, its principal among them.

        Raises as `wire.signed_payload`.
        """
        empty = WireMessage(
            task_id="", task_name=task_name, labels=labels, labels_types=labels_types, args=[], kwargs={}
        )
        return cls(wire.signed_payload(empty)[len(_ID + b'""') : -len(_NO_ARGUMENTS)])

    def payload(self, message: TaskiqMessage) -> bytes:
        """The bytes to sign for one of these messages, which must be a `TaskiqMessage` and of no subclass.

        Raises as `wire.signed_payload`.
        """
        try:
            # What `TaskiqMessage.model_dump` calls, in its own words.
            data = message.__pydantic_serializer__.to_python(message, mode="json", include=_VARYING)
            arguments = to_json(data)
            wire.check_readable(arguments)
            return b"".join((_ID, to_json(message.task_id), self.common, arguments[1:]))
        except ValueError as error:
            raise wire.unsignable(error) from None
