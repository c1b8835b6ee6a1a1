"""Runs the tests on Pythons that this system doesn't have: `python -m tests.abi.pythons 3.14 musl`.

The newest ones and PyPy come from Debian's unstable suite, together with the C library they need;
others are built from source (see `built.py`). Nothing is installed in the system. The tests use the
pytest of the Python that runs this. It needs apt-get and the Debian package patchelf, or what a
build needs.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.abi import built, debian
from tests.abi.foreign import ROOT, lend_pytest

SUITE = "sid"


class Package(NamedTuple):
    """One of Debian's Pythons."""

    name: str
    program: str


PACKAGES = {
    "3.14": Package("python3.14", "python3.14"),
    "3.15": Package("python3.15", "python3.15"),
    "pypy": Package("pypy3", "pypy3.11"),
}

NAMES = (*PACKAGES, *built.BUILDS)

PYPY = [
    *(
        f"tests/test_{name}.py"
        for name in "close_and_steal loop other_fds read socket timers without_tools write".split()
    ),
    *("-k", "not sim"),
]
"""The tests for PyPy. Those on the simulated kernel need pointers made by CPython's ctypes."""

WARNINGS = "error,ignore::ResourceWarning"
"""Also for every Python that a test starts. ResourceWarnings are ignored because a program may end
with open sockets, as a server ended by a signal does; in pytest itself they are still errors."""


def unpacked(name: str) -> Path:
    """Debian's interpreter of that name, after unpacking it into the cache if needed."""
    package = PACKAGES[name]
    root = debian.CACHE / f"{package.name}-{SUITE}"
    machine = debian.run(["dpkg", "--print-architecture"]).strip()
    debian.unpack([package.name], root, suite=SUITE, architecture=machine)
    program = root / "usr/bin" / package.program
    # With the root's loader and libraries in its header, it needs no wrapper: it can be started by
    # `sys.executable`, and strace sees it alone.
    (loader,) = root.glob("usr/lib/*/ld-linux-*.so.*")
    if debian.run(["patchelf", "--print-interpreter", str(program)]).strip() != str(loader):
        path = f"{loader.parent}:{root / 'usr/lib'}"
        at = ["--set-interpreter", str(loader), "--force-rpath", "--set-rpath", path]
        debian.run(["patchelf", *at, str(program)])
    return program


def interpreter(name: str) -> Path:
    """The interpreter of that name, after making it if needed, or at that path.

    Raises `OSError`.
    """
    if name not in NAMES:
        return Path(name)
    return unpacked(name) if name in PACKAGES else built.python(name)


def venv(python: Path, folder: Path) -> Path:
    """The interpreter of a virtual environment under `folder`, with this project as if installed,
    and the pytest of the Python that runs this."""
    debian.run([str(python), "-m", "venv", "--without-pip", str(folder / "venv")])
    (packages,) = folder.glob("venv/lib/*/site-packages")
    (packages / "lent.pth").write_text(f"{ROOT}\n{lend_pytest(folder)}\n")
    return folder / "venv/bin/python"


def run(name: str, arguments: Sequence[str]) -> tuple[bool, str]:
    """Run the tests on one Python; returns success, and a line about it."""
    begin = time.monotonic()
    try:
        python = interpreter(name)
    except OSError as error:
        return False, f"{name}: {error}"
    with tempfile.TemporaryDirectory() as scratch:
        python = venv(python, Path(scratch))
        version = [str(python), "-c", "import sys; print(sys.version.replace('\\n', ' '))"]
        told = [debian.run(version).strip()]
        print(f"--- {name}: {told[0]}", flush=True)
        environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONWARNINGS": WARNINGS}
        asked = arguments or (PYPY if name == "pypy" else [])
        pytest = [str(python), "-m", "pytest", *asked]
        with subprocess.Popen(
            pytest, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True, errors="replace"
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                print(line, end="", flush=True)
                told.append(line)
            status = process.wait()
    summary = re.findall(r"^(?:=+ )?(\d+ \w+.*?) in [\d.]+s", "".join(told), re.MULTILINE)
    came_to = summary[-1] if summary else f"came to no end, status {status}"
    line = f"{name} ({told[0].split(' ')[0]}): {came_to} ({time.monotonic() - begin:.0f} s)"
    return status == 0, line


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.abi.pythons", description=__doc__)
    names = f"{', '.join(NAMES)}, or the path of an interpreter"
    parser.add_argument("pythons", nargs="+", metavar="PYTHON", help=names)
    what = "the rest goes to pytest: which tests to run, and how (default: all that hold there)"
    parser.add_argument("--tests", nargs=argparse.REMAINDER, help=what)
    arguments = parser.parse_args()
    for name in arguments.pythons:
        if name not in NAMES and "/" not in name:
            parser.error(f"{name}: not one of {names}")
    results = [run(name, arguments.tests or []) for name in arguments.pythons]
    print("\n".join(line for _, line in results))
    return 0 if all(well for well, _ in results) else 1


if __name__ == "__main__":
    sys.exit(main())
