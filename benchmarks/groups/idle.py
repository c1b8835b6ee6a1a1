"""Busy connections among many idle ones."""

from benchmarks import instructions
from benchmarks.load import Client, ask
from benchmarks.peers import PEERS
from benchmarks.processes import Server, environment
from benchmarks.table import Bench, Figures, Group, Row, Step

BUSY, IDLE = 32, 10_000


def a_request(bench: Bench, backend: str, idle: int) -> float:
    """Instructions a request on the busy connections."""
    env = environment(bench.package, {"DANGA_RAW_BACKEND": backend})

    def served(rounds: int) -> int:
        def load(server: Server) -> None:
            with Client(server.port) as client:
                client.connect(idle)
                ask(client.connect(BUSY), rounds)

        return instructions.of_server(PEERS["danga_raw"].command(bench.scratch), env, load)

    return instructions.of_each(served, 20, bench.count(100, 60)) / BUSY


def plan(bench: Bench) -> list[Step]:
    many = bench.count(IDLE, 1000)

    def step(backend: str, key: str, idle: int) -> Step:
        def measure(figures: Figures) -> None:
            figures[f"idle.{backend}.{key}"] = a_request(bench, backend, idle)

        return Step(f"{BUSY} busy connections beside {idle:,} idle ones, {backend}", measure)

    return [
        step(backend, key, idle)
        for backend in ("epoll", "poll")
        for key, idle in (("none", 0), ("many", many))
    ]


GROUP = Group(
    "idle",
    f"{IDLE:,} idle connections beside {BUSY} busy ones",
    (
        Row(
            f"a busy request, {BUSY} connections beside {IDLE:,} idle, over none idle (epoll)",
            "idle.epoll.many",
            "idle.epoll.none",
            must=1.05,
        ),
        Row(
            f"a busy request, {BUSY} connections beside {IDLE:,} idle, over none idle (poll)",
            "idle.poll.many",
            "idle.poll.none",
        ),
    ),
    plan,
)
