"""Faults that the simulated kernel's random servers found, each with the seed that showed it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import pytest

from danga_raw._poll import POLLOUT
from danga_raw.loop import Loop
from danga_raw.socket import Socket
from tests.simkernel import Handle, SimKernel

LP64 = sys.maxsize > 2**32
"""The simulated kqueue has the layouts of 64-bit machines."""
BACKENDS = ["epoll", "poll", *(["kqueue freebsd", "kqueue netbsd"] if LP64 else [])]


class Sender(Socket[Handle]):
    """An object that only writes."""

    def event_hup(self) -> None:
        self.close("hup")


@pytest.fixture
def kernel() -> Iterator[SimKernel]:
    kernel = SimKernel(capacity=100)
    with kernel.installed():
        yield kernel


def run_dry(loop: Loop, peer: Handle) -> bytes:
    """Run the loop turn by turn until the peer gets no more; return what it got."""
    loop.set_loop_timeout(0)
    loop.set_post_loop_callback(lambda sockets, others: False)
    peer.setblocking(False)
    got = b""
    while True:
        loop.run()
        try:
            got += peer.recv(1000)
        except BlockingIOError:
            return got


def raiser() -> None:
    """A callable that fails."""
    raise ZeroDivisionError


def test_data_queued_behind_a_raising_callable_is_still_sent(kernel: SimKernel) -> None:
    """python -m tests.simkernel --seed 7 --connections 12 --backend epoll"""
    loop = Loop()
    near, peer = kernel.socketpair()
    near.setblocking(False)
    sender = Sender(near, loop)
    sender.write(bytes(150))
    sender.write(raiser)
    sender.write(b"tail")
    with pytest.raises(ZeroDivisionError):
        run_dry(loop, peer)
    assert run_dry(loop, peer).endswith(b"tail")
    assert not sender.write_buf
    loop.close()


@pytest.mark.parametrize("last", [raiser, lambda: None])
def test_callables_behind_a_raising_one_leave_no_write_interest(
    kernel: SimKernel, last: Callable[[], object]
) -> None:
    """python -m tests.simkernel --seed 61 --connections 16 --backend poll"""
    loop = Loop()
    near, peer = kernel.socketpair()
    near.setblocking(False)
    sender = Sender(near, loop)
    sender.write(bytes(150))
    sender.write(raiser)
    sender.write(last)
    for _ in range(3):
        try:
            run_dry(loop, peer)
        except ZeroDivisionError:
            pass
    assert not sender.write_buf
    assert not sender.event_watch & POLLOUT
    loop.close()


class Reader(Socket[Handle]):
    """An object that records its events, and does `first` when it can read."""

    def __init__(self, handle: Handle, loop: Loop, first: Callable[[], None]) -> None:
        super().__init__(handle, loop)
        self.first: Callable[[], None] | None = first
        self.told: list[str] = []
        self.watch_read(True)

    def event_read(self) -> None:
        self.told.append("read")
        self.read(100)
        if self.first:
            first, self.first = self.first, None
            first()

    def event_hup(self) -> None:
        self.told.append("hup")
        self.close("hup")


@pytest.mark.parametrize("platform", BACKENDS)
def test_nested_run_leaves_no_event_for_a_reused_fd(platform: str) -> None:
    """python -m tests.simkernel --seed 11 --connections 16 --backend kqueue-freebsd"""
    backend, _, form = platform.partition(" ")
    kernel = SimKernel(platform=form or None)
    made: list[Reader] = []
    with kernel.installed(), Loop(backend) as loop:
        loop.set_loop_timeout(0)
        loop.set_post_loop_callback(lambda sockets, others: False)
        near, peer = kernel.socketpair()
        doomed, doomed_peer = kernel.socketpair()

        def run_within() -> None:
            number = doomed_object.fd
            doomed_object.close()
            loop.run()
            new = kernel.socketpair()[0]
            new.setblocking(False)
            made.append(Reader(new, loop, lambda: None))
            assert made[0].fd == number

        Reader(near, loop, run_within)
        doomed_object = Reader(doomed, loop, lambda: None)
        peer.send(b"x")
        doomed_peer.close()
        loop.run()
        assert made[0].told == []
        assert not made[0].closed


@pytest.mark.parametrize("platform", BACKENDS)
def test_second_nested_run_leaves_no_event_for_an_object_it_closed(platform: str) -> None:
    """python -m tests.simkernel --seed 2002643 --connections 16 --backend epoll"""
    backend, _, form = platform.partition(" ")
    kernel = SimKernel(platform=form or None)
    with kernel.installed(), Loop(backend) as loop:
        loop.set_loop_timeout(0)
        loop.set_post_loop_callback(lambda sockets, others: False)
        near, peer = kernel.socketpair()
        doomed, doomed_peer = kernel.socketpair()

        def run_within() -> None:
            loop.run()
            doomed_object.close()
            loop.run()

        Reader(near, loop, run_within)
        doomed_object = Reader(doomed, loop, lambda: None)
        peer.send(b"x")
        doomed_peer.send(b"x")
        # The kernel is strict: a call on a closed number would end the test.
        loop.run()
        assert doomed_object.told == ["read"]
