"""The table: what each row asks for, and what was measured against it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.progress import Progress

Figures = dict[str, float]


@dataclass(frozen=True)
class Bench:
    """What every measurement needs to know."""

    package: Path  # the folder that holds the danga_raw on trial
    scratch: Path
    quick: bool

    def count(self, whole: int, quick: int) -> int:
        return quick if self.quick else whole


@dataclass(frozen=True)
class Step:
    """One thing to measure; it puts its figures beside those that are there."""

    label: str
    measure: Callable[[Figures], None]


@dataclass(frozen=True)
class Row:
    """One line: a figure, or its ratio to another one, and the limits it is held against."""

    what: str
    figure: str
    over: str = ""
    must: float | None = None
    aim: float | None = None
    unit: str = "×"
    at_least: bool = False  # the limits are floors: more is better

    def measured(self, figures: Mapping[str, float]) -> float | None:
        if self.figure not in figures or (self.over and self.over not in figures):
            return None
        return figures[self.figure] / (figures[self.over] if self.over else 1)

    def within(self, value: float, limit: float) -> bool:
        return value >= limit if self.at_least else value <= limit

    def verdict(self, figures: Mapping[str, float]) -> str:
        value = self.measured(figures)
        if value is None:
            return "left out"
        if self.must is None:
            return "no limit"
        if not self.within(value, self.must):
            return "does not hold"
        if self.aim is not None and self.within(value, self.aim):
            return "holds, aim too"
        return "holds"

    def cells(self, figures: Mapping[str, float]) -> list[str]:
        values = (self.must, self.aim, self.measured(figures))
        return [
            self.what,
            *("" if value is None else number(value, self.unit) for value in values),
            self.verdict(figures),
        ]


@dataclass(frozen=True)
class Group:
    """Rows that are measured together, under the name the command line knows."""

    name: str
    what: str
    rows: tuple[Row, ...]
    plan: Callable[[Bench], list[Step]]


HEAD = ["", "must", "aim", "measured", ""]


def number(value: float, unit: str) -> str:
    """Three digits that mean something, and the unit."""
    if abs(value) >= 100:
        return f"{value:,.0f} {unit}"
    return f"{value:.{2 if abs(value) < 10 else 1}f} {unit}"


def measure(groups: list[Group], bench: Bench, progress: Progress) -> Figures:
    """Run every step of the groups, in order."""
    steps = [step for group in groups for step in group.plan(bench)]
    figures: Figures = {}
    progress.begin(len(steps))
    for step in steps:
        progress.step(step.label)
        step.measure(figures)
    progress.end()
    return figures


def lines(groups: list[Group], figures: Mapping[str, float]) -> list[list[str]]:
    return [row.cells(figures) for group in groups for row in group.rows]


def as_text(rows: list[list[str]]) -> str:
    """Columns for a terminal."""
    rows = [HEAD, *rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    shown = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:4], widths[1:4], strict=True)]
        shown.append("  ".join([*cells, row[4]]).rstrip())
    return "\n".join(shown)


def as_markdown(head: list[str], rows: list[list[str]]) -> str:
    """A table for the docs: words to the left, numbers to the right."""
    rule = ["---" if not column else "---:" for column in range(len(head))]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, rule, *rows])
