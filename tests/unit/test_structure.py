"""The structure that the package shows is the one that it has."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import taskiq_flow_security

PACKAGE = Path(taskiq_flow_security.__file__).parent
NAME = PACKAGE.name
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")

FLOORS = [
    {"environment", "errors", "ids", "losses"},
    {"core", "stores"},
    {"denial", "setting_types"},
    {"config", "tokens", "audit", "rate_limits"},
    {"acting", "credentials", "replay", "results", "runs"},
    {"live_policy"},
    {"authorization", "from_config"},
    {"authentication", "issuer"},
    {"security"},
    {"broker"},
    {"pipelines", "schedules"},
    {"http"},
]
"""From the ground up. What stands on a floor imports from below, and nothing beside it."""


def room(module: str) -> str:
    """The part of the package that a module belongs to."""
    return module.split(".")[1]


def floor(room: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


def imports(path: Path) -> set[str]:
    """The rooms that a module imports from."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == NAME:
            names = [node.module] if node.module != NAME else [f"{NAME}.{alias.name}" for alias in node.names]
            found.update(map(room, names))
        if isinstance(node, ast.Import):
            found.update(room(alias.name) for alias in node.names if alias.name.startswith(f"{NAME}."))
    return found


def python(program: str) -> None:
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_from_the_floors_below_and_from_its_own_room(path: Path) -> None:
    own = path.relative_to(PACKAGE).with_suffix("").parts[0]
    for other in imports(path) - {own}:
        assert floor(other) < floor(own), f"{own} imports {other}"


@pytest.mark.parametrize("module", sorted(path.stem for path in (PACKAGE / "core").glob("*.py")))
def test_the_core_loads_nothing_but_the_standard_library(module: str) -> None:
    name = f"{NAME}.core" if module == "__init__" else f"{NAME}.core.{module}"
    python(
        "import sys\n"
        "before = set(sys.modules)\n"
        f"import {name}\n"
        "loaded = {module.partition('.')[0] for module in set(sys.modules) - before}\n"
        f"assert loaded <= {{'{NAME}', *sys.stdlib_module_names}}, loaded"
    )


def test_the_package_needs_none_of_its_extras() -> None:
    python(
        "import sys\n"
        "for extra in ('starlette', 'uvicorn', 'redis', 'taskiq_flow', 'taskiq_redis', 'taskiq_pipelines'):\n"
        "    sys.modules[extra] = None\n"
        f"from {NAME} import *\n"
        f"import {NAME}\n"
        f"assert all(getattr({NAME}, name) for name in {NAME}.__all__)"
    )


def test_every_public_name_is_listed_and_is_what_its_home_says() -> None:
    assert set(taskiq_flow_security.__all__) <= set(dir(taskiq_flow_security))
    assert sorted(taskiq_flow_security.__all__) == list(taskiq_flow_security.__all__)
    assert set(taskiq_flow_security._HOMES) == set(taskiq_flow_security.__all__)
    for name, home in taskiq_flow_security._HOMES.items():
        assert getattr(taskiq_flow_security, name).__module__.startswith(f"{NAME}.{home}")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = taskiq_flow_security.nothing


def test_the_package_says_that_it_is_typed() -> None:
    assert (PACKAGE / "py.typed").exists()
