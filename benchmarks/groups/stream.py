"""A lot of data to a fast reader: seconds, so only the ratio has a limit."""

import subprocess

from benchmarks.processes import HERE, PYTHON, environment
from benchmarks.table import Bench, Figures, Group, Row, Step

PROGRAM = [PYTHON, str(HERE / "programs" / "stream.py")]
BLOCKS_IN_A_GIB = 4096


def plan(bench: Bench) -> list[Step]:
    env = environment(bench.package)
    blocks = str(bench.count(BLOCKS_IN_A_GIB, BLOCKS_IN_A_GIB // 16))
    rounds = bench.count(15, 3)
    packages: list[float] = []
    blockings: list[float] = []

    def seconds(how: str) -> float:
        command = [*PROGRAM, how, blocks]
        return float(subprocess.run(command, env=env, capture_output=True, check=True).stdout)

    def step(number: int) -> Step:
        def measure(figures: Figures) -> None:
            # Alternating, so that neither always runs second.
            for how, taken in sorted(
                {"package": packages, "blocking": blockings}.items(), reverse=bool(number % 2)
            ):
                taken.append(seconds(how))
            # The fastest of each: sender and reader fill two processors, and other load on the
            # machine can only add time.
            figures["stream"] = (min(blockings) / min(packages),)

        return Step(f"1 GiB through write() and sendall, round {number} of {rounds}", measure)

    return [step(number) for number in range(1, rounds + 1)]


GROUP = Group(
    "stream",
    "1 GiB through write(), against a blocking sendall",
    (
        Row(
            "throughput, 1 GiB through write() to a reader that drains, over blocking sendall",
            "stream",
            must=0.95,
            at_least=True,
        ),
    ),
    plan,
)
