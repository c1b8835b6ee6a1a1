"""`python -m tests.audit` compares the audit's lines with strace's and qemu's, on other machines,
other C libraries, and other versions of strace.

    python -m tests.audit                     a sample of the programs, with all tracers
    python -m tests.audit --all               every program, and on a newer glibc too
    python -m tests.audit arm64 strace-sid    only these
    python -m tests.audit --python musl       one of tests.abi.pythons or a path; newest strace

Prints how many lines were compared, and each program whose calls were reported differently.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from subprocess import SubprocessError

from tests.abi.pythons import interpreter
from tests.audit.programs import Program, programs
from tests.audit.subjects import NEWER, SUBJECTS, Subject, by_strace


def run(subject: Subject, chosen: list[Program]) -> tuple[int, list[str]]:
    """The number of equal lines, and the differences."""
    lines, wrong = 0, []
    for program in filter(subject.can_run, chosen):
        with tempfile.TemporaryDirectory() as folder:
            try:
                lines += subject.compare(program, Path(folder))
            except (AssertionError, OSError, SubprocessError) as error:
                wrong.append(f"{program.name} on {program.backend}: {error}")
    return lines, wrong


def main() -> int:
    known = {**SUBJECTS, **NEWER}
    parser = argparse.ArgumentParser(prog="python -m tests.audit")
    parser.add_argument("subjects", nargs="*", metavar="SUBJECT", help="; ".join(known))
    parser.add_argument("--all", action="store_true", help="every program, on all of them")
    parser.add_argument("--python", action="append", default=[], metavar="NAME")
    parser.add_argument("--program", default="", metavar="NAME", help="only the programs so named")
    arguments = parser.parse_args()
    if unknown := set(arguments.subjects) - known.keys():
        parser.error(f"{', '.join(sorted(unknown))}: not among {', '.join(known)}")
    names = arguments.subjects
    if not names and not arguments.python:
        names = [*(known if arguments.all else SUBJECTS)]
    makers = [known[name] for name in names]
    makers += [partial(by_strace, "sid", str(interpreter(name))) for name in arguments.python]
    chosen = programs(1000) if arguments.all else programs(60, scenarios=10)
    chosen = [program for program in chosen if arguments.program in program.name]
    total, failed = 0, False
    for make in makers:
        begin = time.monotonic()
        subject = make()
        lines, wrong = run(subject, chosen)
        total, failed = total + lines, failed or bool(wrong) or not lines
        seconds = time.monotonic() - begin
        print(
            f"{subject.name}: {subject.place}, {subject.place.machine}: {lines} lines the same, "
            f"{len(wrong)} programs told otherwise ({seconds:.0f} s)",
            *wrong,
            sep="\n    ",
            flush=True,
        )
    print(f"{total} lines the same" if not failed else "not the same")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
