"""How the two sides of the deployment under test are configured."""

from __future__ import annotations

import json
from typing import Any

from taskiq_flow_security import Principal, TaskiqFlowConfig

JWT_SECRET = "integration-bearer-secret-0123456789abcdef"
MESSAGE_SECRET = "integration-message-secret-0123456789abcdef"
OTHER_SECRET = "integration-stolen-from-elsewhere-0123456789"
API_KEY = "integration-key-of-the-processor"
REMOVED_API_KEY = "integration-key-removed-from-the-workers"
SECRETS = (JWT_SECRET, MESSAGE_SECRET, OTHER_SECRET, API_KEY, REMOVED_API_KEY)

PROCESSOR = Principal("alice", roles=["processor"])
VIEWER = Principal("bob", roles=["viewer"])

_KEY_HOLDER = {
    "role": "processor",
    "pipelines": ["data", "restricted"],
    "permissions": ["execute"],
}


def signing_key(kid: str, secret: str) -> dict[str, object]:
    """An entry of `signing_keys` that may do everything."""
    return {"kid": kid, "alg": "HS256", "uses": ["issue", "send"], "secret": secret}


def caller_config(**changes: Any) -> TaskiqFlowConfig:
    """The configuration of the processes that kick."""
    settings: dict[str, Any] = {
        "jwt_secret": JWT_SECRET,
        "signing_keys": [signing_key("current", MESSAGE_SECRET)],
        "api_keys": {API_KEY: _KEY_HOLDER, REMOVED_API_KEY: _KEY_HOLDER},
        "pipeline_acls": {
            "data": {"execute": ["processor"]},
            "restricted": {"execute": ["processor"]},
        },
    }
    return TaskiqFlowConfig(**(settings | changes))


def worker_variables() -> dict[str, str]:
    """The configuration of the workers: one pipeline is narrower, and one API key less."""
    return {
        "TASKIQ_FLOW_JWT_SECRET": JWT_SECRET,
        "TASKIQ_FLOW_SIGNING_KEYS": json.dumps([signing_key("current", MESSAGE_SECRET)]),
        "TASKIQ_FLOW_API_KEYS": json.dumps({API_KEY: _KEY_HOLDER}),
        "TASKIQ_FLOW_PIPELINE_ACLS": json.dumps(
            {
                "data": {"execute": ["processor"]},
                "restricted": {"execute": ["administrator"]},
            }
        ),
    }
