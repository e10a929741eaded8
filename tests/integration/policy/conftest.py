"""As for what else processes share in Redis."""

import pytest

from taskiq_flow_security.live_policy import live
from tests.integration.inmemory.fixtures import audit
from tests.integration.runs.conftest import deployment, proxy, redis

__all__ = ["audit", "deployment", "often", "proxy", "redis"]


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at the store more often, for what takes several looks."""
    monkeypatch.setattr(live, "INTERVAL", 0.03)
