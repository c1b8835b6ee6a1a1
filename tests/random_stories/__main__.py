"""`python -m tests.random_stories`: random stories on the original and here, as many as wanted."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from random import SystemRandom

from benchmarks.progress import Progress
from tests.random_stories.comparison import Mismatch, compare

AT_ONCE = 200
"""Stories for which a player is started; their traces are on the disk together."""
SHOWN = 5
"""Mismatches that are shown whole; of others only the seed."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.random_stories", description=__doc__)
    parser.add_argument("--seed", type=int, help="the first story's (a fresh one)")
    parser.add_argument("--stories", type=int, default=1000, help="how many (1000)")
    options = parser.parse_args(arguments)
    seed = SystemRandom().randrange(10**9) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    seeds = range(seed, seed + options.stories)
    lines = 0
    mismatches: list[Mismatch] = []
    progress = Progress()
    progress.begin(-(-len(seeds) // AT_ONCE))
    for start in range(0, len(seeds), AT_ONCE):
        progress.step(f"{start:,} stories compared, {len(mismatches)} differ")
        found = compare(seeds[start : start + AT_ONCE])
        lines += found.lines
        mismatches += found.mismatches
    progress.end()
    for mismatch in mismatches[:SHOWN]:
        print(mismatch)
    if mismatches[SHOWN:]:
        print("these differ too:", *(mismatch.seed for mismatch in mismatches[SHOWN:]))
    print(f"{len(seeds):,} stories, {lines:,} lines compared, {len(mismatches)} differ")
    return 1 if mismatches else 0


if __name__ == "__main__":
    sys.exit(main())
