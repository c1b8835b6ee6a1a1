"""`python -m tests.abi` asks the headers and writes docs/abi.md; `--check` only compares."""

import argparse
import difflib
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.abi import model, probe, table
from tests.abi.targets import TARGETS

PAGE = Path(__file__).parents[2] / "docs" / "abi.md"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.abi", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if they differ")
    check = parser.parse_args().check

    try:
        zig = probe.zig_version()
    except OSError as error:
        print(error, file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(max_workers=2) as pool:
        found = pool.map(lambda target: probe.run(target, table.TYPES, Path(scratch)), TARGETS)
        answers = {target.triple: answer for target, answer in zip(TARGETS, found, strict=True)}

    page = table.render(answers, zig)
    wrong = [
        line
        for target in TARGETS
        if not answers[target.triple].missing
        for line in model.differences(target, answers[target.triple])
    ]
    compiled = sum(not answer.missing for answer in answers.values())
    print(f"zig {zig}: {compiled} of {len(TARGETS)} targets compiled, {len(wrong)} differences")
    if check:
        committed = PAGE.read_text() if PAGE.exists() else ""
        old, new = committed.splitlines(), page.splitlines()
        wrong += difflib.unified_diff(old, new, "docs/abi.md", "the headers", lineterm="")
    else:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(page)
    print("\n".join(wrong), end="\n" if wrong else "")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
