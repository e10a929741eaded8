"""The files of ``examples/deploy`` are well formed, and fit each other and the package."""

from __future__ import annotations

import importlib
import json
import re
from typing import Any

import yaml

from taskiq_flow_security import FlowSecurity, TaskiqFlowConfig
from tests.integration.deploy.stack import DEPLOY

COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "docker-compose.yml").read_text())
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
NGINX = (DEPLOY / "nginx.conf").read_text()
PYPROJECT = (DEPLOY.parents[1] / "pyproject.toml").read_text()


def command_of(dockerfile: str) -> list[str]:
    [line] = re.findall(r"^CMD (.*)$", dockerfile, re.MULTILINE)
    command: list[str] = json.loads(line)
    return command


def test_every_variable_is_a_setting() -> None:
    prefix = "TASKIQ_FLOW_"
    names = [name for name in COMPOSE["x-security"] if name.startswith(prefix)]
    assert names
    assert {name.removeprefix(prefix).lower() for name in names} <= set(TaskiqFlowConfig.model_fields)


def test_the_example_of_the_secrets_names_all_that_the_compose_file_asks_for() -> None:
    asked = set(re.findall(r"(?<!\$)\$\{(\w+)", (DEPLOY / "docker-compose.yml").read_text()))
    example = dict(re.findall(r"^(\w+)=(.*)$", (DEPLOY / ".env.example").read_text(), re.MULTILINE))
    assert set(example) == asked
    key = example["API_KEYS"].strip("'").replace("<hex>", "0" * 64)
    FlowSecurity(TaskiqFlowConfig(jwt_secret="x" * 32, api_keys=json.loads(key)))


def test_what_the_image_installs_exists() -> None:
    [extras] = re.findall(r'"/src\[(.*?)\]"', DOCKERFILE)
    for extra in extras.split(","):
        assert f"\n{extra} = [" in PYPROJECT


def test_what_the_image_copies_exists() -> None:
    root = DEPLOY.parents[1]
    copied = [line.split()[1:-1] for line in DOCKERFILE.splitlines() if line.startswith("COPY ")]
    assert copied
    assert all((root / name).exists() for names in copied for name in names)
    for service in ("web", "worker"):
        build = COMPOSE["services"][service]["build"]
        assert (DEPLOY / build["context"]).resolve() == root
        assert (root / build["dockerfile"]).samefile(DEPLOY / "Dockerfile")


def test_the_image_runs_as_nobody_special_and_holds_no_secret() -> None:
    assert re.search(r"^USER (?!root)\w+$", DOCKERFILE, re.MULTILINE)
    assert not re.search(r"^(ENV|ARG) .*(SECRET|KEY|PASSWORD)", DOCKERFILE, re.MULTILINE)


def test_the_commands_name_what_there_is() -> None:
    server, module, *_ = command_of(DOCKERFILE)
    assert (server, module) == ("uvicorn", "app:app")
    assert COMPOSE["services"]["worker"]["command"][:3] == ["taskiq", "worker", "app:broker"]
    assert (DEPLOY / "app.py").exists()
    for name in (server, "taskiq"):
        importlib.import_module(name)


def test_the_ports_fit() -> None:
    command = command_of(DOCKERFILE)
    port = command[command.index("--port") + 1]
    assert f"EXPOSE {port}" in DOCKERFILE
    assert f"proxy_pass http://web:{port};" in NGINX
    assert f":{port}/health" in COMPOSE["services"]["web"]["healthcheck"]["test"][-1]
    published = {mapping.split(":")[1] for mapping in COMPOSE["services"]["nginx"]["ports"]}
    assert published == set(re.findall(r"listen (\d+)", NGINX))


def test_only_nginx_can_be_reached_from_outside_and_speaks_for_its_clients() -> None:
    assert [name for name, service in COMPOSE["services"].items() if "ports" in service] == ["nginx"]
    [front] = COMPOSE["networks"]["front"]["ipam"]["config"]
    assert front["subnet"] in json.loads(COMPOSE["x-security"]["TASKIQ_FLOW_TRUSTED_PROXIES"])
    assert {name for name, service in COMPOSE["services"].items() if "front" in service["networks"]} == {"web", "nginx"}
