"""Fails when the package has become dearer: user-mode instructions, beside those of a loop written by hand.

All is counted in the same run, so the machine, the compiler and the Python cancel.
"""

import sys
import tempfile
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.groups import extras, fair, subclasses
from benchmarks.processes import ROOT
from benchmarks.progress import Progress
from benchmarks.table import Bench, Row, as_text, measure

LIMITS = (
    Row(
        "a request, 32 connections, over the fair hand-written loop",
        "requests.32.danga_raw",
        "requests.32.fair",
        must=1.00,
    ),
    Row(
        "a request, 1 connection, over the fair hand-written loop",
        "requests.1.danga_raw",
        "requests.1.fair",
        must=1.52,
    ),
    Row(
        "a request, two subclasses in use, over one",
        "subclasses.2",
        "subclasses.1",
        must=1.16,
    ),
    Row(
        "one timer pending: added to a turn",
        "pending",
        beside="requests.1.danga_raw",
        must=7200,
        unit="instructions",
    ),
)


def main() -> int:
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(ROOT, Path(scratch), quick=True)
        steps = [
            *fair.steps(bench, "danga_raw", "fair"),
            *(subclasses.step(bench, count) for count in (1, 2)),
            *extras.PENDING.plan(bench),
        ]
        figures = measure(steps, Progress())
    print(as_text([row.cells(figures) for row in LIMITS]))
    return 0 if all(row.verdict(figures) == "holds" for row in LIMITS) else 1


if __name__ == "__main__":
    sys.exit(main())
