"""What keeps a loop busy must not keep it from the rest: a number that nobody owns any more, a
connection that always has data, and many unrelated objects."""

from __future__ import annotations

import logging
import socket
import sys
from collections.abc import Callable
from fcntl import F_DUPFD, fcntl
from types import FrameType
from typing import Any

import pytest

from danga_raw import _epoll, _kqueue
from tests.world import Recorder, World, only, real_only

TURNS = 100
"""A loop that takes this many turns in these tests is spinning."""


def run_for(world: World, seconds: float) -> int:
    """Run the loop until a timer stops it, for at most `TURNS` turns; how many it took."""
    turns = [0]

    def count(*_: object) -> bool:
        turns[0] += 1
        return turns[0] < TURNS

    world.loop.add_timer(seconds, world.loop.stop)
    world.loop.set_post_loop_callback(count)
    world.loop.run()
    return turns[0]


@pytest.mark.parametrize("watched", [False, True], ids=["unwatched", "watched"])
def test_fd_closed_behind_the_loops_back_is_reported_once_and_does_not_spin(
    world: World, watched: bool, caplog: pytest.LogCaptureFixture
) -> None:
    world.lenient()
    one, _ = world.socketpair()
    obj = Recorder(one, world.loop)
    obj.watch_read(watched)
    other, peer = world.socketpair()
    heard = Recorder(other, world.loop)
    heard.watch_read(True)
    one.close()
    with caplog.at_level(logging.WARNING, "danga_raw"), world.calls() as calls:
        assert run_for(world, 0.01) < 5
        assert len(only(calls, "wait")) < 5
        peer.send(b"still here")
        world.until(lambda: heard.got)
    assert obj.events == [] and heard.got == b"still here"
    assert len(caplog.records) <= 1


@pytest.mark.parametrize("room", [1, 1000])
def test_busy_connection_starves_neither_other_connections_nor_timers(
    world: World, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_epoll, "MAX_EVENTS", room)
    monkeypatch.setattr(_kqueue, "MAX_EVENTS", room)
    order: list[str] = []
    one, two = world.socketpair()

    def more() -> None:
        while True:
            try:
                two.send(bytes(4096))
            except BlockingIOError:
                return

    def take_everything(obj: Recorder) -> None:
        # One read in each turn, and it is full again.
        order.append("greedy")
        obj.read(1 << 30)
        more()
        if len(order) > TURNS:
            world.loop.stop()

    Recorder(one, world.loop, read=take_everything).watch_read(True)
    others = []
    for name in "abc":
        here, there = world.socketpair()

        def once(obj: Recorder, name: str = name) -> None:
            order.append(name)
            obj.take()

        other = Recorder(here, world.loop, read=once)
        other.watch_read(True)
        others.append((other, there))
    more()
    world.turn()
    order.clear()
    for _, there in others:
        there.send(b"x")
    world.loop.add_timer(0, lambda: order.append("timer"))
    world.loop.set_post_loop_callback(lambda *_: len(set(order)) < 5)
    world.loop.run()
    assert sorted(set(order)) == ["a", "b", "c", "greedy", "timer"]
    # Nobody waits for more than one round of what is ready.
    assert order.count("greedy") <= 4 and order.index("timer") == 0


def test_single_read_is_limited_to_one_mebibyte(world: World) -> None:
    # To read everything from a socket with room for more than a mebibyte makes one read of 1 MiB.
    one, _ = world.socketpair()
    obj = Recorder(one, world.loop)
    with world.calls() as calls:
        obj.read(1 << 30)
    assert only(calls, "read") == [("read", one.fileno(), 1 << 20)]


def lines_run(action: Callable[[], object]) -> int:
    """How many lines of the package `action` runs."""
    lines = 0

    def count(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal lines
        lines += event == "line" and "danga_raw" in frame.f_code.co_filename
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        action()
    finally:
        sys.settrace(before)
    return lines


def new_object_beside_many_closing(world: World, others: list[Recorder]) -> Callable[[], object]:
    one, _ = world.socketpair()
    for each in others:
        each.close()
    return lambda: Recorder(one, world.loop)


def new_object_beside_many_stolen(world: World, others: list[Recorder]) -> Callable[[], object]:
    one, _ = world.socketpair()
    for each in others:
        each.steal_socket()
    return lambda: Recorder(one, world.loop)


def rewrapped_socket(world: World, others: list[Recorder]) -> Callable[[], object]:
    for each in others:
        each.steal_socket()
    one, _ = world.socketpair()
    obj = Recorder(one, world.loop)
    obj.steal_socket()
    return lambda: Recorder(one, world.loop)


def reading_pushed_back_data(world: World, others: list[Recorder]) -> Callable[[], object]:
    """The others have pushed-back data too, but don't watch for reading."""
    for each in others:
        each.push_back_read(b"x")
    one, _ = world.socketpair()
    obj = Recorder(one, world.loop)
    for piece in b"a", b"b", b"c":
        obj.push_back_read(piece)
    obj.watch_read(True)

    def read() -> None:
        world.turn()
        assert obj.got == b"abc"

    return read


@real_only
@pytest.mark.parametrize(
    "act",
    [
        new_object_beside_many_closing,
        new_object_beside_many_stolen,
        rewrapped_socket,
        reading_pushed_back_data,
    ],
)
def test_cost_of_an_operation_does_not_grow_with_the_number_of_objects(
    world: World, act: Callable[[World, list[Recorder]], Callable[[], object]]
) -> None:
    costs: list[int] = []
    # Whatever numbers they get, the loop has room for them.
    high = fcntl(world.socketpair()[0], F_DUPFD, 512)
    Recorder(socket.socket(fileno=high), world.loop).close()
    for count in 50, 2, 50:  # The first includes what is done only once.
        others = [Recorder(world.socketpair()[0], world.loop) for _ in range(count)]
        costs.append(lines_run(act(world, others)))
        for each in list(world.loop.descriptor_map.values()):
            each.close()
        world.turn()
    assert 0 < costs[1] == costs[2]


@real_only
def test_cost_of_watch_read_does_not_grow_with_other_pushed_back_objects(
    world: World,
) -> None:
    def read(obj: Recorder) -> None:
        obj.watch_read(False)
        obj.take()
        obj.watch_read(True)

    costs: list[int] = []
    for count in 20, 20, 40, 60:  # The first includes what is done only once.
        for _ in range(count):
            obj = Recorder(world.socketpair()[0], world.loop, read=read)
            obj.watch_read(True)
            obj.push_back_read(b"x")
        costs.append(lines_run(world.turn))
        for each in list(world.loop.descriptor_map.values()):
            assert isinstance(each, Recorder) and each.got == b"x"
            each.close()
        world.turn()
    # poll's table grows now and then.
    assert 0 < costs[3] - costs[2] < 1.05 * (costs[2] - costs[1])
