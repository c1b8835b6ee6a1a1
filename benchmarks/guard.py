"""Fails when a request costs too much: instructions at 32 connections, over a hand-written loop.

Both are counted in the same run, so the machine, the compiler and the Python cancel.
"""

import sys
import tempfile
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.groups.requests import a_request
from benchmarks.peers import PEERS
from benchmarks.processes import ROOT
from benchmarks.table import Bench

LIMIT = 1.4


def main() -> int:
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(ROOT, Path(scratch), quick=True)
        ours = a_request(bench, PEERS["danga_raw"], 32)
        floor = a_request(bench, PEERS["handwritten"], 32)
    verdict = "holds" if ours / floor <= LIMIT else "does not hold"
    print(
        f"instructions a request at 32 connections: danga_raw {ours:,.0f}, "
        f"hand-written loop {floor:,.0f}, ratio {ours / floor:.3f}, limit {LIMIT}: {verdict}"
    )
    return 0 if ours / floor <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
