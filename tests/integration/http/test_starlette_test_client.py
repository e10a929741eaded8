"""Starlette's own TestClient, with which applications are tested, gets on with the WebSockets of the edge."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient
from taskiq import InMemoryBroker

from taskiq_flow_security.http import create_visualization_api
from tests.edge import VIEWER, Edge
from tests.integration.api.server import VIEWER as VIEWER_OF_API
from tests.integration.api.server import config


@pytest.mark.parametrize("kind", ["edge", "api"])
def test_the_end_of_a_websocket_raises_nothing(kind: str) -> None:
    for _ in range(20):
        if kind == "edge":
            app, key = Edge(settings={"require_https": False}).app, VIEWER
        else:
            app, key = create_visualization_api(InMemoryBroker(), config()), VIEWER_OF_API
        with TestClient(app) as client, client.websocket_connect("/ws", headers={"X-API-Key": key}) as socket:
            socket.send_json({"type": "connect"})
            assert socket.receive_json()["type"] in ("received", "connected")
