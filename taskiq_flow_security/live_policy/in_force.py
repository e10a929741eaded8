"""What holds now: the settings, with what was changed at run time on top."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from taskiq_flow_security.config import TaskiqFlowConfig
from taskiq_flow_security.core.policy import Policy
from taskiq_flow_security.core.revocations import Revocations
from taskiq_flow_security.live_policy.document import PolicyDocument


@dataclass(frozen=True, slots=True)
class InForce:
    """One version, made once and replaced as a whole: no decision sees a part of two."""

    policy: Policy
    roles: Mapping[str, frozenset[str]]
    """By subject, where it has other roles than its credential says."""
    rate_limits: Mapping[str, str]
    role_rate_limits: Mapping[str, Mapping[str, str]]
    task_rate_limits: Mapping[str, str]
    pipeline_rate_limits: Mapping[str, str]
    principal_rate_limit: str | None
    rate_limit_default: str
    kicks_limited: bool
    """Whether there is any limit for tasks, whoever kicks which."""
    revocations: Revocations | None
    """``None`` where nothing is revoked, which is asked for each message."""

    @classmethod
    def of(cls, config: TaskiqFlowConfig, document: PolicyDocument) -> InForce:
        """What a document makes of this process's settings."""
        task_rate_limits = {**config.task_rate_limits, **document.task_rate_limits}
        pipeline_rate_limits = {**config.pipeline_rate_limits, **document.pipeline_rate_limits}
        principal_rate_limit = document.principal_rate_limit or config.principal_rate_limit
        return cls(
            Policy.from_roles(
                {**config.pipeline_acls, **document.pipeline_acls}, {**config.task_acls, **document.task_acls}
            ),
            {subject: frozenset(roles) for subject, roles in document.roles.items()},
            {**config.rate_limits, **document.rate_limits},
            {**config.role_rate_limits, **document.role_rate_limits},
            task_rate_limits,
            pipeline_rate_limits,
            principal_rate_limit,
            document.rate_limit_default or config.rate_limit_default,
            bool(task_rate_limits or pipeline_rate_limits or principal_rate_limit),
            document.revoked.revocations() or None,
        )
