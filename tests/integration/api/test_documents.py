"""The OpenAPI document says what the API does; it and its page are for everybody, and load nothing from elsewhere."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

import pytest

from taskiq_flow_security.http.api import app as app_module
from taskiq_flow_security.http.api import documents
from taskiq_flow_security.http.api.openapi import OPERATIONS, document
from taskiq_flow_security.http.rules import with_guide_rules
from tests.integration.api.pipelines import LIBRARIES, Deployment
from tests.integration.api.server import ADMIN, config, serving

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "ignored_auth",
)
"""What schemathesis checks. Not among them: that every valid body is accepted, for which arguments a pipeline takes is
its own matter; and 405 for other methods, which nobody may use (403)."""


@pytest.mark.timeout(300)
async def test_schemathesis_finds_nothing_that_the_document_does_not_say(tmp_path: Path) -> None:
    pipeline_type, middleware = LIBRARIES["taskiq-pipelines"]
    served = Deployment(config(), middleware())
    served.api.add_pipeline("flow", pipeline_type(served.broker, served.spread).call_next(served.total))
    async with serving(served.api) as client:
        program = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "schemathesis.cli", "run", f"http://{client.address}/openapi.json"),
            *("--header", f"X-API-Key: {ADMIN}", "--checks", ",".join(CHECKS)),
            *("--max-examples", "8", "--seed", "1", "--no-color"),
            cwd=tmp_path,  # where it leaves its cache
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await program.communicate()
    assert program.returncode == 0, output.decode()


def test_the_document_has_every_endpoint_that_has_a_rule() -> None:
    rules = {(rule.method, rule.path, rule.endpoint, rule.public) for rule in with_guide_rules(app_module.rules())}
    described = {
        (operation.method.upper(), prefix + operation.path, operation.name, operation.public)
        for operation in OPERATIONS
        for prefix in ("", "/api")
    }
    assert {
        rule for rule in rules if rule[0] != "WEBSOCKET" and rule[2] not in ("openapi", "docs", "visualization_page")
    } == described


async def test_what_a_public_endpoint_answers_over_an_open_connection_is_in_the_document() -> None:
    async with serving(Deployment(config(require_https=True)).api) as client:
        health = (await client.http.get("/openapi.json", headers={"X-Forwarded-Proto": "https"})).json()["paths"][
            "/health"
        ]
        answer = await client.http.get("/health", headers={"X-Forwarded-Proto": "http"})
    assert answer.status_code == 403
    assert "403" in health["get"]["responses"]


@pytest.mark.parametrize("path", ["/docs", "/openapi.json", "/api/docs", "/api/openapi.json"])
async def test_everybody_may_see_the_documents(path: str) -> None:
    async with serving(Deployment(config()).api) as client:
        answer = await client.get(path)
    assert answer.status_code == 200
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", ["/", "/page/parts.js", "/docs", "/openapi.json"])
async def test_what_a_browser_has_already_is_not_sent_again(path: str) -> None:
    async with serving(Deployment(config()).api) as client:
        first = await client.get(path)
        again = await client.http.get(path, headers={"if-none-match": f'"another", W/{first.headers["etag"]}'})
        other = await client.http.get(path, headers={"if-none-match": '"another"'})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["content-security-policy"] == first.headers["content-security-policy"]
    assert (other.status_code, other.content) == (200, first.content)


async def test_the_page_can_be_looked_at_often_however_little_else_can_be() -> None:
    async with serving(Deployment(config(rate_limit_default="1/minute")).api) as client:
        for _ in range(40):
            assert (await client.get("/")).status_code == 200


async def test_the_docs_page_loads_nothing_and_names_every_operation() -> None:
    async with serving(Deployment(config()).api) as client:
        page = (await client.get("/docs")).text
    assert not re.search(r"<script|<link|<img|<iframe|src=|url\(", page)
    assert set(re.findall(r'href="([^"]*)"', page)) - {"openapi.json"} <= {
        f"#{name}" for name in document()["components"]["schemas"]
    }
    for operation in OPERATIONS:
        assert f"<code>{operation.path}</code>" in page


def test_the_page_to_work_with_may_load_only_what_the_api_serves(tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("page")
    for name in ("index.html", "app.js", "notes.txt", "secret.py"):
        (directory / name).write_text(name)
    shown = {found.path: found for found in documents._page(directory)}
    assert set(shown) == {"/", "/page/app.js"}
    assert "script-src 'self'" in shown["/"].policy
    assert "unsafe" not in shown["/"].policy
