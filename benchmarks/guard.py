"""Fails if the package costs more than before: user-mode instructions relative to the fair loop.

Everything is counted in the same run, so the machine and the compiler cancel out. The version of
Python doesn't: the limits are for CPython 3.11, and if run by another version this looks for one.
"""

import os
import sys
import tempfile
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.groups import extras, fair, pythons, subclasses
from benchmarks.processes import ROOT
from benchmarks.progress import Progress
from benchmarks.table import Bench, Row, as_text, measure

LIMITS = (
    Row(
        "a request, 32 connections, over fair hand-written loop",
        "requests.32.danga_raw",
        "requests.32.fair",
        must=0.86,
    ),
    Row(
        "a request, 1 connection, over fair hand-written loop",
        "requests.1.danga_raw",
        "requests.1.fair",
        must=1.28,
    ),
    Row(
        "a request, two subclasses in use, over one",
        "subclasses.2",
        "subclasses.1",
        must=1.10,
    ),
    Row(
        "one timer pending, 1 connection: added to a turn",
        "pending",
        beside="requests.1.danga_raw",
        must=2_800,
        unit="instructions",
    ),
)
VERSION = "3.11"


def main() -> int:
    if not sys.version.startswith(f"{VERSION}."):
        python = pythons.interpreter(VERSION)
        if not python:
            print(f"left out: there is no CPython {VERSION}, for which the limits are")
            return 0
        os.execv(python, [python, *sys.argv])
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
