"""Memory per idle connection."""

from dataclasses import replace

from benchmarks.load import Client
from benchmarks.peers import PEERS, Peer, present, python
from benchmarks.processes import environment, memory, running
from benchmarks.table import Bench, Figures, Group, Row, Step

FIELD = replace(
    PEERS["danga_raw"],
    name="danga_raw-field",
    title="danga_raw, a subclass with one field",
    command=python("danga_raw_field.py"),
)


def a_connection(bench: Bench, peer: Peer) -> float:
    """Bytes of anonymous resident memory per connection, from two numbers of connections.

    The resident set is what the kernel charges, and the only measure that Perl, C and Python have
    in common. The two numbers are far enough apart for pages (4 KiB) not to matter.
    """
    # asyncore checks every connection for each new one, so many more would take minutes.
    fewer, more = 1000, bench.count(4000, 2000)
    with running(peer.command(bench.scratch), environment(bench.package)) as server:
        with Client(server.port) as client:
            client.connect(fewer)
            before = memory(server.pid, "RssAnon")
            client.connect(more - fewer)
            return (memory(server.pid, "RssAnon") - before) / (more - fewer)


def plan(bench: Bench) -> list[Step]:
    def step(peer: Peer) -> Step:
        def measure(figures: Figures) -> None:
            figures[f"memory.{peer.name}"] = (a_connection(bench, peer),)

        return Step(f"memory for an idle connection: {peer.title}", measure)

    return [step(peer) for peer in [*present(), FIELD]]


GROUP = Group(
    "memory",
    "memory for an idle connection",
    (
        Row(
            "memory for an idle connection, a subclass with one field",
            "memory.danga_raw-field",
            must=700,
            aim=450,
            unit="bytes",
        ),
    ),
    plan,
)
