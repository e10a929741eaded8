"""An allowed task, a refused one, a forged message, and what the audit log says of them. Needs no service."""

import asyncio
import logging
import secrets
import sys

from taskiq import InMemoryBroker, TaskiqDepends
from taskiq.message import BrokerMessage, TaskiqMessage

from taskiq_flow_security import (
    AccessDeniedError,
    FlowSecurity,
    Principal,
    SecurityMiddleware,
    TaskiqFlowConfig,
    current_principal,
    guard,
)

PROCESSOR_KEY = secrets.token_urlsafe()
VIEWER_KEY = secrets.token_urlsafe()

security = FlowSecurity(
    TaskiqFlowConfig(
        jwt_secret=secrets.token_urlsafe(32),  # in a deployment, the same in every process
        api_keys={
            PROCESSOR_KEY: {
                "role": "processor",
                "pipelines": ["data-pipeline"],
                "permissions": ["read", "execute"],
            },
            VIEWER_KEY: {
                "role": "viewer",
                "pipelines": ["data-pipeline"],
                "permissions": ["read"],
            },
        },
        pipeline_acls={"data-pipeline": {"read": ["processor", "viewer"], "execute": ["processor"]}},
    )
)
broker = InMemoryBroker(await_inplace=True).with_middlewares(SecurityMiddleware(security))


@broker.task(pipeline="data-pipeline")
@guard(roles=["processor"])
async def clean(rows: list[int], caller: Principal = TaskiqDepends(current_principal)) -> int:
    """Count the rows that are not negative."""
    print(f"  clean runs in the name of {caller.subject}")
    return sum(row >= 0 for row in rows)


async def main() -> None:
    await broker.startup()

    print("\nA processor may run the pipeline:")
    processor = await security.authenticate(api_key=PROCESSOR_KEY)
    with security.acting_as(processor):
        task = await clean.kiq([1, -2, 3])
    print("  result:", (await task.get_result()).return_value)

    print("\nA viewer may not; the kick raises before anything is sent:")
    viewer = await security.authenticate(api_key=VIEWER_KEY)
    try:
        with security.acting_as(viewer):
            await clean.kiq([1, -2, 3])
    except AccessDeniedError as error:
        print("  refused:", error)

    print("\nSomebody writes a message of their own to the queue; the worker refuses it:")
    forged = TaskiqMessage(task_id="forged", task_name=clean.task_name, labels={}, args=[[1]], kwargs={})
    await broker.kick(
        BrokerMessage(
            task_id=forged.task_id,
            task_name=forged.task_name,
            message=forged.model_dump_json().encode(),
            labels={},
        )
    )
    result = await broker.result_backend.get_result("forged")
    print("  refused:", result.error)

    await broker.shutdown()


class OneLine(logging.Formatter):
    """The fields of an audit record that a person looks for first."""

    def format(self, record: logging.LogRecord) -> str:
        names = ("outcome", "reason", "sub", "pipeline", "task_id", "txn")
        fields = " ".join(f"{name}={value}" for name in names if (value := getattr(record, name)))
        return f"  audit: {record.getMessage():<20} {fields}"


if __name__ == "__main__":
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(OneLine())
    audit = logging.getLogger("taskiq_flow.audit")
    audit.addHandler(handler)
    audit.propagate = False
    logging.getLogger("taskiq").setLevel(logging.ERROR)  # it warns of each refusal in its own words
    asyncio.run(main())
