"""Starts the programs to measure: on one processor, in one environment, and always ends them."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PYTHON = sys.executable


def environment(package: Path, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """What a measured program sees: the package to measure, no randomness in its hashes, and no
    settings of the caller's (PYTHONDONTWRITEBYTECODE would make each import compile)."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("DANGA_RAW_", "PYTHON"))
    }
    return kept | {
        "PYTHONPATH": str(package),
        "PYTHONHASHSEED": "0",
        "PERL_HASH_SEED": "0",
        **(more or {}),
    }


def one_processor() -> set[int]:
    return {min(os.sched_getaffinity(0))}


def be_real_time() -> None:
    """Keep other programs from pre-empting us and whatever we start, if that is allowed."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except PermissionError:
        pass


def give_way(pid: int) -> None:
    """Put a server on our own processor, where waking up does not pre-empt us.

    A server that wakes at the first of 32 requests would find one event, then 31, or 5 and 27, at
    random. As a batch process on its client's processor it runs when the client waits, and finds
    all 32. Where the client may be a real-time process, no other program can pre-empt it either.
    """
    os.sched_setaffinity(0, one_processor())
    os.sched_setaffinity(pid, one_processor())
    os.sched_setscheduler(pid, os.SCHED_BATCH, os.sched_param(0))
    be_real_time()


@contextmanager
def as_we_were() -> Iterator[None]:
    """Undo, at the end, what `give_way` did to this process."""
    processors = os.sched_getaffinity(0)
    policy, param = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, param)
        os.sched_setaffinity(0, processors)


@contextmanager
def on_one_processor() -> Iterator[None]:
    """Keep everything that is started in the block on one processor."""
    # Without the scheduler's policies, which musl leaves out.
    processors = os.sched_getaffinity(0)
    os.sched_setaffinity(0, one_processor())
    try:
        yield
    finally:
        os.sched_setaffinity(0, processors)


@dataclass
class Server:
    """A server that has printed its port."""

    pid: int
    port: int


@contextmanager
def running(
    command: Sequence[str], env: Mapping[str, str], pinned: bool = False
) -> Iterator[Server]:
    """Start a server, which prints its port first, and end it by SIGTERM after the block."""
    with as_we_were() if pinned else nullcontext():
        process = subprocess.Popen(
            command,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        try:
            if pinned:
                give_way(process.pid)
            line = process.stdout.readline()
            if not line:
                raise RuntimeError(f"{command[-1]} did not start: {process.communicate()[1]}")
            yield Server(process.pid, int(line))
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate()


def memory(pid: int, field: str) -> int:
    """A size from the kernel's account of a process, in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {field} for process {pid}")
