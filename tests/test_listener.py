"""A `Listener` at its limits: what it is told while it accepts, and calls that fail."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator

import pytest

from danga_raw import Listener, Loop
from tests.clients import PATIENCE

BACKENDS = ["epoll", "poll"]


@pytest.fixture(params=BACKENDS)
def loop(request: pytest.FixtureRequest) -> Iterator[Loop]:
    with Loop(request.param) as loop:
        yield loop


def turn(loop: Loop) -> None:
    loop.set_loop_timeout(0)
    loop.set_post_loop_callback(lambda *_: False)
    loop.run()
    loop.set_post_loop_callback(None)


def connected(listener: socket.socket) -> socket.socket:
    client = socket.create_connection(listener.getsockname(), PATIENCE)
    return client


def test_a_listener_that_is_to_watch_no_longer_accepts_no_more_of_the_batch(loop: Loop) -> None:
    got: list[socket.socket] = []
    sock = socket.create_server(("127.0.0.1", 0))
    clients = [connected(sock) for _ in range(4)]

    def accepted(connection: socket.socket, address: object) -> None:
        got.append(connection)
        if len(got) == 2:
            listener.watch_read(False)

    listener = Listener(sock, accepted, loop)
    turn(loop)
    assert len(got) == 2
    turn(loop)
    assert len(got) == 2
    listener.watch_read(True)
    turn(loop)
    assert len(got) == 4
    listener.close()
    for each in clients + got:
        each.close()


@pytest.mark.parametrize(
    ("number", "warned"), [(errno.EMFILE, False), (errno.ENOMEM, False), (errno.EIO, True)]
)
def test_a_server_at_its_limit_fills_no_log(
    number: int, warned: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def accept(sock: socket.socket) -> None:
        raise OSError(number, "no")

    monkeypatch.setattr("danga_raw.listener.libc.accept", accept)
    with Loop() as loop, socket.create_server(("127.0.0.1", 0)) as sock:
        listener = Listener(sock, lambda *_: None, loop)
        with connected(sock):
            turn(loop)
        assert not listener.event_watch & 1 and not listener.closed
        levels = [record.levelname for record in caplog.records]
        assert ("WARNING" in levels) == warned
        listener.steal_socket()


@pytest.mark.parametrize("failing", ["off", "on", "both"])
def test_a_listener_goes_on_where_its_own_watch_fails(
    failing: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No descriptor for a connection, and then no room in the poller for the change."""
    got: list[socket.socket] = []
    with Loop("epoll") as loop:
        sock = socket.create_server(("127.0.0.1", 0))
        listener = Listener(sock, lambda connection, _: got.append(connection), loop)
        refusals = [errno.EMFILE]
        real_watch = Listener.watch_read
        left = {True: failing != "off", False: failing != "on"}

        def accept(sock: socket.socket) -> tuple[socket.socket, object]:
            if refusals:
                raise OSError(refusals.pop(), "no descriptor")
            return sock.accept()

        def watch_read(self: Listener, on: bool) -> None:
            if left[on]:
                left[on] = False
                raise OSError(errno.ENOSPC, "no room")
            real_watch(self, on)

        monkeypatch.setattr("danga_raw.listener.libc.accept", accept)
        monkeypatch.setattr(Listener, "watch_read", watch_read)
        monkeypatch.setattr("danga_raw.listener.PAUSE", 0.01)
        with connected(sock):
            loop.set_post_loop_callback(lambda *_: not got)
            loop.add_timer(PATIENCE, loop.stop)
            loop.run()
            assert len(got) == 1 and not listener.closed
            got[0].close()
        listener.close()


def test_a_listener_that_cannot_watch_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(self: Listener, on: bool) -> None:
        raise OSError(errno.ENOSPC, "no room")

    with Loop("epoll") as loop, socket.create_server(("127.0.0.1", 0)) as sock:
        with monkeypatch.context() as patch:
            patch.setattr(Listener, "watch_read", refuse)
            with pytest.raises(OSError, match="no room"):
                Listener(sock, lambda *_: None, loop)
        turn(loop)
        assert loop.watched_sockets == 0 and sock.fileno() >= 0
        Listener(sock, lambda *_: None, loop).steal_socket()
