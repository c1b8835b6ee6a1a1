"""Where the instructions of a request go, step by step."""

from collections.abc import Mapping

from benchmarks import instructions
from benchmarks.processes import HERE, PYTHON
from benchmarks.table import Bench, Group, Row, Step

PROGRAM = [PYTHON, str(HERE / "programs" / "budget.py")]
HANDLERS = (
    (32, "nothing"),
    (32, "read"),
    (32, "write"),
    (32, "answer"),
    (32, "calls"),
    (1, "nothing"),
)


def a_request(handler: str, connections: int, env: Mapping[str, str], quick: bool) -> float:
    def counted(rounds: int) -> int:
        command = [*PROGRAM, handler, str(connections), str(rounds)]
        return instructions.of_program(command, env)

    fewer, more = (20, 60 if quick else 120) if connections > 1 else (20, 220 if quick else 420)
    return instructions.of_each(counted, fewer, more) / connections


def plan(bench: Bench) -> list[Step]:
    def step(connections: int, handler: str) -> Step:
        return instructions.step(
            bench,
            f"the budget of a request, {connections} ready at once: {handler}",
            f"budget.{connections}.{handler}",
            lambda env: a_request(handler, connections, env, bench.quick),
        )

    return [step(connections, handler) for connections, handler in HANDLERS]


def row(what: str, figure: str, beside: str = "") -> Row:
    return Row(f"of a request: {what}", figure, beside=beside, unit="instructions")


GROUP = Group(
    "budget",
    "the budget of one request, by step",
    (
        row(
            "its share of a wait for 32, finding the object, calling event_read",
            "budget.32.nothing",
        ),
        row("read()", "budget.32.read", "budget.32.nothing"),
        row("write()", "budget.32.write", "budget.32.read"),
        row("the handler's check of the data", "budget.32.answer", "budget.32.write"),
        row("all of it", "budget.32.answer"),
        row("os.read and os.write alone, in a for loop", "budget.32.calls"),
        row("a wait of its own, in addition", "budget.1.nothing", "budget.32.nothing"),
    ),
    plan,
)
