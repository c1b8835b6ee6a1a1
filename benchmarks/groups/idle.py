"""Busy connections among many idle ones."""

from collections.abc import Mapping

from benchmarks import instructions
from benchmarks.load import Client, ask
from benchmarks.peers import PEERS
from benchmarks.processes import Server
from benchmarks.table import Bench, Group, Row, Step

BUSY, IDLE = 32, 10_000
# On poll each new connection costs a scan of all the others: 10,000 would take long.
IDLE_ON_POLL = (1000, 3000)


def a_request(bench: Bench, idle: int, env: Mapping[str, str]) -> float:
    """Instructions per request on the busy connections."""

    def served(rounds: int) -> int:
        def load(server: Server) -> None:
            with Client(server.port) as client:
                client.connect(idle)
                ask(client.connect(BUSY), rounds)

        return instructions.of_server(PEERS["danga_raw"].command(bench.scratch), env, load)

    return instructions.of_each(served, 20, bench.count(100, 60)) / BUSY


def plan(bench: Bench) -> list[Step]:
    def step(backend: str, idle: int) -> Step:
        return instructions.step(
            bench,
            f"{BUSY} busy connections beside {idle:,} idle ones, {backend}",
            f"idle.{backend}.{idle}",
            lambda env: a_request(bench, bench.count(idle, idle // 10), env),
            {"DANGA_RAW_BACKEND": backend},
        )

    return [
        *(step("epoll", idle) for idle in (0, IDLE)),
        *(step("poll", idle) for idle in (0, *IDLE_ON_POLL)),
    ]


def row(backend: str, idle: int, must: float | None = None) -> Row:
    return Row(
        f"a busy request, {BUSY} connections beside {idle:,} idle, over none idle ({backend})",
        f"idle.{backend}.{idle}",
        f"idle.{backend}.0",
        must=must,
    )


GROUP = Group(
    "idle",
    f"{IDLE:,} idle connections beside {BUSY} busy ones",
    (row("epoll", IDLE, 1.05), *(row("poll", idle) for idle in IDLE_ON_POLL)),
    plan,
)
