"""Hold conversations and print what was said.

    python -m tests.perlbal [--original] [--ours] [WORD ...]

Those whose names have all the words in them; without --original or --ours, of both, and only where
they differ.
"""

from __future__ import annotations

import argparse
import difflib
import sys
import time

from tests.perlbal.compare import tables, told, town


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.perlbal", description=__doc__.partition("\n")[0])
    parser.add_argument("words", nargs="*", metavar="WORD", help="in the name or subject")
    parser.add_argument("--original", action="store_true", help="only the original; print it")
    parser.add_argument("--ours", action="store_true", help="only ours; print it")
    options = parser.parse_args()
    only = [name for name in ("original", "ours") if getattr(options, name)]
    count = differing = 0
    with town(*only) as place:
        for subject, rows in tables().items():
            for row in rows:
                if not all(word in f"{subject}: {row.name}" for word in options.words):
                    continue
                count += 1
                since = time.monotonic()
                transcripts = place.hold(row)
                spent = time.monotonic() - since
                if spent > 1:
                    print(f"{spent:.1f} s: {subject}: {row.name}")
                if only:
                    for each in transcripts.values():
                        print(f"=== {subject}: {row.name}\n{told(each)}", flush=True)
                elif transcripts["original"] != transcripts["ours"]:
                    differing += 1
                    print(f"=== {subject}: {row.name} {row.differs and f'({row.differs})'}")
                    both = [told(transcripts[each]).split("\n") for each in ("original", "ours")]
                    names = ("original", "ours")
                    print("\n".join(difflib.unified_diff(*both, *names, n=30, lineterm="")))
                    sys.stdout.flush()
    print(f"{count} conversations" + ("" if only else f", {differing} differ"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
