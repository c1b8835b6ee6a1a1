"""Timers: a cost that hardly grows with the number pending, and memory that is released."""

import subprocess
from collections.abc import Mapping

from benchmarks import instructions
from benchmarks.processes import HERE, PYTHON, environment
from benchmarks.table import Bench, Figures, Group, Row, Step

PROGRAM = [PYTHON, str(HERE / "programs" / "timers.py")]
FEW, MANY = 1000, 100_000


def plan(bench: Bench) -> list[Step]:
    env = environment(bench.package)
    many = bench.count(MANY, 10_000)

    def step(label: str, what: str, key: str, pending: int, fewer: int, more: int) -> Step:
        def each(env: Mapping[str, str]) -> float:
            return instructions.of_each(
                lambda count: instructions.of_program(
                    [*PROGRAM, what, str(pending), str(count)], env
                ),
                fewer,
                more,
            )

        return instructions.step(bench, label, f"timers.{what}.{key}", each)

    def fire(key: str, pending: int) -> Step:
        label = f"a timer added and fired, {pending:,} pending"
        return step(label, "fire", key, pending, 500, 2500)

    def cancel(key: str, pending: int) -> Step:
        return step(f"cancelling {pending:,} timers", "cancel", key, pending, 0, pending)

    def memory(figures: Figures) -> None:
        command = [*PROGRAM, "memory", str(MANY)]
        done = subprocess.run(command, env=env, capture_output=True, check=True, text=True)
        full, held = map(int, done.stdout.split())
        figures["timers.memory"] = (full / MANY,)
        figures["timers.held"] = (100 * held / full,)

    return [
        fire("few", FEW),
        fire("many", many),
        cancel("few", FEW),
        cancel("many", many),
        Step("memory of cancelled timers", memory),
    ]


GROUP = Group(
    "timers",
    f"timers with {MANY:,} pending, against {FEW:,}",
    (
        Row(
            f"a timer added and fired, {MANY:,} pending in random order, over {FEW:,}",
            "timers.fire.many",
            "timers.fire.few",
            must=2,
        ),
        Row(
            f"a cancel, when all of {MANY:,} timers are cancelled, over {FEW:,}",
            "timers.cancel.many",
            "timers.cancel.few",
            must=2,
        ),
        Row(
            f"memory still held after all of {MANY:,} timers are cancelled",
            "timers.held",
            must=5,
            unit="%",
        ),
    ),
    plan,
)
