"""A long queue for a slow reader: linear time, and no copy of the data."""

import subprocess
from collections.abc import Mapping

from benchmarks import instructions
from benchmarks.processes import HERE, PYTHON, environment
from benchmarks.table import Bench, Figures, Group, Row, Step

PROGRAM = [PYTHON, str(HERE / "programs" / "write_queue.py")]
FEW, MANY = 10_000, 100_000
BLOCKS, BLOCK_BYTES = 16, 4 * 1024 * 1024


def plan(bench: Bench) -> list[Step]:
    env = environment(bench.package)

    def step(key: str, count: int) -> Step:
        def each(env: Mapping[str, str]) -> float:
            return instructions.of_each(
                lambda count: instructions.of_program([*PROGRAM, "writes", str(count)], env),
                0,
                count,
            )

        return instructions.step(bench, f"a queue of {count:,} small writes", f"queue.{key}", each)

    def memory(figures: Figures) -> None:
        command = [*PROGRAM, "memory", str(BLOCKS)]
        done = subprocess.run(command, env=env, capture_output=True, check=True, text=True)
        most, small = map(float, done.stdout.split())
        figures["queue.copied"] = (100 * most / BLOCK_BYTES,)
        figures["queue.small"] = (small,)

    return [
        step("few", bench.count(FEW, 1000)),
        step("many", bench.count(MANY, 10_000)),
        Step("memory of a queue", memory),
    ]


GROUP = Group(
    "queue",
    f"a queue of {MANY:,} small writes to a slow reader",
    (
        Row(
            f"a small write, {MANY:,} queued for a slow reader, over {FEW:,} queued",
            "queue.many",
            "queue.few",
            must=1.2,
        ),
        Row(
            f"peak memory beyond {BLOCKS} queued blocks of 4 MiB while they are sent, of one block",
            "queue.copied",
            must=5,
            unit="%",
        ),
        Row("memory for a queued small write, beyond its bytes", "queue.small", unit="bytes"),
    ),
    plan,
)
