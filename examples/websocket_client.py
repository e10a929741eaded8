"""Watch the runs of a pipeline over the API's WebSocket, as they happen. Needs no service.

Serve the API with ``ANALYST_KEY=<your key> uvicorn examples.websocket_client:app``; run as a program, it serves itself
and watches.
"""

import asyncio
import json
import os
import secrets
import socket

import httpx
import uvicorn
from taskiq import InMemoryBroker
from taskiq_pipelines import Pipeline, PipelineMiddleware
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from taskiq_flow_security import TaskiqFlowConfig
from taskiq_flow_security.http import create_visualization_api

ANALYST_KEY = os.environ.get("ANALYST_KEY") or secrets.token_urlsafe()

config = TaskiqFlowConfig(
    jwt_secret=secrets.token_urlsafe(32),  # in a deployment, the same in every process
    api_keys={ANALYST_KEY: {"role": "analyst", "pipelines": ["squares"], "permissions": ["read", "execute"]}},
    require_https=False,  # only here, on this machine; in a deployment, TLS ends at a proxy or at uvicorn
)
broker = InMemoryBroker().with_middlewares(PipelineMiddleware())


@broker.task("count")
async def count(size: int) -> list[int]:
    return list(range(size))


@broker.task("square")
async def square(number: int) -> int:
    return number * number


@broker.task("pay", pipeline="payroll")
async def pay() -> None:
    """Belongs to a pipeline that the analyst has nothing to do with."""


app = create_visualization_api(  # secures the broker too
    broker, config, pipelines={"squares": Pipeline(broker, count).map(square, check_interval=0.01)}
)


async def main() -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    serving = asyncio.create_task(server.serve([listening]))
    try:
        await watch(f"127.0.0.1:{listening.getsockname()[1]}")
    finally:
        server.should_exit = True
        await serving


async def watch(address: str) -> None:
    async with connect(f"ws://{address}/ws") as websocket:
        # A program would rather send the header X-API-Key with the handshake; a browser cannot.
        await websocket.send(json.dumps({"type": "connect", "auth": ANALYST_KEY}))
        print(json.loads(await websocket.recv())["type"])
        await websocket.send(json.dumps({"type": "subscribe", "pipeline_id": "squares"}))
        print(json.loads(await websocket.recv())["type"])

        async with httpx.AsyncClient(base_url=f"http://{address}", headers={"X-API-Key": ANALYST_KEY}) as client:
            started = await client.post("/pipelines/squares/execute", json={"args": [2]})
        run_id = started.json()["run_id"]

        ended = 0
        while ended < 4:  # count, two squares, and what collects them
            event = json.loads(await websocket.recv())
            assert event["run_id"] == run_id
            print(f"  {event['kind']:<10}{event['task']}")
            ended += event["kind"] == "completed"

        await websocket.send(json.dumps({"type": "subscribe", "pipeline_id": "payroll"}))
        try:
            while True:
                message = json.loads(await websocket.recv())
                if message["type"] == "error":
                    error = message
        except ConnectionClosed:
            print(f"refused: {error['detail']} (reason: {error['reason']})")


if __name__ == "__main__":
    asyncio.run(main())
