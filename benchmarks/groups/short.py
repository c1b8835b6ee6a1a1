"""Short connections: each is accepted, asks once, and is closed."""

from collections.abc import Mapping

from benchmarks import instructions
from benchmarks.load import Client
from benchmarks.peers import PEERS, Peer
from benchmarks.processes import Server
from benchmarks.table import Bench, Group, Row, Step


def a_connection(bench: Bench, peer: Peer, env: Mapping[str, str]) -> float:
    """Instructions a connection, one after the other."""

    def served(count: int) -> int:
        def load(server: Server) -> None:
            for _ in range(count):
                with Client(server.port) as client:
                    client.connect(1)  # which asks once

        return instructions.of_server(peer.command(bench.scratch), env, load)

    return instructions.of_each(served, 50, bench.count(450, 250))


def plan(bench: Bench) -> list[Step]:
    def step(peer: Peer) -> Step:
        return instructions.step(
            bench,
            f"instructions a short connection: {peer.title}",
            f"short.{peer.name}",
            lambda env: a_connection(bench, peer, env),
        )

    return [step(PEERS[name]) for name in ("danga_raw", "fair", "bare")]


GROUP = Group(
    "short",
    "a connection for one request, over the fair and the bare hand-written loop",
    (
        Row(
            "a connection that is accepted, asks once and is closed, over the fair loop",
            "short.danga_raw",
            "short.fair",
            must=2.0,
            aim=1.7,
        ),
        Row("the same over the bare loop", "short.danga_raw", "short.bare"),
        Row("a connection that is accepted, asks once and is closed", "short.danga_raw", unit="instructions"),
    ),
    plan,
)
