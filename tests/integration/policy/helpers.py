"""What the tests of a shared policy ask and wait for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from taskiq_flow_security import FlowSecurity, Principal
from taskiq_flow_security.stores.redis import RedisKeys
from tests.integration.runs.processes import Deployment

ADMIN = Principal("root", permissions=["admin"])
ADA = Principal("ada", permissions=["execute"])


def allows(security: FlowSecurity, principal: Principal = ADA) -> bool:
    return security.explain(principal, pipeline="data").allowed


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait until something has been seen that nobody tells of."""

    async def wait() -> None:
        while not condition():  # noqa: ASYNC110 (nobody tells)
            await asyncio.sleep(0.01)

    await asyncio.wait_for(wait(), seconds)


def key_of(deployment: Deployment) -> str:
    return RedisKeys(deployment.environment).policy()
