"""Runs the tests on other machines' Pythons: `python -m tests.abi.foreign i386 s390x`.

Debian's python3 for each machine is unpacked into the cache folder (`debian.py`) and runs under
qemu's user mode, which converts the guest's structs by its own knowledge of the guest's ABI; i386
runs directly on the kernel if possible. The tests use the pytest of the Python that runs this. It
needs apt and the Debian package qemu-user-static.

Tests marked `needs` are left out, because perl, strace and the like are for this machine.
"""

import argparse
import importlib.util
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from tests.abi import debian

ROOT = Path(__file__).parents[2]

PACKAGES = ("python3-minimal", "libpython3-stdlib")

PYTEST = ("_pytest", "iniconfig", "packaging", "pluggy", "py", "pygments", "pytest")
"""pytest and its dependencies, pure Python that runs on any machine."""

WRAPPER = "foreign-python3"

HUNG = 300
"""The time limit of the smoke test, which takes one or two seconds."""

HUNG_TESTS = 3600
"""The time limit of the tests in seconds; they take some minutes under qemu."""

SUITES = "not kqueue-sim"
"""Leaves out the simulated kqueues, which don't run on other machines' Pythons."""


class Machine(NamedTuple):
    """A Debian architecture, and the qemu that runs its programs."""

    qemu: str
    triplet: str
    """The folder of its libraries."""
    suite: str = debian.STABLE
    """The suite of its Python."""
    newest_qemu: bool = False
    """True if the stable qemu is too old for it."""


MACHINES = {
    "i386": Machine("i386", "i386-linux-gnu"),
    "arm64": Machine("aarch64", "aarch64-linux-gnu"),
    "armhf": Machine("arm", "arm-linux-gnueabihf"),
    "s390x": Machine("s390x", "s390x-linux-gnu"),
    "ppc64el": Machine("ppc64le", "powerpc64le-linux-gnu"),
    # Debian has had this one since trixie.
    "riscv64": Machine("riscv64", "riscv64-linux-gnu", "trixie"),
    "loong64": Machine("loongarch64", "loongarch64-linux-gnu", "sid", newest_qemu=True),
}

USUAL = [name for name, machine in MACHINES.items() if not machine.newest_qemu]
"""The default, without those for which half a gigabyte of a newer qemu would be downloaded."""

SMOKE = """
import os, platform, socket, sys
from ctypes import c_void_p, sizeof
from danga_raw import Loop, Socket
from danga_raw._epoll import epoll_event

class Echo(Socket):
    def event_read(self):
        data = self.read(100)
        if data is None:
            self.close()
            self.loop.stop()
        elif data:
            self.write(data)

for backend in ("epoll", "poll"):
    # A fd above 255 has more than one byte that could come out in the wrong order.
    pairs = [socket.socketpair() for _ in range(150)]
    here, there = pairs[-1]
    here.setblocking(False)
    with Loop(backend=backend) as loop:
        echo = Echo(here, loop=loop)
        echo.watch_read(True)
        there.sendall(b"a byte and some more")
        there.shutdown(socket.SHUT_WR)
        loop.run()
        answer = there.recv(100)
    assert answer == b"a byte and some more", (backend, answer)
    for pair in pairs:
        for end in pair:
            end.close()
print(f"Python {platform.python_version()}, {os.uname().machine}, {sys.byteorder}-endian, "
      f"{8 * sizeof(c_void_p)} bits, "
      f"struct epoll_event {sizeof(epoll_event)} bytes")
"""


def fetch(architecture: str, scratch: Path) -> Path:
    """Unpack Python for `architecture` under `scratch`, if needed; returns its root folder."""
    suite = MACHINES[architecture].suite
    root = scratch / f"python3-{suite}-{architecture}"
    return debian.unpack(PACKAGES, root, suite=suite, architecture=architecture)


def lend_pytest(scratch: Path) -> Path:
    """A folder with only pytest of this Python's packages."""
    folder = scratch / "pytest"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name in PYTEST:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:
            origin = Path(spec.origin)
            source = origin.parent if spec.submodule_search_locations else origin
            metadata = source.parent.glob(f"{name}-*.dist-info")  # pytest looks up pluggy's
            for path in (source, *metadata):
                (folder / path.name).symlink_to(path)
    return folder


def ways(architecture: str, root: Path) -> list[tuple[str, list[str]]]:
    """The ways to run the programs unpacked in `root`, the best first: a name, and the words to put
    before a program."""
    machine = MACHINES[architecture]
    folders = [root / stem / machine.triplet for stem in ("lib", "usr/lib")]
    found = []
    if architecture == "i386":
        library_path = ":".join(map(str, folders))
        loader = [f"{root}/lib/ld-linux.so.2", "--library-path", library_path]
        found.append(("the kernel itself", loader))
    if qemu := emulator(machine):
        found.append((f"qemu-{machine.qemu}", [qemu, "-L", str(root)]))
    return found


