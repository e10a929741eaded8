"""What the tests of a shared policy ask."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable

from taskiq_flow_security import FlowSecurity, Principal
from taskiq_flow_security.stores.redis import RedisKeys
from tests.integration.runs.processes import Deployment

ADMIN = Principal("root", permissions=["admin"])
ADA = Principal("ada", permissions=["execute"])


def allows(security: FlowSecurity, principal: Principal = ADA) -> bool:
    return security.explain(principal, pipeline="data").allowed


async def forked(work: Callable[[], bool]) -> int:
    """How a child ends that is forked to do this: with 0 if so, and killed if it takes too long."""
    child = os.fork()
    if child == 0:
        done = False
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(30)
            done = work()
        finally:
            os._exit(0 if done else 1)
    _, status = await asyncio.to_thread(os.waitpid, child, 0)
    return os.waitstatus_to_exitcode(status)


def key_of(deployment: Deployment) -> str:
    return RedisKeys(deployment.environment).policy()
