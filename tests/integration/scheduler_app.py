"""What ``taskiq scheduler tests.integration.scheduler_app:scheduler`` runs, beside a worker of `worker_app`."""

from __future__ import annotations

import os

from taskiq import AsyncBroker, TaskiqScheduler, async_shared_broker
from taskiq.schedule_sources import LabelScheduleSource
from taskiq.serializers import JSONSerializer
from taskiq_redis import ListRedisScheduleSource, RedisScheduleSource

from taskiq_flow_security import FlowSecurity, ProtectedSchedules, SecurityMiddleware, TaskiqFlowConfig
from tests.integration import worker_app
from tests.integration.transports import Transport, from_environment
from tests.services import REDIS_URL

SOURCES = {"list": ListRedisScheduleSource, "keys": RedisScheduleSource}


def sources(transport: Transport, broker: AsyncBroker) -> dict[str, ProtectedSchedules]:
    """The protected sources of a queue, by the way in which they are stored."""
    return {
        kind: ProtectedSchedules(
            make(REDIS_URL, prefix=f"{transport.name}-{kind}", serializer=JSONSerializer()),
            broker,
        )
        for kind, make in SOURCES.items()
    }


def scheduler() -> TaskiqScheduler:
    """The scheduler, made from environment variables."""
    transport = from_environment()
    broker = transport.broker().with_middlewares(SecurityMiddleware(FlowSecurity(TaskiqFlowConfig())))
    async_shared_broker.default_broker(broker)
    marker = os.environ["SCHEDULED_IN_CODE"]

    @broker.task(worker_app.clean.task_name, pipeline="data", schedule=[{"interval": 3600, "args": [marker, [1, 2]]}])
    async def clean(marker: str, rows: list[int]) -> int:
        return 0

    in_code = ProtectedSchedules(LabelScheduleSource(broker), broker, service="nightly")
    worker_app.write_audit_lines()
    return TaskiqScheduler(broker, [*sources(transport, broker).values(), in_code])
