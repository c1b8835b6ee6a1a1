"""Short connections: each is accepted, sends one request, and is closed.

A server that accepts all pending connections learns from a failing accept(2) that there are no
more. So a server that accepts one per turn is compared with a loop that does the same, and a
Listener with a loop that also accepts until that failure.
"""

from collections.abc import Mapping

from benchmarks import instructions
from benchmarks.load import Client
from benchmarks.peers import PEERS, python
from benchmarks.processes import Server
from benchmarks.table import Bench, Group, Row, Step

AT_ONCE = 64  # as in a Listener


def a_connection(bench: Bench, command: list[str], env: Mapping[str, str]) -> float:
    """Instructions per connection, one after the other."""

    def served(count: int) -> int:
        def load(server: Server) -> None:
            for _ in range(count):
                with Client(server.port) as client:
                    client.connect(1)  # which sends one request

        return instructions.of_server(command, env, load)

    return instructions.of_each(served, 50, bench.count(450, 250))


def plan(bench: Bench) -> list[Step]:
    def step(name: str, title: str, file: str, *arguments: str) -> Step:
        command = [*python(file)(bench.scratch), *arguments]
        return instructions.step(
            bench,
            f"instructions a short connection: {title}",
            f"short.{name}",
            lambda env: a_connection(bench, command, env),
        )

    fair = "select_epoll_fair.py"
    steps = [
        step("danga_raw", "danga_raw, accept in an other fd's callback", "danga_raw_server.py"),
        step("fair", f"{PEERS['fair'].title}, one accept a turn", fair),
        step("fair.all", f"{PEERS['fair'].title}, all that wait", fair, str(AT_ONCE)),
        step("bare", f"{PEERS['bare'].title}, one accept a turn", "select_epoll.py"),
    ]
    if (bench.package / "danga_raw" / "listener.py").exists():
        steps.append(step("listener", "danga_raw, a Listener", "danga_raw_listener.py"))
    return steps


GROUP = Group(
    "short",
    "a connection for one request, over the fair and the bare hand-written loop",
    (
        Row(
            "a connection for one request, over fair hand-written loop",
            "short.danga_raw",
            "short.fair",
            must=2.0,
            aim=1.7,
        ),
        Row("the same over bare hand-written loop", "short.danga_raw", "short.bare"),
        Row(
            "the same with a Listener, over fair hand-written loop accepting all pending ones",
            "short.listener",
            "short.fair.all",
            must=2.0,
            aim=1.7,
        ),
    ),
    plan,
)
