"""Several subclasses in use at once."""

from benchmarks import instructions
from benchmarks.peers import python
from benchmarks.table import Bench, Group, Row, Step

CONNECTIONS = 32


def step(bench: Bench, count: int) -> Step:
    command = [*python("danga_raw_subclasses.py")(bench.scratch), str(count)]
    return instructions.step(
        bench,
        f"instructions per request, {CONNECTIONS} connections, subclasses in use: {count}",
        f"subclasses.{count}",
        lambda env: instructions.of_a_request(command, env, CONNECTIONS, bench.quick),
    )


def plan(bench: Bench) -> list[Step]:
    return [step(bench, count) for count in (1, 2, 4)]


def row(many: str, figure: str) -> Row:
    what = f"a request, {many} subclasses in use, over one"
    return Row(what, figure, "subclasses.1", must=1.10, aim=1.03)


GROUP = Group(
    "subclasses",
    "a request with two and with four subclasses in use, against one",
    (
        row("two", "subclasses.2"),
        row("four", "subclasses.4"),
    ),
    plan,
)
