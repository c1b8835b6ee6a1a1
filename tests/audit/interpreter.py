"""What an interpreter itself asks of the kernel: `python -m tests.audit.interpreter [PYTHON ...]`.

Runs what every program of this package does beside its own calls (start, import, allocate, handle
signals, take locks, serve a client, log, end) under strace and prints the names of all system calls
that are seen, and by which interpreters. `danga_raw/_seccomp.py` keeps them as data.

A PYTHON is a command; without one it is that of pyenv's Pythons from 3.10 on, and this one.
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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.clients import PATIENCE, read_to_end

ROOT = Path(__file__).parents[2]

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
signal.setitimer(signal.ITIMER_REAL, 0.01)
signal.pause()
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
"""The life of a program, but for its sockets."""


def _names(text: str) -> set[str]:
    """The calls in a trace of strace's, of one thread or several. What strace can't name it prints
    as syscall_0x..., of no use to anybody."""
    return set(re.findall(r"^(?:\[pid +\d+\] |\d+ +)?(\w+)\(", text, re.MULTILINE))


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DANGA_RAW_")}
    return {**kept, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}


class Watcher:
    """Runs an interpreter under something that prints its system calls."""

    def __init__(self, python: Sequence[str], folder: Path, watch: Sequence[str]) -> None:
        self.python = [*python]
        self.out = folder / "calls"
        self.watch = [word.replace("OUT", str(self.out)) for word in watch]

    def lives(self, *argv: str, ended: int = 0) -> set[str]:
        """The calls of a program that ends by itself."""
        command = [*self.watch, *self.python, *argv]
        done = subprocess.run(
            command, env=_environment(), stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
        assert done.returncode == ended, (command, done.returncode, done.stderr.decode())
        return _names(self.out.read_text(errors="replace"))

    def serves(self, *argv: str) -> set[str]:
        """The calls of a server that has a client and is ended by SIGTERM or SIGINT."""
        command = [*self.watch, *self.python, *argv]
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


STRACE = ("strace", "-f", "-qq", "-o", "OUT")


@contextmanager
def watcher(python: Sequence[str], watch: Sequence[str] = STRACE) -> Iterator[Watcher]:
    with tempfile.TemporaryDirectory() as folder:
        yield Watcher(python, Path(folder), watch)


def measure(python: Sequence[str], watch: Sequence[str] = STRACE) -> Mapping[str, set[str]]:
    """By what it was doing: the calls that an interpreter was seen to make."""
    with watcher(python, watch) as watched:
        life = watched.lives("-c", LIFE)
        # Ended by SIGINT the interpreter restores its default action and sends it to itself.
        interrupted = -signal.SIGINT
        life |= watched.lives("-c", LIFE, "interrupted", ended=interrupted)
        served: set[str] = set()
        for argv in (
            ("-m", "danga_raw", "echo"),
            ("-m", "danga_raw", "trace", "-o", os.devnull, "-m", "danga_raw", "echo"),
            ("examples/httpd.py", "--port", "0", "."),
            ("examples/ddlockd.py", "0"),
        ):
            if argv[1:3] == ("danga_raw", "trace"):
                argv = (*argv[:5], "examples/ddlockd.py", "0")
            served |= watched.serves(*argv)
    return {"life": life, "served": served - life}


def pythons() -> list[list[str]]:
    """pyenv's from 3.10 on, and this one."""
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv", "versions")
    found = [path for path in root.glob("3.1[0-9].*/bin/python3")]
    here = Path(sys.executable)
    if not any(path.resolve() == here.resolve() for path in found):
        found.append(here)
    return [[str(path)] for path in sorted(found)]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.audit.interpreter", description=__doc__)
    parser.add_argument("pythons", nargs="*", metavar="PYTHON")
    chosen = [shlex.split(word) for word in parser.parse_args().pythons] or pythons()
    seen: dict[str, set[str]] = {}
    for python in chosen:
        for doing, names in measure(python).items():
            print(f"{' '.join(python)}: {doing}: {len(names)} calls", flush=True)
            for name in names:
                seen.setdefault(f"{doing} {name}", set()).add(" ".join(python))
    for name, by in sorted(seen.items()):
        print(name, "" if len(by) == len(chosen) else f"({', '.join(sorted(by))})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
