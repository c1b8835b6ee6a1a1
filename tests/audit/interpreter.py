"""The system calls of the interpreter itself: `python -m tests.audit.interpreter [PYTHON ...]`.

Runs under strace what every program with this package does apart from the package's own calls
(start, import, allocate, handle signals, take locks, serve a client, log, exit). Prints the names
of all system calls seen, and of those missing in `danga_raw/_seccomp.py`, which keeps them as data.

A PYTHON is a command; the default is pyenv's Pythons from 3.10 on, and this one. `--machines` adds
Debian's Pythons for other machines, under qemu.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from danga_raw._seccomp import INTERPRETER, allowed
from tests.audit.subjects import NEWER, SUBJECTS
from tests.clients import PATIENCE, read_to_end

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"

LIFE = """
import logging, signal, socket, sys, threading, time
import danga_raw, danga_raw.trace
from danga_raw import Loop, Socket

for size in (10, 1 << 12, 1 << 18, 1 << 22, 1 << 26):  # by the heap, by mmap, grown and given back
    data = bytearray(size)
    data.extend(bytes(size))
    del data[size // 2 :]
many = [bytes(n) for n in range(20000)]
del many, data

came = []
for number in (signal.SIGALRM, signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, lambda number, frame: came.append(number))
signal.siginterrupt(signal.SIGUSR1, False)
signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)  # Again, should it come before the pause.
signal.pause()
signal.setitimer(signal.ITIMER_REAL, 0)
signal.alarm(0)
signal.raise_signal(signal.SIGUSR1)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
time.sleep(0.001)

lock, done = threading.Lock(), threading.Event()
threads = [threading.Thread(target=done.wait) for _ in range(3)]
for thread in threads:
    thread.start()
done.wait(0.001)
done.set()
for thread in threads:
    thread.join()
logging.getLogger("danga_raw").warning("a line of the log")
print(sys.version, flush=True)
if sys.argv[1:] == ["interrupted"]:
    signal.raise_signal(signal.SIGINT)
"""
"""What a program does besides using sockets."""


HUNG = 60
"""The time limit of one program, which takes a second, or some seconds under qemu."""


def _names(text: str) -> set[str]:
    """The names of the calls in a trace of one or more threads. qemu prints those made through
    socketcall(2) in capitals."""
    found = set(re.findall(r"^(?:\[pid +\d+\] |\d+ +)?([a-zA-Z]\w+)\(", text, re.MULTILINE))
    return {"socketcall" if name.isupper() else name for name in found}


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DANGA_RAW_")}
    return {**kept, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}


class Watcher:
    """Runs an interpreter under strace, or under the qemu that it needs anyway, which also prints
    its system calls."""

    def __init__(self, python: Sequence[str], folder: Path) -> None:
        self.out = folder / "calls"
        emulator, *options = python
        self.by_qemu = Path(emulator).name.startswith("qemu-")
        if self.by_qemu:
            self.command = [emulator, "-strace", "-D", str(self.out), *options]
        else:
            self.command = ["strace", "-f", "-qq", "-o", str(self.out), *python]

    def lives(self, *argv: str, ended: int = 0) -> set[str]:
        """The calls of a program that ends by itself."""
        command = [*self.command, *argv]
        try:
            done = subprocess.run(
                command,
                env=_environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=HUNG,
                check=False,
            )
            assert done.returncode == ended, (command, done.returncode, done.stderr.decode())
        except subprocess.TimeoutExpired:
            if not self.by_qemu:
                raise  # One of qemu's threads may wait forever for another; all calls were made.
        return _names(self.out.read_text(errors="replace"))

    def serves(self, *argv: str) -> set[str]:
        """The calls of a server that serves a client and is ended by SIGTERM or SIGINT."""
        command = [*self.command, *argv]
        with subprocess.Popen(
            command, env=_environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
        ) as process:
            try:
                assert process.stdout is not None
                words = process.stdout.readline().split()
                port = int(words[-1].rstrip("/").rpartition(":")[2])
                with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
                    client.sendall(b"GET /LICENSE HTTP/1.1\r\nHost: here\r\n\r\n")
                    client.shutdown(socket.SHUT_WR)
                    read_to_end(client)
                children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
                watched = int(children.split()[0]) if children else process.pid
                os.kill(watched, signal.SIGTERM)
                process.wait(PATIENCE)
            finally:
                if process.poll() is None:
                    process.kill()
        return _names(self.out.read_text(errors="replace"))


def measure(python: Sequence[str]) -> Mapping[str, set[str]]:
    """The calls that an interpreter was seen to make, by what it was doing."""
    with tempfile.TemporaryDirectory() as folder:
        watched = Watcher(python, Path(folder))
        life = watched.lives("-c", LIFE)
        # After SIGINT, the interpreter restores the default action and sends itself the signal.
        interrupted = -signal.SIGINT
        life |= watched.lives("-c", LIFE, "interrupted", ended=interrupted)
        served: set[str] = set()
        for argv in (
            ("-m", "danga_raw", "echo"),
            ("-m", "danga_raw", "trace", "-o", os.devnull, str(EXAMPLES / "ddlockd.py"), "0"),
            (str(EXAMPLES / "httpd.py"), "--port", "0", str(ROOT)),
        ):
            served |= watched.serves(*argv)
    return {"life": life, "served": served - life}


def pythons() -> list[list[str]]:
    """pyenv's Pythons from 3.10 on, and this one."""
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv", "versions")
    found = [path for path in root.glob("3.1[0-9].*/bin/python3")]
    here = Path(sys.executable)
    if not any(path.resolve() == here.resolve() for path in found):
        found.append(here)
    return [[str(path)] for path in sorted(found)]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.audit.interpreter", description=__doc__)
    parser.add_argument("pythons", nargs="*", metavar="PYTHON")
    parser.add_argument("--machines", action="store_true", help="other machines' Pythons too")
    arguments = parser.parse_args()
    chosen = [shlex.split(word) for word in arguments.pythons] or pythons()
    if arguments.machines:
        known = {**SUBJECTS, **NEWER}
        # i386 runs on the kernel itself, without qemu's hanging threads.
        foreign = [name for name in known if not name.startswith(("strace-", "i386"))]
        chosen += [known[name]().python for name in ["i386-native", *foreign]]
    seen: set[str] = set()
    for python in chosen:
        found = measure(python)
        names = set[str]().union(*found.values())
        counts = ", ".join(f"{doing} {len(made)}" for doing, made in found.items())
        print(f"{' '.join(python)}: {counts}", flush=True)
        if more := sorted(names - seen):
            print(f"    not seen before: {' '.join(more)}", flush=True)
        if missing := sorted(names - allowed()):
            print(f"    not allowed by the profile: {' '.join(missing)}", flush=True)
        seen |= names
    kept = set[str]().union(*(group.split() for group in INTERPRETER.values()))
    print(f"allowed, and seen of none of these: {' '.join(sorted(kept - seen))}")
    return 0 if seen <= allowed() else 1


if __name__ == "__main__":
    sys.exit(main())