def emulator(machine: Machine) -> str | None:
    """The path of the qemu that runs its programs, if there is one."""
    if not machine.newest_qemu:
        return shutil.which(f"qemu-{machine.qemu}-static")
    newest = debian.CACHE / "qemu-user-sid"
    root = debian.unpack(["qemu-user"], newest, suite="sid", architecture="amd64")
    return str(root / f"usr/bin/qemu-{machine.qemu}")


NAMED = {"the kernel itself": "--argv0"}
"""The option that sets the program's argv[0], if it isn't -0."""


def wrap(architecture: str, root: Path) -> tuple[Path, str]:
    """A command that runs the unpacked Python with itself as `sys.executable`, and the way it runs.

    Tests start more Pythons by `sys.executable`, and these must run in the same way.
    """
    (python,) = root.glob("usr/bin/python3.??")
    wrapper = python.with_name(WRAPPER)
    for name, way in ways(architecture, root):
        words = " ".join([*way, NAMED.get(name, "-0")])
        wrapper.write_text(f'#!/bin/sh\nexec {words} $0 {python} "$@"\n')
        wrapper.chmod(0o755)
        if subprocess.run([wrapper, "-c", ""], capture_output=True, check=False).returncode == 0:
            return wrapper, name
    raise OSError(f"nothing here runs {architecture}: apt-get install qemu-user-static")


def run(architecture: str, scratch: Path, tests: list[str]) -> tuple[bool, str]:
    """Run the smoke test and `tests` on `architecture`; returns success, and a line about it."""
    begin = time.monotonic()
    try:
        python, by = wrap(architecture, fetch(architecture, scratch))
    except OSError as error:
        return False, f"{architecture}: {error}"
    empty = scratch / "empty"
    empty.mkdir(exist_ok=True)
    # With nothing in PATH, a test that itself looks for a tool is skipped with the tool's name.
    environment = {
        "PATH": str(empty),
        "HOME": str(empty),
        "LC_ALL": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": f"{ROOT}:{lend_pytest(scratch)}",
    }
    try:
        smoke = subprocess.run(
            [python, "-c", SMOKE], env=environment, capture_output=True, text=True, timeout=HUNG
        )
    except subprocess.TimeoutExpired:
        # Events read from the wrong offset belong to no object, and the loop waits forever.
        return False, f"{architecture}: the loop never saw the end of its connection"
    if smoke.returncode:
        return False, f"{architecture}: an echo on each backend: {smoke.stderr.strip()}"
    line = f"{architecture} by {by}: {smoke.stdout.strip()}; an echo on epoll and on poll passed"
    well = True
    if tests:
        print(f"--- {architecture}", flush=True)
        pytest = [str(python), "-m", "pytest", "-m", "not needs"]
        log = scratch / f"{architecture}.log"
        with log.open("w") as output:
            try:
                well = not subprocess.run(
                    [*pytest, "-k", SUITES, *tests],
                    env=environment,
                    cwd=ROOT,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    timeout=HUNG_TESTS,
                ).returncode
            except subprocess.TimeoutExpired:
                well = False
        told = log.read_text(errors="replace")
        print(told, flush=True)
        summary = re.findall(r"^(?:=+ )?(\d+ \w+.*?) in [\d.]+s", told, re.MULTILINE)
        line += f"; tests: {summary[-1] if summary else 'did not come to their end'}"
    return well, f"{line} ({time.monotonic() - begin:.0f} s)"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.abi.foreign", description=__doc__)
    parser.add_argument("machines", nargs="*", metavar="MACHINE", help="; ".join(MACHINES))
    parser.add_argument("--scratch", type=Path, default=debian.CACHE, help="default: %(default)s")
    what = "the rest goes to pytest: which tests to run, and how (default: all)"
    parser.add_argument("--tests", nargs=argparse.REMAINDER, default=["tests"], help=what)
    arguments = parser.parse_args()
    if unknown := set(arguments.machines) - MACHINES.keys():
        parser.error(f"{', '.join(unknown)}: not among {', '.join(MACHINES)}")
    arguments.scratch.mkdir(parents=True, exist_ok=True)
    machines = arguments.machines or USUAL
    results = [run(name, arguments.scratch.resolve(), arguments.tests) for name in machines]
    print("\n".join(line for _, line in results))
    return 0 if all(well for well, _ in results) else 1


if __name__ == "__main__":
    sys.exit(main())
