"""Security for TaskIQ at the task and broker layer: nothing runs on a worker without a verified principal.

The names below are imported when they are first used, so that importing a part of the package (its pure core, say)
loads no more than that part needs.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from taskiq_flow_security.acting import current_principal
    from taskiq_flow_security.audit import AuditLogger
    from taskiq_flow_security.broker.guard import guard
    from taskiq_flow_security.broker.middleware import SecurityMiddleware
    from taskiq_flow_security.config import TaskiqFlowConfig
    from taskiq_flow_security.core.policy import Decision
    from taskiq_flow_security.core.principal import Permission, Principal
    from taskiq_flow_security.errors import (
        AccessDeniedError,
        AuthenticationError,
        BackendUnavailableError,
        ConfigurationError,
        FlowSecurityError,
        PolicyConflictError,
        RateLimitExceededError,
        ResultVerificationError,
        UnsignableMessageError,
    )
    from taskiq_flow_security.live_policy import PolicyChange, Revocation
    from taskiq_flow_security.schedules import ProtectedSchedules
    from taskiq_flow_security.security import FlowSecurity

__version__ = "0.1.0"

_HOMES = {
    "AccessDeniedError": "errors",
    "AuditLogger": "audit",
    "AuthenticationError": "errors",
    "BackendUnavailableError": "errors",
    "ConfigurationError": "errors",
    "Decision": "core.policy",
    "FlowSecurity": "security",
    "FlowSecurityError": "errors",
    "Permission": "core.principal",
    "PolicyChange": "live_policy",
    "PolicyConflictError": "errors",
    "Principal": "core.principal",
    "ProtectedSchedules": "schedules",
    "RateLimitExceededError": "errors",
    "ResultVerificationError": "errors",
    "Revocation": "live_policy",
    "SecurityMiddleware": "broker.middleware",
    "TaskiqFlowConfig": "config",
    "UnsignableMessageError": "errors",
    "current_principal": "acting",
    "guard": "broker.guard",
}

__all__ = [
    "AccessDeniedError",
    "AuditLogger",
    "AuthenticationError",
    "BackendUnavailableError",
    "ConfigurationError",
    "Decision",
    "FlowSecurity",
    "FlowSecurityError",
    "Permission",
    "PolicyChange",
    "PolicyConflictError",
    "Principal",
    "ProtectedSchedules",
    "RateLimitExceededError",
    "ResultVerificationError",
    "Revocation",
    "SecurityMiddleware",
    "TaskiqFlowConfig",
    "UnsignableMessageError",
    "current_principal",
    "guard",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
