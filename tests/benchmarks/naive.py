"""The guard that one writes first: a PyJWT token for every task, a role look-up, a rate limit and a log line.

It is what `SecurityMiddleware` is compared with. It covers less (no labels, no requeue, no typed refusal) and logs once
for each task where `SecurityMiddleware` records twice, and is as fast as its parts allow.
"""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from pathlib import Path

import jwt
import structlog
from limits import parse
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter
from taskiq import TaskiqMessage, TaskiqMiddleware

SECRET = "naive-benchmark-secret-0123456789abcdef"
LIMIT = parse("1000000000/minute")
ALLOWED_ROLES = {"work": {"processor"}}


class NaiveGuard(TaskiqMiddleware):
    """Lets a task run if its token is genuine, belongs to it, and names a role that may run it."""

    def __init__(self, subject: str, roles: list[str], log: Path) -> None:
        super().__init__()
        self._subject = subject
        self._roles = roles
        self._limiter = FixedWindowRateLimiter(MemoryStorage())
        self._log = structlog.wrap_logger(
            structlog.WriteLogger(log.open("a")),
            processors=[
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                structlog.processors.JSONRenderer(),
            ],
        ).bind()

    def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
        """Sign."""
        now = int(time.time())
        claims = {
            "sub": self._subject,
            "roles": self._roles,
            "iat": now,
            "exp": now + 3600,
            "jti": uuid.uuid4().hex,
            "digest": _digest(message),
        }
        message.labels["authorization"] = jwt.encode(claims, SECRET, algorithm="HS256")
        return message

    def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
        """Verify, decide, count, log."""
        claims = jwt.decode(message.labels.pop("authorization"), SECRET, algorithms=["HS256"])
        if claims["digest"] != _digest(message):
            raise PermissionError("the token belongs to another message")
        if ALLOWED_ROLES[message.task_name].isdisjoint(claims["roles"]):
            raise PermissionError("no role of the caller may run this task")
        if not self._limiter.hit(LIMIT, claims["sub"]):
            raise PermissionError("too many tasks")
        self._log.info(
            "task_allowed",
            sub=claims["sub"],
            roles=claims["roles"],
            task=message.task_name,
            task_id=message.task_id,
            jti=claims["jti"],
        )
        return message


def _digest(message: TaskiqMessage) -> str:
    content = [message.task_id, message.task_name, message.args, message.kwargs]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
