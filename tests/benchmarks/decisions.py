"""The cost of a decision, and of an authentication, as the configuration grows."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from itertools import cycle
from typing import Any

from taskiq_flow_security import FlowSecurity, Permission, Principal, TaskiqFlowConfig
from taskiq_flow_security.core.policy import AccessRequest
from tests.benchmarks.guarded import SECRET, new_audit
from tests.benchmarks.harness import Batch, Effort, measure, repeat, repeat_async
from tests.benchmarks.report import Target, microseconds, print_table

PIPELINES = (10, 1_000, 100_000)
KEYS = (1, 1_000)

FLAT = 1.5
"""What still counts as flat: the processor's caches do not hold every configuration."""

_ASKED = 256
"""How many of the pipelines, and of the keys, are asked for in turn."""

Size = tuple[int, int]
"""How many pipelines and how many API keys."""


async def run(effort: Effort) -> list[Target]:
    """Print the tables, and return the targets."""
    small, large = PIPELINES[0], PIPELINES[-1]
    deciding: dict[Size, Batch] = {}
    authenticating: dict[Size, Batch] = {}
    for pipelines in PIPELINES:
        for keys in KEYS:
            security = _security(pipelines, keys)
            names = _some(pipelines, _pipeline)
            callers = [await security.authenticate(api_key=key) for key in _some(keys, _key)]
            deciding[pipelines, keys] = repeat(_decision(security, callers, names))
            if pipelines == small:
                authenticating[pipelines, keys] = _authentication(security, _some(keys, _key))
    flatness = await _compare("decide", deciding, effort)
    await _compare("authenticate by API key", authenticating, effort)
    return [
        Target(f"decisions with {large:,} pipelines over {small}, {keys:,} keys: ratio", flatness[large, keys], FLAT)
        for keys in KEYS
    ]


async def _compare(title: str, batches: Mapping[Size, Batch], effort: Effort) -> dict[Size, float]:
    """Print a table, and return how many times as long as in the smallest configuration each takes."""
    by_label = {f"{pipelines:,} pipelines, {keys:,} API keys": (pipelines, keys) for pipelines, keys in batches}
    samples = await measure({label: batches[size] for label, size in by_label.items()}, effort)
    smallest = next(iter(by_label))
    ratios = {size: samples.ratio(label, smallest) for label, size in by_label.items()}
    print_table(
        f"Flatness: {title}",
        ("", "us", "ratio"),
        [(label, microseconds(samples.median(label)), f"{ratios[size]:.2f}") for label, size in by_label.items()],
    )
    return ratios


def _decision(security: FlowSecurity, callers: list[Principal], pipelines: list[str]) -> Callable[[], object]:
    """Decide about another caller and another pipeline each time."""
    requests = cycle([AccessRequest(Permission.EXECUTE, pipeline, "work") for pipeline in pipelines])
    principals = cycle(callers)
    assert all(security.authorization.decide(next(principals), next(requests)) for _ in range(_ASKED))
    return lambda: security.authorization.decide(next(principals), next(requests))


def _authentication(security: FlowSecurity, keys: list[str]) -> Batch:
    given = cycle(keys)
    return repeat_async(lambda: security.authenticate(api_key=next(given)))


def _security(pipelines: int, keys: int) -> FlowSecurity:
    holder: dict[str, Any] = {"role": "processor", "permissions": ["execute"]}
    acl = {"read": ["viewer", "processor"], "execute": ["processor"]}
    config = TaskiqFlowConfig(
        jwt_secret=SECRET,
        api_keys={_key(number): holder for number in range(keys)},
        pipeline_acls={_pipeline(number): acl for number in range(pipelines)},
    )
    return FlowSecurity(config, audit=new_audit(None))


def _some(count: int, name: Callable[[int], str]) -> list[str]:
    """As many names from all over the configuration, in no order, whatever its size."""
    return [name(number) for number in random.Random(count).choices(range(count), k=_ASKED)]


def _pipeline(number: int) -> str:
    return f"pipeline-{number}"


def _key(number: int) -> str:
    return f"benchmark-api-key-number-{number}"
