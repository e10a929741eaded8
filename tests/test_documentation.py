"""What the README and the examples say is so."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import uuid4

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from taskiq import AsyncBroker
from taskiq_flow import pipeline_task

from taskiq_flow_security import FlowSecurity, Principal, TaskiqFlowConfig
from taskiq_flow_security.audit.fields import FIELDS
from taskiq_flow_security.core.events import AuditEvent
from tests.services import REDIS_URL, require

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
EXAMPLES = sorted(ROOT.glob("examples/*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_as_it_stands_and_ends_with_a_refusal(example: Path) -> None:
    lines = run(str(example)).splitlines()
    assert "refused:" in lines[-1]
    assert "reason: " in lines[-1]


def test_the_quickstart_shows_an_allowed_a_denied_and_a_forged_task_with_their_audit_lines() -> None:
    output = run("examples/quickstart.py")
    for shown in (
        "result: 2",
        "task_authz_allow     outcome=allow reason=acl",
        "task_authz_deny      outcome=deny reason=permission",
        "task_signature_fail  outcome=deny reason=unsigned",
    ):
        assert shown in output


def test_the_readme_names_every_setting_and_no_other() -> None:
    table = README.split("## Settings")[1].split("### ")[0]
    named = set(re.findall(r"`([a-z_]+)`", "\n".join(re.findall(r"^\| (`.*?) \|", table, re.MULTILINE))))
    assert named == set(TaskiqFlowConfig.model_fields)


def test_the_readme_names_the_default_of_every_setting_that_has_one() -> None:
    table = README.split("## Settings")[1].split("### ")[0]
    for names, defaults in re.findall(r"^\| (`.*?) \| (`.*?) \|", table, re.MULTILINE):
        for name, default in zip(re.findall(r"`(.+?)`", names), re.findall(r"`(.+?)`", defaults), strict=False):
            value = TaskiqFlowConfig.model_fields[name].default
            shown = value.get_secret_value() if hasattr(value, "get_secret_value") else value
            assert default == (shown if isinstance(shown, str) else json.dumps(shown)), name


def test_the_readme_names_every_field_of_an_audit_record() -> None:
    assert f"`{' '.join(('time', *(name for name in FIELDS if name != 'time')))}`" in README


def test_the_start_of_the_readme_runs_with_the_variables_that_it_sets() -> None:
    section = README.split("## Start")[1].split("\n## ")[0]
    [code] = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    [variables] = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    values = dict(re.findall(r"^export (TASKIQ_FLOW_\w+)='(.*?)'$", variables, re.MULTILINE))
    assert set(values) == {"TASKIQ_FLOW_JWT_SECRET", "TASKIQ_FLOW_API_KEYS", "TASKIQ_FLOW_PIPELINE_ACLS"}
    values["TASKIQ_FLOW_JWT_SECRET"] = "x" * 32
    program = f"import asyncio\n{code}\nasyncio.run(handle_request('<key>'))\nprint('kicked')\n"
    assert "kicked" in run("-c", program, **values)


def test_a_snippet_of_the_readme_imports_every_class_that_it_uses_and_the_start_has_not() -> None:
    start, *others = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    for snippet in others:
        names = [node for node in ast.walk(ast.parse(snippet)) if isinstance(node, ast.Name)]
        classes = {node.id for node in names if node.id[0].isupper()} - {"MySink"}
        assert classes <= imported(start) | imported(snippet), snippet


SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("snippet", SNIPPETS[1:], ids=lambda snippet: snippet.split()[0] + "-" + snippet.split()[1])
async def test_a_snippet_of_the_readme_runs_after_the_start(
    snippet: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if "redis://" in snippet:
        require("redis")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TASKIQ_FLOW_JWT_SECRET", "x" * 32)
    monkeypatch.setenv("TASKIQ_FLOW_PIPELINE_ACLS", '{"data-pipeline": {"execute": ["processor"]}}')
    monkeypatch.setenv("TASKIQ_FLOW_REQUIRE_HTTPS", "false")
    monkeypatch.setenv("TASKIQ_FLOW_SERVICES", '{"nightly": {"roles": ["processor"]}}')
    module = ModuleType("readme")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    names: dict[str, Any] = vars(module)
    exec(SNIPPETS[0], names)  # noqa: S102 (it is our own)
    names |= what_snippets_take_for_granted(names["security"], names["broker"])
    private, public = pem_pair()
    for shown, meant in (
        ("-----BEGIN PRIVATE KEY-----...", private),
        ("-----BEGIN PUBLIC KEY-----...", public),
        ("redis://localhost", REDIS_URL),
    ):
        snippet = snippet.replace(f'"{shown}"', repr(meant))
    snippet = snippet.replace("ListRedisScheduleSource(", f"ListRedisScheduleSource(prefix={uuid4().hex!r}, url=")
    with names["security"].acting_as(names["principal"]):
        code = compile(snippet, "README.md", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        awaited = eval(code, names)  # noqa: S307 (as above)
        if awaited is not None:
            await awaited
    if "signing_keys" in names:
        FlowSecurity(TaskiqFlowConfig(signing_keys=names["signing_keys"]))
    if "Rule" in names:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(names["app"]), base_url="https://api") as client:
            assert (await client.get("/health")).status_code == 200
    if "source" in names:
        [made] = await names["source"].get_schedules()
        await names["source"].delete_schedule(made.schedule_id)
        await names["source"].shutdown()


def what_snippets_take_for_granted(security: FlowSecurity, broker: AsyncBroker) -> dict[str, object]:
    """What a reader has who has read as far as a snippet, by name."""

    class MySink:
        def write(self, event: AuditEvent) -> None: ...

        def flush(self) -> None: ...

    @pipeline_task(output="audio")
    def load(path: str) -> str:
        return path

    @pipeline_task(output="features", inputs=["audio"])
    def extract(audio: str) -> int:
        return len(audio)

    def count(number: int) -> list[int]:
        return list(range(number))

    def square(number: int) -> int:
        return number**2

    def health(_: Request) -> Response:
        return Response()

    return {
        "principal": Principal("alice", roles=["processor"]),
        "admin": Principal("root", permissions=["admin"]),
        "rows": [1, 2, 3],
        "config": security.config,
        "app": Starlette(routes=[Route("/health", health)]),
        "MySink": MySink,
        **{step.__name__: broker.task(step) for step in (load, extract, count, square)},
    }


def pem_pair() -> tuple[str, str]:
    """A private and a public key."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return private.decode(), public.decode()


def imported(program: str) -> set[str]:
    """What a program imports from somewhere; it must be there."""
    imports = [node for node in ast.walk(ast.parse(program)) if isinstance(node, ast.ImportFrom)]
    for node in imports:
        module = import_module(str(node.module))
        assert all(hasattr(module, alias.name) for alias in node.names), node.module
    return {alias.name for node in imports for alias in node.names}


def run(*arguments: str, **variables: str) -> str:
    """The output of a Python program; it must succeed."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TASKIQ_FLOW_")}
    finished = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**inherited, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout
