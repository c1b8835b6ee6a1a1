"""The table: the limits of each row, and what was measured."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.progress import Progress

Figure = tuple[float, ...]
"""What was measured: once, or once for each seed of the heap."""
Figures = dict[str, Figure]


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
    """One thing to measure; it adds its figures to those given."""

    label: str  # of two steps with the same one only the first is measured
    measure: Callable[[Figures], None]


@dataclass(frozen=True)
class Row:
    """One line: a figure, what it adds to another one or its ratio to one, and its limits.

    Where there are several seeds of the heap, each is taken by itself, and all have to hold.
    """

    what: str
    figure: str
    over: str = ""
    beside: str = ""
    must: float | None = None
    aim: float | None = None
    unit: str = "×"
    at_least: bool = False  # the limits are floors: more is better

    def measured(self, figures: Mapping[str, Figure]) -> Figure | None:
        if not figures.keys() >= {self.figure, self.over, self.beside} - {""}:
            return None
        values = figures[self.figure]
        if self.beside:
            less = figures[self.beside]
            values = tuple(one - other for one, other in zip(values, less, strict=True))
        if self.over:
            base = figures[self.over]
            values = tuple(one / other for one, other in zip(values, base, strict=True))
        return values

    def within(self, values: Figure, limit: float) -> bool:
        return min(values) >= limit if self.at_least else max(values) <= limit

    def verdict(self, figures: Mapping[str, Figure]) -> str:
        values = self.measured(figures)
        if values is None:
            return "left out"
        if self.must is None:
            return "no limit"
        if not self.within(values, self.must):
            return "does not hold"
        if self.aim is not None and self.within(values, self.aim):
            return "holds, aim too"
        return "holds"

    def cells(self, figures: Mapping[str, Figure]) -> list[str]:
        """The row as it is printed: what, must, aim, measured, verdict."""
        limits = ((value,) if value is not None else None for value in (self.must, self.aim))
        return [
            self.what,
            *(numbers(values, self.unit) for values in (*limits, self.measured(figures))),
            self.verdict(figures),
        ]


@dataclass(frozen=True)
class Group:
    """Rows that are measured together, under the name the command line knows."""

    name: str
    what: str
    rows: tuple[Row, ...]
    plan: Callable[[Bench], list[Step]]
    on_demand: bool = False  # only run when it is asked for


HEAD = ["", "must", "aim", "measured", ""]


def digits(value: float) -> str:
    """Three significant digits."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.{2 if abs(value) < 10 else 1}f}"


def numbers(values: Figure | None, unit: str) -> str:
    """What was measured, at each seed, and the unit."""
    return "" if values is None else f"{' / '.join(map(digits, values))} {unit}".rstrip()


def measure(steps: Iterable[Step], progress: Progress) -> Figures:
    """Run the steps, in order; one that several groups need runs once."""
    once: dict[str, Step] = {}
    for step in steps:
        once.setdefault(step.label, step)
    figures: Figures = {}
    progress.begin(len(once))
    for step in once.values():
        progress.step(step.label)
        step.measure(figures)
    progress.end()
    return figures


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
