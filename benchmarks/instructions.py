"""Counting user-mode instructions: the same from run to run, where seconds are not."""

import re
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks.processes import Server, running

TOTAL = re.compile(r"^(?:totals|summary): (\d+)", re.MULTILINE)


def valgrind(out: str) -> list[str]:
    return ["valgrind", "--tool=callgrind", "--quiet", f"--callgrind-out-file={out}"]


def total(out: str) -> int:
    """The instructions that a finished run of callgrind wrote down."""
    found = TOTAL.findall(Path(out).read_text())
    if not found:
        raise RuntimeError("callgrind wrote no total")
    return int(found[-1])


_run_before: set[str] = set()


def first_time(command: Sequence[str], env: Mapping[str, str]) -> bool:
    """True once for each program: its first run may compile what it imports, and must not count."""
    key = f"{command} {env.get('PYTHONPATH')}"
    new = key not in _run_before
    _run_before.add(key)
    return new


def of_program(command: Sequence[str], env: Mapping[str, str]) -> int:
    """The instructions of a program that ends by itself."""
    if first_time(command, env):
        subprocess.run(command, env=env, capture_output=True)
    with tempfile.TemporaryDirectory() as folder:
        out = f"{folder}/callgrind.out"
        done = subprocess.run(valgrind(out) + list(command), env=env, capture_output=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.decode(errors='replace')}")
        return total(out)


def of_server(
    command: Sequence[str], env: Mapping[str, str], load: Callable[[Server], None]
) -> int:
    """The instructions of a server from its start to its end after the load."""
    if first_time(command, env):
        with running(command, env):
            pass
    with tempfile.TemporaryDirectory() as folder:
        out = f"{folder}/callgrind.out"
        with running(valgrind(out) + list(command), env, one_processor=True) as server:
            load(server)
        return total(out)


def of_each(count: Callable[[int], int], fewer: int, more: int) -> float:
    """What one costs, by the difference of two counts: the start-up is in both and cancels."""
    return (count(more) - count(fewer)) / (more - fewer)
