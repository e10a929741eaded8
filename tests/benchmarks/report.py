"""What was measured, as plain tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tests.benchmarks.harness import Samples


@dataclass(frozen=True)
class Target:
    """What something may cost, beside what it does cost."""

    claim: str
    measured: float
    bound: float
    unit: str = ""
    at_least: bool = False
    """Whether more is better."""
    scaled: float | None = None
    """The same on the machine that the bound was set on, as far as that can be told."""

    @property
    def met(self) -> bool:
        """Whether the value measured here keeps to the bound."""
        return self.measured >= self.bound if self.at_least else self.measured <= self.bound


def microseconds(seconds: float) -> str:
    """As many digits as mean something."""
    value = seconds * 1e6
    return f"{value:,.2f}" if abs(value) < 10 else f"{value:,.1f}"


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], note: str = "") -> None:
    """The first column to the left, the others, which hold numbers, to the right."""
    table = [columns, *rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in table
    ]
    print(f"\n{title}\n{'-' * len(lines[0])}", *lines, sep="\n")
    if note:
        print(f"({note})")


def print_comparison(title: str, samples: Samples, baseline: str, note: str = "") -> None:
    """Each variant beside the one that the others are compared with."""
    rows = [
        (
            variant,
            microseconds(samples.median(variant)),
            microseconds(samples.added(variant, baseline)),
            f"{samples.ratio(variant, baseline):.2f}",
        )
        for variant in samples.seconds
    ]
    print_table(title, ("", "us", "added us", "ratio"), rows, note)


def print_targets(targets: Iterable[Target]) -> None:
    """The targets beside the measured values."""
    rows = [
        (
            target.claim,
            f"{'>=' if target.at_least else '<='} {target.bound:g} {target.unit}".rstrip(),
            f"{target.measured:.2f} {target.unit}".rstrip(),
            "" if target.scaled is None else f"{target.scaled:.2f} {target.unit}".rstrip(),
            "met" if target.met else "MISSED",
        )
        for target in targets
    ]
    print_table(
        "Targets",
        ("", "target", "measured", "scaled", ""),
        rows,
        "scaled: to the machine that the target was set on, by how long an unguarded task takes on either",
    )
