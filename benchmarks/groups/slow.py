"""Writes that block and resume: 1 MiB through a small send buffer to a slow reader."""

import socket
from collections.abc import Mapping

from benchmarks import instructions
from benchmarks.load import ANSWER_SECONDS, REQUEST
from benchmarks.peers import PEERS, python
from benchmarks.processes import Server
from benchmarks.table import Bench, Group, Row, Step

MIB = 2**20
SERVERS = {"danga_raw": "danga_raw_blocks.py", "fair": "select_epoll_fair_blocks.py"}


def read_answers(port: int, count: int) -> int:
    """Request the MiB `count` times; return the number of parts that arrived, one per write."""
    parts = 0
    with socket.create_connection(("127.0.0.1", port), ANSWER_SECONDS) as connection:
        for _ in range(count):
            connection.send(REQUEST)
            left = MIB
            while left:
                received = len(connection.recv(left))
                if not received:
                    raise RuntimeError(f"the server left when {left} bytes were still to come")
                left -= received
                parts += 1
    return parts


def a_part(command: list[str], env: Mapping[str, str], quick: bool) -> float:
    """Instructions per write of an answer."""
    parts: dict[int, int] = {}

    def served(answers: int) -> int:
        def load(server: Server) -> None:
            parts[answers] = read_answers(server.port, answers)

        return instructions.of_server(command, env, load)

    fewer, more = 2, 12 if quick else 32
    an_answer = instructions.of_each(served, fewer, more)
    return an_answer / instructions.of_each(parts.__getitem__, fewer, more)


def plan(bench: Bench) -> list[Step]:
    def step(name: str, blocks: int) -> Step:
        command = [*python(SERVERS[name])(bench.scratch), str(MIB // blocks), str(blocks)]
        return instructions.step(
            bench,
            f"instructions a write, 1 MiB in {blocks} through a small buffer: {PEERS[name].title}",
            f"slow.{blocks}.{name}",
            lambda env: a_part(command, env, bench.quick),
        )

    return [step(name, blocks) for blocks in (1, 16) for name in SERVERS]


GROUP = Group(
    "slow",
    "1 MiB to a slow reader through a small send buffer, over the fair hand-written loop",
    (
        Row(
            "a write that blocks and resumes, 1 MiB at once through a small SO_SNDBUF, "
            "over fair hand-written loop",
            "slow.1.danga_raw",
            "slow.1.fair",
            must=1.5,
            aim=1.3,
        ),
        Row(
            "the same, 1 MiB in blocks of 64 KiB that block once each",
            "slow.16.danga_raw",
            "slow.16.fair",
        ),
    ),
    plan,
)
