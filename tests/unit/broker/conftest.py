"""Formatters used on their own leave what they know of the last message in the context of the test."""

from collections.abc import Iterator

import pytest

from taskiq_flow_security import acting
from taskiq_flow_security.broker import delivery


@pytest.fixture(autouse=True)
def context() -> Iterator[None]:
    """Leave nothing of it to other tests."""
    yield
    delivery.current.set(None)
    acting.become(None)
