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

import pytest

from taskiq_flow_security import TaskiqFlowConfig
from taskiq_flow_security.audit.fields import FIELDS

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
