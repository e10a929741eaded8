"""As for what else processes share in Redis."""

from tests.integration.runs.conftest import deployment, proxy, redis

__all__ = ["deployment", "proxy", "redis"]
