"""Instructions a keep-alive request, of every peer."""

from benchmarks import instructions
from benchmarks.load import Client, ask
from benchmarks.peers import PEERS, Peer, present
from benchmarks.processes import Server, environment
from benchmarks.table import Bench, Figures, Group, Row, Step


def a_request(bench: Bench, peer: Peer, connections: int) -> float:
    """User-mode instructions a request, one request at a time on each connection."""

    def served(rounds: int) -> int:
        def load(server: Server) -> None:
            with Client(server.port) as client:
                ask(client.connect(connections), rounds)

        return instructions.of_server(
            peer.command(bench.scratch), environment(bench.package), load
        )

    fewer, more = bench.count(640, 640), bench.count(3840, 1920)
    rounds = instructions.of_each(served, fewer // connections, more // connections)
    return rounds / connections


def plan(bench: Bench) -> list[Step]:
    def step(peer: Peer, connections: int) -> Step:
        def measure(figures: Figures) -> None:
            figures[f"requests.{connections}.{peer.name}"] = a_request(bench, peer, connections)

        return Step(f"instructions a request, {many(connections)}: {peer.title}", measure)

    return [step(peer, connections) for connections in (32, 1) for peer in present()]


def many(connections: int) -> str:
    return f"{connections} connection{'s' if connections > 1 else ''}"


def row(connections: int, peer: str, must: float, aim: float | None = None) -> Row:
    return Row(
        f"instructions a request, {many(connections)}, over {PEERS[peer].title}",
        f"requests.{connections}.danga_raw",
        f"requests.{connections}.{peer}",
        must,
        aim,
    )


GROUP = Group(
    "requests",
    "instructions a keep-alive request, at 32 connections and at 1",
    (
        row(32, "handwritten", 1.35, 1.15),
        row(32, "asyncio", 0.45),
        row(32, "perl", 0.28),
        row(1, "handwritten", 2.1, 1.6),
        row(1, "asyncio", 0.62),
        row(1, "perl", 0.43),
    ),
    plan,
)
