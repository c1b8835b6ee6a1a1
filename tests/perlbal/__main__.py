"""Run conversations and print them.

    python -m tests.perlbal [--original] [--ours] [WORD ...]

Runs the conversations whose names contain all the words. Without --original or --ours it runs both
servers, and prints the conversations in which ours answers wrongly.
"""

from __future__ import annotations

import argparse
import sys
import time

from tests.perlbal.compare import TABLES, server_pool, told


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.perlbal", description=__doc__.partition("\n")[0])
    parser.add_argument("words", nargs="*", metavar="WORD", help="in the name or subject")
    parser.add_argument("--original", action="store_true", help="only the original; print it")
    parser.add_argument("--ours", action="store_true", help="only ours; print it")
    options = parser.parse_args()
    only = [name for name in ("original", "ours") if getattr(options, name)]
    count = faults = 0
    with server_pool(*only) as place:
        for subject, rows in TABLES.items():
            for row in rows:
                if not all(word in f"{subject}: {row.name}" for word in options.words):
                    continue
                count += 1
                since = time.monotonic()
                if only:
                    for each in place.hold(row).values():
                        print(f"=== {subject}: {row.name}\n{told(each)}", flush=True)
                elif found := place.fault(row):
                    faults += 1
                    print(f"=== {subject}: {row.name}\n{found}", flush=True)
                if (spent := time.monotonic() - since) > 2:
                    print(f"--- {spent:.1f} s: {subject}: {row.name}", flush=True)
    print(f"{count} conversations" + ("" if only else f", {faults} faults"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
