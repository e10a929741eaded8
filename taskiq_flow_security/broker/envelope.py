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
    def of(cls, data: WireMessage) -> Envelope:
        """The envelope of messages like this one, its principal already in place. Raises as `wire.signed_payload`."""
        empty = wire.signed_payload({**data, "task_id": "", "args": [], "kwargs": {}})
        return cls(empty.removeprefix(_ID + b'""').removesuffix(_NO_ARGUMENTS))

    def payload(self, message: TaskiqMessage) -> bytes:
        """The bytes to sign for one of these messages. Raises as `wire.signed_payload`."""
        try:
            # What `model_dump` calls, in its own words.
            data = message.__pydantic_serializer__.to_python(message, mode="json", include=_VARYING)
            arguments = to_json(data)
            wire.check_readable(arguments)
            return b"".join((_ID, to_json(message.task_id), self.common, arguments[1:]))
        except ValueError as error:
            raise wire.unsignable(error) from None
