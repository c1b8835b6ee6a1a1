"""The subjects of the audit's comparison: each is an interpreter and a tracer for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path

from danga_raw._clibrary import MUSL, Where
from danga_raw._strace import calls
from tests.abi import debian, foreign
from tests.audit import lines, qemu
from tests.audit.programs import Program
from tests.clients import PATIENCE

ROOT = Path(__file__).parents[2]


def environment(backend: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DANGA_RAW_")}
    # When the interpreter's reads are counted, it must make the same ones in every run.
    more = {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONHASHSEED": "0"}
    return {**kept, **more, "DANGA_RAW_BACKEND": backend}


class Subject:
    """A Python, and a tracer."""

    def __init__(self, name: str, python: Sequence[str], watcher: Sequence[str]) -> None:
        self.name = name
        self.python = [*python]
        self.watcher = [*watcher]
        """The command of a strace; empty if a qemu runs the interpreter."""

    @cached_property
    def place(self) -> Where:
        """The C library and the machine that the interpreter reports."""
        ask = "from danga_raw._kernel import HERE; print(tuple(HERE))"
        told = subprocess.run(
            [*self.python, "-c", ask],
            env=environment("epoll"),
            capture_output=True,
            text=True,
            check=True,
        )
        return Where(*eval(told.stdout, {}))

    def can_run(self, program: Program) -> bool:
        """False if qemu would have to make a call fail, or if Python itself writes into the
        package's pipe, since qemu doesn't report the data written."""
        return bool(self.watcher) or not (program.inject or "signals" in program.name)

    def compare(self, program: Program, folder: Path) -> int:
        """Run a program under both tracers at once; returns the number of equal lines. Raises
        `AssertionError` at the first that differs."""
        theirs, own = folder / "theirs", folder / "own"
        served = folder / "served"
        served.mkdir()
        (served / "program.py").write_text(program.source)
        argv = [word.replace("DIR", str(served)) for word in program.argv]
        trace = ["-m", "danga_raw", "trace", "-o", str(own), str(ROOT / "tests" / "announced.py")]
        command = [*self._watched(theirs, program), *trace, *argv]
        if program.client is None:
            done = subprocess.run(
                command,
                env=environment(program.backend),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=PATIENCE,
                check=False,
            )
            assert done.returncode == 0, done.stderr.decode()
        else:
            serve(command, program.backend, program.client)
        ended = program.client is not None
        text, told = theirs.read_text(errors="replace"), own.read_text()
        if not self.watcher:
            return qemu.compare(text, told, self.place, ended=ended)
        words = self.place.libc != MUSL
        kernels = calls(self.place)
        return len(lines.compare(program.name, text, told, kernels, ended=ended, words=words))

    def _watched(self, out: Path, program: Program) -> list[str]:
        if not self.watcher:
            command, *options = self.python
            return [command, "-strace", "-D", str(out), *options]
        kernels = calls(self.place)
        traced = ["?fcntl64", *(f"?{name}" for name in {name for name, _ in kernels.values()})]
        options = ["-qq", "-o", str(out), "-e", f"trace={','.join(traced)}"]
        if program.inject:
            wait = {"epoll": "epoll_wait", "poll": "poll"}[program.backend]
            options += ["-e", f"inject={kernels[wait][0]}:{program.inject}"]
        return [*self.watcher, *options, *self.python]


def serve(command: Sequence[str], backend: str, client: Callable[[int], None]) -> None:
    """Run a server under its tracers, talk to it, and end it by SIGTERM."""
    with subprocess.Popen(
        command,
        env=environment(backend),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            assert process.stdout is not None
            greeting = process.stdout.readline().strip().rstrip("/")
            assert greeting.startswith("listening on "), greeting
            client(int(greeting.rpartition(":")[2]))
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            os.kill(int(children[0]) if children else process.pid, signal.SIGTERM)
            process.wait(PATIENCE)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


# --- the subjects ---------------------------------------------------------------------------------

STRACES = ("bookworm", "trixie", "sid")
"""The Debian suites whose strace is used: 6.1, 6.13, and the newest."""


def strace_of(suite: str) -> list[str]:
    """The command of that suite's strace, with that suite's libraries."""
    folder = debian.CACHE / f"strace-{suite}"
    root = debian.unpack(["strace"], folder, suite=suite, architecture="amd64")
    libraries = root / "lib/x86_64-linux-gnu", root / "usr/lib/x86_64-linux-gnu"
    loader = root / "lib64/ld-linux-x86-64.so.2"
    path = ":".join(map(str, libraries))
    return [str(loader), "--library-path", path, str(root / "usr/bin/strace")]


def by_strace(suite: str, python: str) -> Subject:
    version = subprocess.run([*strace_of(suite), "--version"], capture_output=True, text=True)
    number = version.stdout.split()[3]
    return Subject(f"{Path(python).name} by strace {number}", [python], strace_of(suite))


def by_qemu(architecture: str, suite: str = "") -> Subject:
    """Debian's Python for another machine, under qemu."""
    suite = suite or foreign.MACHINES[architecture].suite
    root = debian.unpack(
        foreign.PACKAGES,
        debian.CACHE / f"python3-{suite}-{architecture}",
        suite=suite,
        architecture=architecture,
    )
    name, way = foreign.ways(architecture, root)[-1]
    (python,) = root.glob("usr/bin/python3.??")
    return Subject(f"{architecture} of {suite} by {name}", [*way, str(python)], [])


def by_the_kernel(architecture: str) -> Subject:
    """The same for a machine whose programs this kernel runs, under the newest strace."""
    root = foreign.fetch(architecture, debian.CACHE)
    name, way = foreign.ways(architecture, root)[0]
    (python,) = root.glob("usr/bin/python3.??")
    return Subject(f"{architecture} by {name}", [*way, str(python)], strace_of("sid"))


SUBJECTS: dict[str, Callable[[], Subject]] = {
    **{f"strace-{suite}": partial(by_strace, suite, sys.executable) for suite in STRACES},
    "i386-native": partial(by_the_kernel, "i386"),
    **{name: partial(by_qemu, name) for name in foreign.USUAL},
}
"""Name -> a function that makes the subject, perhaps after downloading it."""

NEWER: dict[str, Callable[[], Subject]] = {
    **{f"{name}-trixie": partial(by_qemu, name, "trixie") for name in ("i386", "arm64", "armhf")},
    "loong64": partial(by_qemu, "loong64"),
}
"""The same machines with a newer glibc, and one that needs a newer qemu."""
