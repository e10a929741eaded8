"""What cannot be guarded is refused where it is written."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from taskiq import InMemoryBroker

from taskiq_flow_security import AccessDeniedError, ConfigurationError, Principal, guard


async def waits(_principal: Principal, _arguments: object) -> bool:
    return True


class Waits:
    async def __call__(self, _principal: Principal, _arguments: object) -> bool:
        return True


@pytest.mark.parametrize(
    "predicate", [lambda *_: True, Principal.same_identity, all, type("Callable", (), {"__call__": all})()]
)
def test_a_predicate_may_be_whatever_can_be_called(predicate: Any) -> None:
    guard(predicate=predicate)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: guard(roles="processor"), r'write roles=\["processor"\]'),
        (lambda: guard(roles=None), "roles must be a list of names; leave it out"),  # type: ignore[arg-type]
        (lambda: guard(roles=[None]), "roles must be a list of names"),  # type: ignore[list-item]
        (lambda: guard(permission="fly"), "permission must be one of read, execute, admin"),
        (lambda: guard(permission=["execute"]), "permission must be one of"),  # type: ignore[arg-type]
        (lambda: guard(predicate=waits), "predicate must be a plain function"),  # type: ignore[arg-type]
        (lambda: guard(predicate=Waits()), "predicate must be a plain function"),  # type: ignore[arg-type]
        (lambda: guard(predicate=partial(waits)), "predicate must be a plain function"),  # type: ignore[arg-type]
        (lambda: guard(lambda: None), r"say by name what is asked for, as in @guard\(roles="),  # type: ignore[arg-type]
        (lambda: guard(predicate=5), "predicate must be a plain function"),  # type: ignore[arg-type]
        (lambda: guard(rate_limit="often"), "write rate_limit like"),
    ],
)
def test_a_guard_that_could_not_be_meant_is_a_configuration_error(make: Callable[[], Any], expected: str) -> None:
    with pytest.raises(ConfigurationError, match=expected):
        make()


def test_a_guard_above_the_task_decorator_is_a_configuration_error() -> None:
    broker = InMemoryBroker()

    @broker.task
    async def task() -> None: ...

    with pytest.raises(ConfigurationError, match=r"below @broker\.task"):
        guard()(task)


def test_a_guarded_function_keeps_its_name_and_its_documentation() -> None:
    @guard()
    def function(a: int, *, b: str = "") -> None:
        """What it does."""

    assert function.__name__ == "function"
    assert function.__doc__ == "What it does."
    with pytest.raises(AccessDeniedError) as refusal:
        function(1)
    assert refusal.value.reason == "not_verified"
    assert function.__wrapped__(1) is None  # type: ignore[attr-defined]  # see `functools.wraps`


def test_a_function_guarded_twice_is_a_configuration_error() -> None:
    @guard(roles=["processor"])
    async def function() -> None: ...

    with pytest.raises(ConfigurationError):
        guard(roles=["operator"])(function)
