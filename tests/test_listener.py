"""A `Listener`: what it accepts, what happens meanwhile, and calls that fail."""

from __future__ import annotations

import errno
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from danga_raw import Listener, Loop, Socket
from danga_raw._libc import libc
from danga_raw.trace import Trace
from tests.clients import PATIENCE
from tests.needs import ROOT

BACKENDS = ["epoll", "poll"]


@pytest.fixture(params=BACKENDS)
def loop(request: pytest.FixtureRequest) -> Iterator[Loop]:
    with Loop(request.param) as loop:
        loop.add_timer(PATIENCE, loop.stop)
        yield loop


def turn(loop: Loop) -> None:
    loop.set_loop_timeout(0)
    loop.set_post_loop_callback(lambda *_: False)
    loop.run()
    loop.set_post_loop_callback(None)


def connected(listener: socket.socket) -> socket.socket:
    client = socket.create_connection(listener.getsockname()[:2], PATIENCE)
    return client


def test_watch_read_false_stops_accepting_within_the_batch(loop: Loop) -> None:
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
def test_server_at_its_descriptor_limit_does_not_flood_the_log(
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
        retry = listener._retry
        listener.steal_socket()
        assert retry is not None and retry.callback is None, "who has left listens again no more"


@pytest.mark.parametrize("failing", ["off", "on", "both"])
def test_listener_goes_on_if_its_own_watch_fails(
    failing: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No descriptor for a connection, and then no room in the poller for the change."""
    got: list[socket.socket] = []
    with Loop("epoll") as loop:
        sock = socket.create_server(("127.0.0.1", 0))
        listener = Listener(sock, lambda connection, _: got.append(connection), loop)
        refusals = [errno.EMFILE]
        real_watch = Socket._watch
        left = {True: failing != "off", False: failing != "on"}

        def accept(sock: socket.socket) -> tuple[socket.socket, object]:
            if refusals:
                raise OSError(refusals.pop(), "no descriptor")
            return sock.accept()

        def watch(self: Socket, event: int, on: bool) -> None:
            if left[on]:
                left[on] = False
                raise OSError(errno.ENOSPC, "no room")
            real_watch(self, event, on)

        monkeypatch.setattr("danga_raw.listener.libc.accept", accept)
        monkeypatch.setattr(Socket, "_watch", watch)
        monkeypatch.setattr("danga_raw.listener.PAUSE", 0.01)
        with connected(sock):
            loop.set_post_loop_callback(lambda *_: not got)
            loop.add_timer(PATIENCE, loop.stop)
            loop.run()
            assert len(got) == 1 and not listener.closed
            got[0].close()
        listener.close()


def test_listener_that_cannot_be_watched_leaves_nothing_behind(
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


def test_listener_accepts_all_connections_but_in_bounded_batches(loop: Loop) -> None:
    got: list[socket.socket] = []
    addresses: list[object] = []

    def accepted(connection: socket.socket, address: object) -> None:
        assert connection.gettimeout() == 0
        got.append(connection)
        addresses.append(address)

    with socket.create_server(("127.0.0.1", 0), backlog=200) as sock:
        clients = [connected(sock) for _ in range(100)]
        listener = Listener(sock, accepted, loop)
        turn(loop)
        assert len(got) == 64
        turn(loop)
        assert len(got) == 100
        assert addresses == [client.getsockname() for client in clients]
        listener.steal_socket()
    for each in clients + got:
        each.close()


@pytest.mark.parametrize("on_exception", [True, False])
def test_exception_in_accepted_closes_that_connection_only(loop: Loop, on_exception: bool) -> None:
    class Quiet(Socket):
        def event_hup(self) -> None:
            self.close("hang-up")

    raised: list[str] = []
    kept: list[Socket] = []

    def accepted(connection: socket.socket, address: object) -> None:
        made = Quiet(connection, loop) if len(raised) < 2 else None
        if len(raised) in (0, 3):
            raised.append("object")
            raise RuntimeError("on purpose")
        raised.append("kept")
        kept.append(made or Quiet(connection, loop))

    told: list[object] = []
    if on_exception:
        loop.on_exception = lambda obj, error: told.append(str(error))
    with socket.create_server(("127.0.0.1", 0)) as sock:
        clients = [connected(sock) for _ in range(4)]
        listener = Listener(sock, accepted, loop)
        for _ in range(4):
            try:
                turn(loop)
            except RuntimeError as error:
                told.append(str(error))
                loop.set_post_loop_callback(None)
        assert told == ["on purpose"] * 2
        assert not listener.closed and len(kept) == 2
        assert [client.recv(1) for client in (clients[0], clients[3])] == [b"", b""]
        for client in clients[1:3]:
            client.setblocking(False)
            with pytest.raises(BlockingIOError):
                client.recv(1)
        listener.steal_socket()
        for each in kept:
            each.close()
    for client in clients:
        client.close()


def test_failing_close_of_a_connection_does_not_affect_the_listener(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def accepted(connection: socket.socket, address: object) -> None:
        raise RuntimeError("on purpose")

    def close(fd: int) -> None:
        os.close(fd)
        raise OSError(errno.EIO, "on purpose")

    told: list[tuple[object, str]] = []
    loop.on_exception = lambda obj, error: told.append((obj, str(error)))
    with socket.create_server(("127.0.0.1", 0)) as sock:
        listener = Listener(sock, accepted, loop)
        with connected(sock) as client, monkeypatch.context() as patched:
            patched.setattr(libc, "close", close)
            turn(loop)
            assert client.recv(1) == b""
        assert told == [(None, "on purpose")] and not listener.closed
        assert "close(fd" in caplog.text
        listener.steal_socket()


def test_listener_keeps_no_unneeded_timers(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server at its limit pauses, and resumes whenever a client leaves."""
    room = True

    def accept(sock: socket.socket) -> tuple[socket.socket, object]:
        nonlocal room
        room = not room
        if not room:
            raise OSError(errno.EMFILE, "no room")
        return sock.accept()

    monkeypatch.setattr(libc, "accept", accept)
    got: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as sock:
        listener = Listener(sock, lambda connection, _: got.append(connection), loop)
        clients = [connected(sock) for _ in range(3)]
        for count in range(1, 4):
            turn(loop)  # There is no room, ...
            here, there = socket.socketpair()
            Socket(here, loop).close()
            there.close()
            turn(loop)  # ... something is closed, ...
            while len(got) < count:
                turn(loop)  # ... and one is accepted.
        live = [timer for _, _, timer in loop._timers.heap if timer.callback is not None]
        assert len(live) <= 2  # This test's timer, and the last pause's.
        listener.steal_socket()
    for each in clients + got:
        each.close()


def test_lack_of_descriptors_is_reported_once_however_long_it_lasts(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    refusals: list[int] = []

    def accept(sock: socket.socket) -> tuple[socket.socket, object]:
        if refusals:
            raise OSError(refusals.pop(), "no room")
        return sock.accept()

    monkeypatch.setattr(libc, "accept", accept)
    monkeypatch.setattr("danga_raw.listener.PAUSE", 0)
    caplog.set_level(logging.DEBUG, "danga_raw")
    got: list[socket.socket] = []
    clients: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as sock:
        listener = Listener(sock, lambda connection, _: got.append(connection), loop)
        for count in (1, 2):
            refusals += [errno.EMFILE] * 3
            clients.append(connected(sock))
            while len(got) < count:
                turn(loop)
            assert caplog.text.count("no room") == count
        listener.steal_socket()
    for each in clients + got:
        each.close()


@pytest.mark.parametrize(
    "name", "ECONNABORTED EPROTO ENETDOWN EHOSTUNREACH EPERM ETIMEDOUT".split()
)
def test_accept_errors_of_a_single_connection_are_skipped(
    loop: Loop, name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    got: list[socket.socket] = []
    failures = [getattr(errno, name)] * 3

    def accept(sock: socket.socket) -> tuple[socket.socket, object]:
        if failures:
            raise OSError(failures.pop(), "gone again")
        return sock.accept()

    monkeypatch.setattr("danga_raw.listener.libc.accept", accept)
    with socket.create_server(("127.0.0.1", 0)) as sock, connected(sock):
        listener = Listener(sock, lambda connection, _: got.append(connection), loop)
        turn(loop)
        assert len(got) == 1 and caplog.records == []
        listener.steal_socket()
        got[0].close()


def refused_once(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let accept(2) fail once for lack of a descriptor; the result is empty once it has."""
    refusals = [errno.EMFILE]

    def accept(sock: socket.socket) -> tuple[socket.socket, object]:
        if refusals:
            raise OSError(refusals.pop(), "no room")
        return sock.accept()

    monkeypatch.setattr("danga_raw.listener.libc.accept", accept)
    return refusals


@pytest.mark.parametrize("way", ["another closes", "the pause is over"])
def test_watch_read_false_during_a_pause_is_obeyed(
    loop: Loop, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    got: list[socket.socket] = []
    refusals = refused_once(monkeypatch)
    monkeypatch.setattr("danga_raw.listener.PAUSE", PATIENCE if way == "another closes" else 0)
    here, there = socket.socketpair()
    here.setblocking(False)
    other = Socket(here, loop)
    with there, socket.create_server(("127.0.0.1", 0)) as sock, connected(sock):
        listener = Listener(sock, lambda connection, _: got.append(connection), loop)
        turn(loop)
        listener.watch_read(False)
        other.close()
        for _ in range(3):
            turn(loop)
        assert not refusals and not got and not listener.event_watch & 1
        listener.watch_read(True)
        turn(loop)
        assert len(got) == 1
        listener.steal_socket()
        got[0].close()


def test_write_interest_does_not_affect_a_pause(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It doesn't affect when the listener resumes."""
    got: list[socket.socket] = []
    refusals = refused_once(monkeypatch)
    monkeypatch.setattr("danga_raw.listener.PAUSE", 0)
    with socket.create_server(("127.0.0.1", 0)) as sock, connected(sock):
        listener = Listener(sock, lambda connection, _: got.append(connection), loop)
        turn(loop)
        assert not refusals and not got
        listener.watch_write(True)
        listener.watch_write(False)
        turn(loop)
        assert len(got) == 1
        listener.steal_socket()
        got[0].close()


@pytest.mark.parametrize("name", ["EMFILE", "ENFILE", "ENOBUFS", "ENOMEM"])
def test_listener_pauses_without_free_descriptors_and_resumes_when_one_is_freed(
    loop: Loop, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    got: list[socket.socket] = []
    room, tried = False, 0

    def accept(sock: socket.socket) -> tuple[socket.socket, object]:
        nonlocal tried
        tried += 1
        if not room:
            raise OSError(getattr(errno, name), "no room")
        return sock.accept()

    class Other(Socket):
        pass

    monkeypatch.setattr("danga_raw.listener.libc.accept", accept)
    monkeypatch.setattr("danga_raw.listener.PAUSE", PATIENCE)
    here, there = socket.socketpair()
    here.setblocking(False)
    other = Other(here, loop)
    with socket.create_server(("127.0.0.1", 0)) as sock, connected(sock):
        listener = Listener(sock, lambda connection, _: got.append(connection), loop)
        for _ in range(5):
            turn(loop)
        assert tried == 1 and not got
        room = True
        other.close()
        turn(loop)
        turn(loop)
        assert len(got) == 1
        listener.steal_socket()
        got[0].close()
    there.close()


def test_socket_that_cannot_accept_is_reported_and_does_not_spin(
    loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    here, there = socket.socketpair()
    listener = Listener(here, lambda *_: None, loop)
    there.send(b"a connected socket never accepts")
    turn(loop)
    assert "accept" in caplog.text
    assert not listener.closed and not listener.event_watch & 1
    for end in (here, there):
        end.close()


def test_listener_that_is_shut_down_is_closed(loop: Loop) -> None:
    sock = socket.create_server(("127.0.0.1", 0))
    listener = Listener(sock, lambda *_: None, loop)
    sock.shutdown(socket.SHUT_RDWR)
    turn(loop)
    assert listener.closed and loop.watched_sockets == 0


@pytest.mark.parametrize("name", "EBADF EINVAL ENOTSOCK EFAULT EOPNOTSUPP".split())
def test_single_failing_accept_does_not_close_the_listener(
    loop: Loop, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    got: list[socket.socket] = []
    failures = [getattr(errno, name)]

    def accept(sock: socket.socket) -> tuple[socket.socket, object]:
        if failures:
            raise OSError(failures.pop(), "said once")
        return sock.accept()

    monkeypatch.setattr("danga_raw.listener.libc.accept", accept)
    monkeypatch.setattr("danga_raw.listener.PAUSE", 0.01)
    with socket.create_server(("127.0.0.1", 0)) as sock, connected(sock):
        listener = Listener(sock, lambda connection, _: got.append(connection), loop)
        loop.set_post_loop_callback(lambda *_: not got)
        loop.run()
        assert len(got) == 1 and not listener.closed
        listener.steal_socket()
        got[0].close()


def test_accepted_must_be_callable(loop: Loop) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        with pytest.raises(TypeError, match="accepted is a callable, not None"):
            Listener(sock, None, loop)  # type: ignore[arg-type]  # what is asked here
    assert loop.watched_sockets == 0


def test_wrapper_that_delegates_to_a_socket_is_accepted(loop: Loop) -> None:
    class Wrapper:
        def __init__(self, sock: socket.socket) -> None:
            self.sock = sock

        def __getattr__(self, name: str) -> object:
            return getattr(self.sock, name)

    got: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as sock:
        Listener(
            Wrapper(sock),  # type: ignore[arg-type]  # as good at run time
            lambda connection, _: got.append(connection),
            loop,
        )
        with connected(sock):
            turn(loop)
            (connection,) = got
            connection.close()


def test_tls_socket_is_rejected(loop: Loop) -> None:
    ssl = pytest.importorskip("ssl")
    with socket.create_server(("127.0.0.1", 0)) as sock:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with context.wrap_socket(sock, server_side=True) as wrapped:
            with pytest.raises(TypeError, match="wrap what it accepts"):
                Listener(wrapped, lambda *_: None, loop)
    assert loop.watched_sockets == 0


def test_listener_works_on_a_unix_socket(loop: Loop, tmp_path: Path) -> None:
    got: list[socket.socket] = []
    with socket.socket(socket.AF_UNIX) as sock, socket.socket(socket.AF_UNIX) as client:
        sock.bind(str(tmp_path / "door"))
        sock.listen()
        listener = Listener(sock, lambda connection, _: got.append(connection), loop)
        client.connect(str(tmp_path / "door"))
        turn(loop)
        got[0].send(b"hello")
        assert client.recv(5) == b"hello"
        got[0].close()
        listener.steal_socket()


def test_listener_works_on_ipv6_and_passes_the_address_unchanged(loop: Loop) -> None:
    got: list[tuple[socket.socket, object]] = []
    try:
        sock = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("no IPv6 here")
    with sock, connected(sock) as client:
        listener = Listener(sock, lambda *both: got.append(both), loop)
        turn(loop)
        ((connection, address),) = got
        assert address == client.getsockname() and connection.family == socket.AF_INET6
        connection.close()
        listener.steal_socket()


def test_accepted_may_close_the_listener(loop: Loop) -> None:
    got: list[socket.socket] = []

    def accepted(connection: socket.socket, address: object) -> None:
        got.append(connection)
        listener.close("enough")

    sock = socket.create_server(("127.0.0.1", 0))
    clients = [connected(sock) for _ in range(3)]
    listener = Listener(sock, accepted, loop)
    turn(loop)
    assert len(got) == 1 and listener.closed and loop.watched_sockets == 0
    got[0].send(b"hello")
    assert clients[0].recv(5) == b"hello"
    for each in clients + got:
        each.close()


@pytest.mark.parametrize("on_exception", [True, False])
def test_connection_wrapped_and_closed_by_accepted_is_closed_once(
    loop: Loop, on_exception: bool, caplog: pytest.LogCaptureFixture
) -> None:
    kept: list[socket.socket] = []

    def accepted(connection: socket.socket, address: object) -> None:
        Socket(connection, loop).close("not wanted")
        kept.append(connection)
        raise RuntimeError("on purpose")

    told: list[tuple[Socket | None, str]] = []
    if on_exception:
        loop.on_exception = lambda obj, error: told.append((obj, str(error)))
    with socket.create_server(("127.0.0.1", 0)) as sock, connected(sock) as client:
        listener = Listener(sock, accepted, loop)
        with Trace() as calls:
            try:
                turn(loop)
            except RuntimeError as error:
                told.append((None, str(error)))
                loop.set_post_loop_callback(None)
            turn(loop)
        assert told == [(None, "on purpose")]
        assert [call.name for call in calls].count("close") == 1
        assert client.recv(1) == b"" and kept[0].fileno() == -1
        assert not listener.closed and loop.watched_sockets == 1 and caplog.records == []
        listener.steal_socket()


def test_on_exception_receives_the_object_that_accepted_made(loop: Loop) -> None:
    made: list[Socket] = []

    def accepted(connection: socket.socket, address: object) -> None:
        made.append(Socket(connection, loop))
        raise RuntimeError("on purpose")

    told: list[Socket | None] = []
    loop.on_exception = lambda obj, error: told.append(obj)
    with socket.create_server(("127.0.0.1", 0)) as sock, connected(sock) as client:
        listener = Listener(sock, accepted, loop)
        turn(loop)
        assert told == made and made[0].closed and client.recv(1) == b""
        listener.steal_socket()


@pytest.mark.parametrize("wrapped", [True, False])
def test_interrupt_in_accepted_leaves_no_connection_open(loop: Loop, wrapped: bool) -> None:
    made: list[Socket] = []

    def accepted(connection: socket.socket, address: object) -> None:
        if wrapped:
            made.append(Socket(connection, loop))
        raise KeyboardInterrupt

    loop.on_exception = lambda obj, error: None
    with socket.create_server(("127.0.0.1", 0)) as sock, connected(sock) as client:
        listener = Listener(sock, accepted, loop)
        with pytest.raises(KeyboardInterrupt):
            turn(loop)
        assert client.recv(1) == b"" and not listener.closed
        assert all(each.closed for each in made) and loop.watched_sockets == 1
        listener.steal_socket()


FULL = """
import os, resource, socket, sys
import danga_raw.listener
from danga_raw import Listener, Loop, Socket
backend, room, pause, held = sys.argv[1], *map(float, sys.argv[2:])
danga_raw.listener.PAUSE = pause
turns = 0

class Echo(Socket):
    def event_read(self):
        data = self.read(100)
        if data is None:
            self.close("end")
        else:
            self.write(data)
    event_err = event_hup = event_read

def accepted(connection, address):
    Echo(connection, loop).watch_read(True)

def count(*_):
    global turns
    turns += 1
    return not ended

ended = []
with Loop(backend) as loop:
    sock = socket.create_server(("127.0.0.1", 0), backlog=100)
    Listener(sock, accepted, loop)
    loop.add_other_fds({0: lambda state: ended.append(state)})
    loop.set_loop_timeout(0)
    loop.set_post_loop_callback(lambda *_: False)
    loop.run()
    loop.set_loop_timeout(-1)
    free = os.dup(0)
    os.close(free)
    # All but `room` descriptors are held, by nobody whom the loop knows.
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + int(room) + int(held),) * 2)
    others = [os.dup(0) for _ in range(int(held))]
    if others:
        loop.add_timer(0.1, lambda: [os.close(fd) for fd in others])
    loop.set_post_loop_callback(count)
    print(sock.getsockname()[1], flush=True)
    loop.run()
    sock.close()
print(turns)
"""


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("room", "pause", "held"),
    [(3, 1000.0, 0), (0, 0.02, 2)],
    ids=["when one closes", "after the pause"],
)
def test_server_out_of_descriptors_eventually_serves_every_client(
    backend: str, room: int, pause: float, held: int
) -> None:
    command = [sys.executable, "-c", FULL, backend, str(room), str(pause), str(held)]
    clients = []
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        try:
            assert process.stdin and process.stdout and process.stderr
            port = int(process.stdout.readline())
            for _ in range(20):
                clients.append(socket.create_connection(("127.0.0.1", port), PATIENCE))
                clients[-1].send(b"x")
            for client in clients:
                assert client.recv(1) == b"x"
                client.close()
            process.stdin.close()
            turns = int(process.stdout.read())
            assert process.wait(PATIENCE) == 0 and process.stderr.read() == b""
            assert turns < 300, "it has tried again and again"
        finally:
            process.kill()
