"""Two loops in two threads, on a Python that lets them run at the same time."""

import shutil
import subprocess

from benchmarks.groups.pythons import pyenv_versions
from benchmarks.processes import HERE, as_we_were, be_real_time, environment
from benchmarks.table import Bench, Figures, Group, Row, Step

PROGRAM = str(HERE / "programs" / "threads.py")
VERSIONS = ("3.13", "3.14")


def interpreter() -> str:
    """A free-threaded CPython, from pyenv or on the path; empty if there is none."""
    for version in reversed(VERSIONS):
        found = sorted(pyenv_versions().glob(f"{version}.*t/bin/python{version}t"))
        there = str(found[-1]) if found else shutil.which(f"python{version}t")
        if there:
            return there
    return ""


def left_out() -> dict[str, str]:
    if interpreter():
        return {}
    return {"a free-threaded CPython": f"pyenv install {VERSIONS[-1]}t"}


def plan(bench: Bench) -> list[Step]:
    if not interpreter():
        return []
    env = environment(bench.package)
    rounds = bench.count(9, 3)
    fastest = {1: 0.0, 2: 0.0}

    def step(number: int) -> Step:
        def measure(figures: Figures) -> None:
            for loops in fastest:
                command = [interpreter(), PROGRAM, str(loops), str(bench.count(200_000, 50_000))]
                with as_we_were():
                    be_real_time()
                    done = subprocess.run(command, env=env, capture_output=True, check=True)
                # Other load on the machine can only reduce it.
                fastest[loops] = max(fastest[loops], float(done.stdout))
            figures["threads"] = (fastest[2] / fastest[1],)

        return Step(f"two loops in two threads, round {number} of {rounds}", measure)

    return [step(number) for number in range(1, rounds + 1)]


GROUP = Group(
    "threads",
    "two loops in two threads of a free-threaded CPython, over one loop",
    (
        Row(
            "throughput of two loops in two threads, free-threaded, over one loop",
            "threads",
            must=1.7,
            at_least=True,
        ),
    ),
    plan,
    on_demand=True,
)
