"""TaskIQ's own middlewares work with allowed, denied and forged messages, and are shown no label of ours."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from taskiq import PrometheusMiddleware, TaskiqMiddleware
from taskiq.middlewares.opentelemetry_middleware import OpenTelemetryMiddleware
from taskiq.middlewares.taskiq_admin_middleware import TaskiqAdminMiddleware

from taskiq_flow_security import AccessDeniedError
from tests.attacks.forging import PRINCIPAL, SIGNATURE, principal_of, read, signature_of, write
from tests.integration.inmemory.fixtures import NewProcess
from tests.integration.inmemory.harness import PROCESSOR, VIEWER, Process

each_position = pytest.mark.parametrize("position", ["before", "after"])

PLANTED = "planted-by-somebody"


def _process(new_process: NewProcess, middleware: TaskiqMiddleware, position: str) -> Process:
    if position == "before":
        return new_process(before=(middleware,))
    return new_process(after=(middleware,))


async def _exercise(process: Process, api: Process) -> list[str]:
    """Run an allowed, a failing, a denied, an expired and two forged messages; the tokens that were in them."""

    @process.broker.task("failing", pipeline="data")
    async def failing() -> None:
        raise LookupError("no such row")

    genuine = await process.genuine()
    explicit = process.clean.kicker().with_labels(**process.security.labels_for(PROCESSOR))
    await explicit.kiq([1], scale=2)
    messages = [genuine, process.broker.take(), await process.kick(failing)]
    await process.broker.deliver(messages[0])
    await process.broker.deliver(messages[1])
    assert isinstance((await process.broker.deliver(messages[2])).error, LookupError)
    assert len(process.ran) == 2
    process.ran.clear()

    denied = await api.kick(api.clean, [1], principal=VIEWER)
    await process.refuses(denied, "acl", AccessDeniedError)
    altered = read(await process.genuine()).model_copy(update={"args": [[PLANTED]]})
    await process.refuses(write(altered), "bad_signature")
    unsigned = altered.model_copy(update={"labels": {"note": PLANTED}, "task_id": "unsigned"})
    await process.refuses(write(unsigned), "unsigned")
    assert (await process.broker.deliver(b"not a message")).acks == 1

    texts = []
    for data in [*messages, denied, write(altered)]:
        texts += [principal_of(read(data)), signature_of(read(data))]
    return texts


@pytest.fixture
def api(new_process: NewProcess) -> Process:
    """A process that lets viewers kick what the others do not let them run."""
    return new_process(pipeline_acls={"data": {"execute": ["viewer"]}})


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrometheusMiddleware]:
    """The only one that a process can have, because its metrics are global."""
    with pytest.MonkeyPatch.context() as patch:
        directory: Path = tmp_path_factory.mktemp("metrics")
        patch.setenv("PROMETHEUS_MULTIPROC_DIR", str(directory))
        yield PrometheusMiddleware(metrics_path=directory)


@each_position
async def test_prometheus_counts_allowed_and_refused_messages(
    new_process: NewProcess, api: Process, prometheus: PrometheusMiddleware, position: str
) -> None:
    process = _process(new_process, prometheus, position)
    received = prometheus.received_tasks.labels("clean")._value.get()
    errors = prometheus.found_errors.labels("clean")._value.get()
    saved = prometheus.saved_results.labels("clean")._value.get()
    await _exercise(process, api)
    assert prometheus.received_tasks.labels("clean")._value.get() - received == 8
    assert prometheus.found_errors.labels("clean")._value.get() - errors == 3
    assert prometheus.saved_results.labels("clean")._value.get() - saved == 8


@each_position
async def test_opentelemetry_ends_one_span_for_each_message_that_is_run_or_refused(
    new_process: NewProcess, api: Process, position: str
) -> None:
    exporter, reader = InMemorySpanExporter(), InMemoryMetricReader()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    middleware = OpenTelemetryMiddleware(provider, MeterProvider([reader]))
    process = _process(new_process, middleware, position)
    texts = await _exercise(process, api)
    spans = exporter.get_finished_spans()
    assert sum(span.name == "execute/clean" for span in spans) == 8
    data = reader.get_metrics_data()
    assert data is not None
    shown = "".join(span.to_json() for span in spans) + data.to_json()
    for text in (*texts, PRINCIPAL, SIGNATURE, PLANTED):
        assert text not in shown


Post = tuple[str, dict[str, Any]]


@pytest.fixture
async def posts() -> AsyncIterator[tuple[TestServer, list[Post]]]:
    """A dashboard that writes down what it is sent."""
    received: list[Post] = []

    async def receive(request: web.Request) -> web.Response:
        received.append((request.path, await request.json()))
        return web.Response()

    app = web.Application()
    app.router.add_post("/{path:.*}", receive)
    server = TestServer(app)
    async with server:
        yield server, received


@each_position
async def test_taskiq_admin_is_told_of_allowed_and_refused_messages_but_of_no_label_of_ours(
    new_process: NewProcess, api: Process, posts: tuple[TestServer, list[Post]], position: str
) -> None:
    server, received = posts
    middleware = TaskiqAdminMiddleware(str(server.make_url("/")), api_token="the-token-of-the-dashboard")
    process = _process(new_process, middleware, position)
    texts = await _exercise(process, api)
    await middleware.shutdown()
    ends = [path.rsplit("/", 1)[1] for path, _ in received]
    assert (ends.count("started"), ends.count("executed")) == (9, 9)
    shown = repr(received)
    for text in (*texts, PLANTED):
        assert text not in shown
    assert not any({PRINCIPAL, SIGNATURE} & body.get("labels", {}).keys() for _, body in received)


@each_position
async def test_taskiq_admin_is_told_the_error_of_a_refused_message(
    new_process: NewProcess, posts: tuple[TestServer, list[Post]], position: str
) -> None:
    server, received = posts
    middleware = TaskiqAdminMiddleware(str(server.make_url("/")), api_token="the-token-of-the-dashboard")
    process = _process(new_process, middleware, position)
    message = read(await process.genuine()).model_copy(update={"args": [[9]]})
    await process.broker.deliver(write(message))
    await middleware.shutdown()
    (told,) = (body for path, body in received if path.endswith("executed"))
    assert "bad_signature" in told["error"]
    assert told["returnValue"] == {"return_value": None}
