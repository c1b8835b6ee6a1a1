"""Faults that the simulated kernel's random servers found, each with the seed that showed it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from danga_raw._poll import POLLOUT
from danga_raw.loop import Loop
from danga_raw.socket import Socket
from tests.simkernel import Handle, SimKernel


class Sender(Socket):
    """An object that only writes."""

    def event_hup(self) -> None:
        self.close("hup")


@pytest.fixture
def kernel() -> Iterator[SimKernel]:
    kernel = SimKernel(capacity=100)
    with kernel.installed():
        yield kernel


def run_dry(loop: Loop, peer: Handle) -> bytes:
    """Run the loop for a turn at a time until the peer gets no more; what it got."""
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


def test_what_is_queued_behind_a_callable_that_raises_still_goes_out(kernel: SimKernel) -> None:
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
def test_callables_behind_one_that_raises_leave_no_watch_for_writing(
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
