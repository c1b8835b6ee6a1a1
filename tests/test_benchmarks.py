"""The measured programs do what they claim to do, so that the measurements are fair."""

from __future__ import annotations

import select
import socket
import struct
from pathlib import Path

import pytest

from benchmarks.groups import slow
from benchmarks.load import REQUEST, Client, ask
from benchmarks.peers import PEERS, SERVERS
from benchmarks.processes import PYTHON, ROOT, environment, running
from benchmarks.progress import Progress
from benchmarks.table import Figures, Row, Step, measure, numbers

OURS = ["danga_raw", "fair", "bare", "bare-os"]
EARNEST = ["danga_raw", "fair"]
MIB = 2**20

pytestmark = pytest.mark.skipif(
    not hasattr(select, "epoll"), reason="the loops written by hand are over epoll"
)


@pytest.mark.parametrize("name", OURS)
def test_server_answers_each_request_on_each_connection(name: str, tmp_path: Path) -> None:
    with running(PEERS[name].command(tmp_path), environment(ROOT)) as server:
        with Client(server.port) as client:
            ask(client.connect(5), 3)


@pytest.mark.parametrize("name", EARNEST)
def test_fair_server_survives_a_connection_reset(name: str, tmp_path: Path) -> None:
    with running(PEERS[name].command(tmp_path), environment(ROOT)) as server:
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", server.port)) as rude:
                rude.send(REQUEST)
                rude.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with Client(server.port) as client:
            client.connect(1)


@pytest.mark.parametrize("name", EARNEST)
@pytest.mark.parametrize("blocks", [1, 16])
def test_fair_server_sends_later_what_did_not_fit_at_once(name: str, blocks: int) -> None:
    command = [PYTHON, str(SERVERS / slow.SERVERS[name]), str(MIB // blocks), str(blocks)]
    with running(command, environment(ROOT)) as server:
        with socket.create_connection(("127.0.0.1", server.port), 30) as late:
            late.send(REQUEST)
            slow.read_answers(server.port, 1)  # by then the first must have blocked
            received = b""
            while len(received) < MIB:
                part = late.recv(MIB)
                assert part
                received += part
        assert received == bytes(MIB)


@pytest.mark.parametrize(
    "file",
    [
        "danga_raw_callback.py loop",
        "danga_raw_callback.py objects",
        "danga_raw_field.py",
        "danga_raw_listener.py",
        "danga_raw_parked.py 10",
        "danga_raw_profiled.py",
        "danga_raw_subclasses.py 4",
        "danga_raw_sweep.py",
        "danga_raw_timers.py pending",
        "danga_raw_timers.py renewed",
        "select_epoll_fair.py 64",
    ],
)
def test_variant_answers_like_the_plain_server(file: str) -> None:
    name, *arguments = file.split()
    with running([PYTHON, str(SERVERS / name), *arguments], environment(ROOT)) as server:
        with Client(server.port) as client:
            ask(client.connect(5), 3)


def test_limit_holds_only_if_it_does_for_both_seeds() -> None:
    row = Row("", "ours", "theirs", must=1.2)
    assert row.verdict({"ours": (11.0, 12.0), "theirs": (10.0, 10.0)}) == "holds"
    assert row.verdict({"ours": (11.0, 13.0), "theirs": (10.0, 10.0)}) == "does not hold"
    assert row.verdict({"ours": (13.0, 11.0), "theirs": (10.0, 10.0)}) == "does not hold"


def test_floor_holds_only_if_it_does_for_both_seeds() -> None:
    row = Row("", "ours", must=2, at_least=True)
    assert row.verdict({"ours": (2.0, 3.0)}) == "holds"
    assert row.verdict({"ours": (3.0, 1.0)}) == "does not hold"


def test_added_cost_is_the_difference_for_each_seed() -> None:
    row = Row("", "with", beside="without", must=10, unit="instructions")
    figures = {"with": (110.0, 220.0), "without": (100.0, 211.0)}
    assert row.measured(figures) == (10.0, 9.0)
    assert row.cells(figures)[3] == "10.0 / 9.00 instructions"
    assert row.verdict(figures) == "holds"


def test_rows_without_measurements_are_left_out() -> None:
    assert Row("", "ours", "theirs", must=1).verdict({"ours": (1.0,)}) == "left out"
    assert Row("", "ours", beside="theirs", must=1).verdict({"ours": (1.0,)}) == "left out"
    assert Row("", "ours", must=1).verdict({"theirs": (1.0,)}) == "left out"
    assert numbers(None, "×") == ""


def test_step_that_two_groups_need_runs_once() -> None:
    ran: list[str] = []

    def step(label: str) -> Step:
        def note(figures: Figures) -> None:
            ran.append(label)

        return Step(label, note)

    measure([step("a"), step("b"), step("a")], Progress())
    assert ran == ["a", "b"]
