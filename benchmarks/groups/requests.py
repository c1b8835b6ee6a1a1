"""Instructions per keep-alive request, for every peer."""

from benchmarks import instructions
from benchmarks.peers import PEERS, Peer, present
from benchmarks.table import Bench, Group, Row, Step


def step(bench: Bench, peer: Peer, connections: int) -> Step:
    """User-mode instructions per request, one request at a time on each connection."""
    return instructions.step(
        bench,
        f"instructions per request, {many(connections)}: {peer.title}",
        f"requests.{connections}.{peer.name}",
        lambda env: instructions.of_a_request(
            peer.command(bench.scratch), env, connections, bench.quick
        ),
    )


def plan(bench: Bench) -> list[Step]:
    return [step(bench, peer, connections) for connections in (32, 1) for peer in present()]


def many(connections: int) -> str:
    return f"{connections} connection{'s' if connections > 1 else ''}"


def row(connections: int, peer: str, must: float, aim: float | None = None) -> Row:
    return Row(
        f"instructions per request, {many(connections)}, over {PEERS[peer].title}",
        f"requests.{connections}.danga_raw",
        f"requests.{connections}.{peer}",
        must=must,
        aim=aim,
    )


GROUP = Group(
    "requests",
    "instructions per keep-alive request, at 32 connections and at 1, of every peer",
    (
        row(32, "asyncio", 0.45),
        row(32, "perl", 0.28),
        row(1, "asyncio", 0.62),
        row(1, "perl", 0.43),
    ),
    plan,
)
