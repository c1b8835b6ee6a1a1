"""Instructions per keep-alive request, divided by those of the two hand-written loops."""

from benchmarks.groups import requests
from benchmarks.peers import PEERS
from benchmarks.table import Bench, Group, Step


def steps(bench: Bench, *names: str) -> list[Step]:
    """The steps of only these peers."""
    return [
        requests.step(bench, PEERS[name], connections) for connections in (32, 1) for name in names
    ]


def plan(bench: Bench) -> list[Step]:
    return steps(bench, "danga_raw", "fair", "bare")


GROUP = Group(
    "fair",
    "instructions per keep-alive request, over the fair and the bare hand-written loop",
    (
        requests.row(32, "fair", 0.84, 0.80),
        requests.row(32, "bare", 1.22, 1.15),
        requests.row(1, "fair", 1.25, 1.15),
        requests.row(1, "bare", 1.75, 1.60),
    ),
    plan,
)
