"""The application of this deployment: one pipeline, its API, and what its workers run.

The API is ``uvicorn app:app``, a worker ``taskiq worker app:broker``. Both read the same TASKIQ_FLOW_* variables.
"""

import os

from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

from taskiq_flow_security import FlowSecurity, SecurityMiddleware, TaskiqFlowConfig, guard
from taskiq_flow_security.http import create_visualization_api

REDIS_URL = os.environ["REDIS_URL"]

security = FlowSecurity(TaskiqFlowConfig())
results: RedisAsyncResultBackend[int] = RedisAsyncResultBackend(REDIS_URL, result_ex_time=86_400)
broker = (
    RedisStreamBroker(REDIS_URL)
    .with_result_backend(security.protect_results(results))
    .with_middlewares(SecurityMiddleware(security))
)


@broker.task(pipeline="data-pipeline")
@guard(roles=["processor", "admin"])
async def clean(rows: list[int]) -> int:
    """Count the rows that are not negative."""
    return sum(row >= 0 for row in rows)


app = create_visualization_api(broker)
