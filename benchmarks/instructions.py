"""Counts user-mode instructions, which are the same from run to run, unlike seconds."""

import re
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks.load import Client, ask
from benchmarks.processes import Server, environment, on_one_processor, running
from benchmarks.table import Bench, Figures, Step

TOTAL = re.compile(r"^(?:totals|summary): (\d+)", re.MULTILINE)
SEEDS = (1, 2001)
"""Lengths of an environment variable. It shifts everything that Python allocates after it, and the
position of a block changes the cost of the C library's malloc by a few hundred instructions."""


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
    """True once for each program: its first run may compile its imports, and must not count."""
    key = f"{command} {env.get('PYTHONPATH')}"
    new = key not in _run_before
    _run_before.add(key)
    return new


def of_program(command: Sequence[str], env: Mapping[str, str]) -> int:
    """The instructions of a program that ends by itself."""
    if first_time(command, env):
        subprocess.run(command, env=env, capture_output=True)
    with tempfile.TemporaryDirectory() as folder, on_one_processor():
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
        with running(valgrind(out) + list(command), env, pinned=True) as server:
            load(server)
        return total(out)


def of_each(count: Callable[[int], int], fewer: int, more: int) -> float:
    """The cost of one, from the difference of two counts, so that the start-up cancels out."""
    return (count(more) - count(fewer)) / (more - fewer)


def of_a_request(
    command: Sequence[str], env: Mapping[str, str], connections: int, quick: bool
) -> float:
    """The cost of a request to a server, one at a time on each of the connections."""

    def served(rounds: int) -> int:
        def load(server: Server) -> None:
            with Client(server.port) as client:
                ask(client.connect(connections), rounds)

        return of_server(command, env, load)

    fewer, more = 640, 1920 if quick else 3840
    return of_each(served, fewer // connections, more // connections) / connections


def step(
    bench: Bench,
    label: str,
    figure: str,
    count: Callable[[Mapping[str, str]], float],
    more: Mapping[str, str] | None = None,
) -> Step:
    """A step that counts at each seed of the heap, in the environment that it hands to `count`."""

    def measure(figures: Figures) -> None:
        figures[figure] = tuple(
            count(environment(bench.package, {**(more or {}), "HEAP_SEED": "x" * length}))
            for length in SEEDS
        )

    return Step(label, measure)
