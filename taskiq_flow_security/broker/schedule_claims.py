"""What a principal that was issued for a schedule is good for."""

from __future__ import annotations

import json
from hashlib import sha256

from taskiq import ScheduledTask
from taskiq.message import TaskiqMessage

from taskiq_flow_security.broker.wire import PIPELINE_LABEL, unsignable
from taskiq_flow_security.tokens.claims import ScheduleClaim


def schedule_claim(
    schedule_id: str, message: TaskiqMessage | ScheduledTask, done_for: str | None = None
) -> ScheduleClaim:
    """What a principal is issued for that runs this and nothing else, however a store has written it down.

    `done_for` is the pipeline that is acted for, if any.
    Raises `UnsignableMessageError` for a value that JSON cannot hold.
    """
    try:
        plain = message.model_dump(mode="json", include={"task_name", "args", "kwargs"})
        plain["pipelines"] = [message.labels.get(PIPELINE_LABEL), done_for]
        digest = sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
    except (ValueError, TypeError, RecursionError) as error:
        raise unsignable(error) from None
    return ScheduleClaim(id=schedule_id, sha256=digest)
