"""``python -m tests.benchmarks``: what security costs, side by side in one run."""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
from collections.abc import Awaitable, Callable, Iterable, Sequence

from tests.benchmarks import decisions, http, inmemory, primitives, redis_throughput, results, stages
from tests.benchmarks.harness import FULL, QUICK, Effort
from tests.benchmarks.report import Target, print_targets

PARTS: dict[str, Callable[[Effort], Awaitable[list[Target]]]] = {
    "inmemory": inmemory.run,
    "redis": redis_throughput.run,
    "primitives": primitives.run,
    "decisions": decisions.run,
    "http": http.run,
    "results": results.run,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"{', '.join(PARTS)}; all of them by default")
    parser.add_argument("--quick", action="store_true", help="measure briefly, to see that everything runs")
    parser.add_argument("--profile", action="store_true", help="show instead where the time of a guarded task goes")
    options = parser.parse_args(arguments)
    unknown = set(options.parts) - set(PARTS)
    if unknown:
        parser.error(f"unknown part: {', '.join(sorted(unknown))}; choose from {', '.join(PARTS)}")
    effort = QUICK if options.quick else FULL
    print(f"{platform.python_implementation()} {platform.python_version()}, {os.cpu_count()} CPUs; medians")
    if options.profile:
        asyncio.run(stages.run(effort))
    if options.parts or not options.profile:
        asyncio.run(_run(options.parts or PARTS, effort))


async def _run(names: Iterable[str], effort: Effort) -> None:
    targets = [target for name in names for target in await PARTS[name](effort)]
    if targets:
        print_targets(targets)


if __name__ == "__main__":
    main()
