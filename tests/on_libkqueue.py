"""Tests on Debian's libkqueue, which tests/test_libkqueue.py runs in another process.

LIBKQUEUE is the library's path. The package would refuse the library, because it can't have both
filters of a descriptor enabled; the trial that finds this out is left out.
"""

from __future__ import annotations

import ctypes
import os
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

import pytest

from danga_raw import Loop
from danga_raw._kqueue import KQueue
from danga_raw._poll import POLLHUP, POLLIN, POLLOUT
from tests.world import Recorder, no_hanging

if TYPE_CHECKING:
    from danga_raw._kqueue import KQueueLibrary


@pytest.fixture
def untried() -> Iterator[KQueueLibrary]:
    """The library, without the package's trial."""
    with no_hanging():
        yield cast("KQueueLibrary", ctypes.CDLL(os.environ["LIBKQUEUE"], use_errno=True))


@pytest.fixture
def loop(untried: KQueueLibrary, monkeypatch: pytest.MonkeyPatch) -> Iterator[Loop]:
    """A loop on it."""
    monkeypatch.setenv("DANGA_RAW_LIBKQUEUE", "the fixture's")
    monkeypatch.setattr("danga_raw._kqueue.load_libkqueue", lambda path: untried)
    with Loop("kqueue") as loop:
        yield loop


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, two = socket.socketpair()
    with one, two:
        one.setblocking(False)
        yield one, two


Pair = tuple[socket.socket, socket.socket]


def test_events_are_read_where_the_library_writes_them(untried: KQueueLibrary) -> None:
    poller = KQueue(untried, "libkqueue")
    poller.open()
    pairs = [socket.socketpair() for _ in range(150)]
    for number, (one, two) in enumerate(pairs):
        poller.register(one.fileno(), POLLIN)
        if number % 3 == 0:
            two.send(bytes(number + 1))
    # Some numbers need more than one byte.
    assert max(one.fileno() for one, _ in pairs) > 255
    told = dict(poller.wait(1000))
    assert told == {one.fileno(): POLLIN for one, _ in pairs[::3]}
    with pytest.raises(FileExistsError):
        poller.register(pairs[0][0].fileno(), POLLIN)
    for one, two in pairs:
        poller.unregister(one.fileno(), POLLIN)
        one.close()
        two.close()
    assert list(poller.wait(0)) == []
    poller.close()


def test_filters_of_a_descriptor_can_be_switched(untried: KQueueLibrary, pair: Pair) -> None:
    one, two = pair
    fd = one.fileno()
    poller = KQueue(untried, "libkqueue")
    poller.open()
    poller.register(fd, 0)
    two.send(b"x")
    for mask in (0, POLLIN, 0, POLLOUT, 0, POLLIN):
        poller.modify(fd, mask ^ mask, mask)
        assert list(poller.wait(0)) == ([(fd, mask)] if mask else [])
        poller.modify(fd, mask, 0)
    poller.modify(fd, 0, POLLIN)
    with pytest.raises(FileExistsError):
        poller.modify(fd, POLLIN, POLLIN | POLLOUT)
    poller.close()


def test_object_reads_to_the_end_and_is_then_hung_up(loop: Loop, pair: Pair) -> None:
    one, two = pair
    obj = Recorder(one, loop)
    obj.watch_read(True)
    obj.on["read"] = lambda obj: obj.got.extend(obj.read(2) or b"")
    two.sendall(b"abcde")
    two.close()
    loop.set_post_loop_callback(lambda *_: not obj.closed)
    loop.run()
    assert obj.got == b"abcde" and obj.events == [*["read"] * 4, "hup", "close None"]


def test_object_writes_queued_data(loop: Loop, pair: Pair) -> None:
    one, two = pair
    two.setblocking(False)
    obj = Recorder(one, loop)
    sent = bytes(range(256)) * 8000
    assert obj.write(sent) is False
    received = bytearray()

    def take(*_: object) -> bool:
        try:
            received.extend(two.recv(1 << 20))
        except BlockingIOError:
            pass
        return len(received) < len(sent)

    take()
    loop.set_post_loop_callback(take)
    loop.run()
    assert received == sent and not obj.write_buf


def test_timers_and_other_fds_share_the_wait(loop: Loop, pair: Pair) -> None:
    one, two = pair
    heard: list[object] = []
    loop.add_other_fds({one.fileno(): lambda state: heard.append((state, one.recv(10)))})
    loop.add_timer(0.01, lambda: two.send(b"x"))
    loop.add_timer(0.02, two.close)
    loop.set_post_loop_callback(lambda *_: len(heard) < 2)
    loop.run()
    assert heard == [(POLLIN, b"x"), (POLLIN | POLLHUP, b"")]


def test_rejected_descriptor_is_an_error_with_its_reason(loop: Loop) -> None:
    with open(os.devnull) as file:
        fd = file.fileno()
    with pytest.raises(OSError, match=rf"kevent\(.*fd {fd}\)"):
        loop.add_other_fds({fd: lambda state: None})
    assert loop.other_fds == {}
