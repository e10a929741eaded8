"""The complete example of taskiq-flow's security guide, with this package's names: ``uvicorn ...guide_app:app``.

Beside the names, three things differ, as the guide's own checks need a viewer's key, a secret of 32 bytes at least is
required, and the configuration has to be given to the API to count.
"""

from taskiq import InMemoryBroker

from taskiq_flow_security import AuditLogger, TaskiqFlowConfig
from taskiq_flow_security.http import create_visualization_api

# 1. Configure security
config = TaskiqFlowConfig(
    security_enabled=True,
    auth_provider="api_key",
    api_keys={
        "processor-key": {
            "role": "processor",
            "pipelines": ["data-pipeline"],
            "permissions": ["read", "execute"],
        },
        "admin-key": {
            "role": "admin",
            "pipelines": ["*"],
            "permissions": ["read", "execute", "admin"],
        },
        "viewer-key": {
            "role": "viewer",
            "pipelines": ["pipeline1", "pipeline2"],
            "permissions": ["read"],
        },
    },
    jwt_secret="super-secret-and-long-enough-for-hs256",
    require_https=True,
    pipeline_acls={
        "data-pipeline": {
            "read": ["processor", "admin"],
            "execute": ["processor", "admin"],
        },
    },
    rate_limit_enabled=True,
    rate_limit_default="30/minute",
    websocket_require_auth=True,
)

# 2. Initialize broker and API
broker = InMemoryBroker()
app = create_visualization_api(broker, config)

# 3. Optional: custom audit logger
audit_logger = AuditLogger()


@broker.task(pipeline="data-pipeline")
async def clean(rows: list[int]) -> int:
    """A pipeline for the API to show."""
    return len(rows)
