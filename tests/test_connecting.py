"""`Socket.connect`: the outcome is reported once, whatever it is and however early it is known."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from danga_raw import Loop, Socket
from danga_raw._libc import libc
from danga_raw._poll import POLLOUT
from danga_raw.trace import Trace
from danga_raw.types import SocketAddress
from tests.clients import PATIENCE, read_to_end

BACKENDS = ["epoll", "poll"]


@pytest.fixture(params=BACKENDS)
def loop(request: pytest.FixtureRequest) -> Iterator[Loop]:
    with Loop(request.param) as loop:
        loop.add_timer(PATIENCE, loop.stop)
        yield loop


class Client(Socket):
    """Records its events."""

    def __init__(self, sock: socket.socket, loop: Loop, ends: bool = True) -> None:
        super().__init__(sock, loop)
        self.told: list[object] = []
        self.ends = ends

    def event_connect(self, error: OSError | None) -> None:
        self.told.append(None if error is None else (type(error), error.errno))
        if self.ends:
            self.loop.stop()

    def event_read(self) -> None:
        self.told.append("read")
        if self.read(65536) is None:
            self.close("end")
            self.loop.stop()

    def event_err(self) -> None:
        self.told.append("err")
        self.close("error")

    def event_hup(self) -> None:
        self.told.append("hup")
        self.event_read()


def turn(loop: Loop) -> None:
    loop.set_loop_timeout(0)
    loop.set_post_loop_callback(lambda *_: False)
    loop.run()
    loop.set_post_loop_callback(None)
    loop.set_loop_timeout(-1)


def full_listener() -> tuple[socket.socket, list[socket.socket]]:
    """A listener with a full queue, so that the next connect has to wait, and what fills it."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=0)
    fillers = []
    for _ in range(8):
        filler = socket.socket()
        filler.setblocking(False)
        filler.connect_ex(listener.getsockname())
        fillers.append(filler)
    return listener, fillers


def test_blocked_write_while_connecting_is_followed_by_event_write(loop: Loop) -> None:
    class Resumes(Client):
        def event_write(self) -> None:
            self.told.append(("write", self.write(None)))
            self.loop.stop()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = Resumes.connect(listener.getsockname(), loop, ends=False)
        assert client.write(b"kept back") is False
        loop.run()
        assert client.told == [None, ("write", True)]
        with listener.accept()[0] as there:
            assert there.recv(100) == b"kept back"
        client.close()
        turn(loop)


def test_overridden_methods_are_not_called_for_the_outcome(loop: Loop) -> None:
    class Texts(Client):
        said: list[object]

        def write(self, data: object) -> bool:
            self.said.append(data)
            return super().write(str(data).encode())

        def watch_write(self, on: bool) -> None:
            self.said.append(on)  # and watches for nothing

        def event_write(self) -> None:
            super().write(None)

    Texts.said = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = Texts.connect(listener.getsockname(), loop)
        loop.run()
        assert client.told == [None] and not client.closed and Texts.said == []
        accepted, _ = listener.accept()
        with accepted, Trace() as calls:
            assert client.write("hello") is True
            assert accepted.recv(10) == b"hello"
        assert [call.name for call in calls] == ["write"]
        client.close()


@pytest.mark.parametrize("when", ["in the constructor", "meanwhile", "when told"])
@pytest.mark.parametrize("writes", [False, True], ids=["silent", "writes"])
def test_write_interest_of_the_user_outlives_the_connect(
    loop: Loop, when: str, writes: bool
) -> None:
    class Watches(Client):
        def __init__(self, sock: socket.socket, loop: Loop) -> None:
            super().__init__(sock, loop, ends=False)
            if when == "in the constructor":
                self.watch_write(True)

        def event_connect(self, error: OSError | None) -> None:
            super().event_connect(error)
            if when == "when told":
                self.watch_write(True)

        def event_write(self) -> None:
            self.told.append(("write", self.write(None)))
            if len(self.told) == 3:
                self.loop.stop()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = Watches.connect(listener.getsockname(), loop)
        if when == "meanwhile":
            client.watch_write(True)
        if writes:
            client.write(b"written")
        loop.run()
        assert client.told == [None, ("write", True), ("write", True)]
        assert client.event_watch & 4
        client.watch_write(False)
        turn(loop)
        assert len(client.told) == 3
        client.close()


@pytest.mark.parametrize("way", ["once", "on and off"])
@pytest.mark.parametrize("says", [False, True], ids=["silent", "says something"])
def test_dropping_write_interest_does_not_lose_the_outcome(
    loop: Loop, says: bool, way: str
) -> None:
    """Its watch is needed for the outcome, and ends with it. Other events come afterwards."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = Client.connect(listener.getsockname(), loop, ends=not says)
        client.watch_read(True)
        if way == "on and off":
            client.watch_write(True)
        client.watch_write(False)
        connection = listener.accept()[0]
        if says:
            connection.sendall(b"x")
            connection.close()
        loop.run()
        assert client.told[:2] == ([None, "read"] if says else [None])
        assert not client.event_watch & 4
        client.close()
        connection.close()


@pytest.mark.parametrize("way", ["pushed back", "writer function"])
def test_nothing_is_written_before_the_outcome_is_known(loop: Loop, way: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = Client.connect(listener.getsockname(), loop)
        if way == "pushed back":
            client.push_back_read(b"piece")
            assert client.read(10) == b"piece"
        else:
            client.set_writer_func(lambda data, count, offset: count)
            client.set_writer_func(None)
        with Trace() as calls:
            assert client.write(b"x") is False
        assert [call.name for call in calls] == []
        loop.run()
        assert client.told == [None]
        client.close()


@pytest.mark.parametrize("profiling", [False, True], ids=["plain", "profiling"])
def test_success_is_reported_and_earlier_writes_are_sent(loop: Loop, profiling: bool) -> None:
    if profiling:
        loop.enable_profiling()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = Client.connect(listener.getsockname(), loop)
        client.write(b"first ")
        client.write(b"second")
        assert client.told == []
        loop.run()
        assert client.told == [None]
        with listener.accept()[0] as there:
            turn(loop)
            assert not client.write_buf and not client.event_watch & 4
            client.close()
            turn(loop)
            assert read_to_end(there) == b"first second"
        assert client.told == [None]


@pytest.mark.parametrize("family", ["::1", "unix"])
def test_connect_works_with_other_address_families(loop: Loop, family: str, tmp_path: Path) -> None:
    address: SocketAddress
    if family == "unix":
        listener = socket.socket(socket.AF_UNIX)
        address = str(tmp_path / "door")
        listener.bind(address)
        listener.listen()
    else:
        try:
            listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
        except OSError:
            pytest.skip("no IPv6 here")
        address = listener.getsockname()
    with listener:
        client = Client.connect(address, loop)
        loop.run()
        assert client.told == [None]
        client.close()


@pytest.fixture
def refused() -> Iterator[SocketAddress]:
    """An address where nobody listens, and nobody can start to, as the port is taken."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()


@pytest.mark.parametrize("way", ["refused", "unreachable", "missing"])
def test_failure_is_reported_once_with_its_reason_and_closes(
    loop: Loop, way: str, refused: SocketAddress, tmp_path: Path
) -> None:
    addresses: dict[str, tuple[SocketAddress, type[OSError], set[int]]] = {
        "refused": (refused, ConnectionRefusedError, {errno.ECONNREFUSED}),
        # TCP can't broadcast, and the kernel says so at once.
        "unreachable": (("255.255.255.255", 9), OSError, {errno.EACCES, errno.ENETUNREACH}),
        "missing": (str(tmp_path / "none"), FileNotFoundError, {errno.ENOENT}),
    }
    address, kind, numbers = addresses[way]
    client = Client.connect(address, loop)
    assert client.told == [], "told from the loop, and not before connect has returned"
    loop.run()
    (told,) = client.told
    assert isinstance(told, tuple) and issubclass(told[0], kind) and told[1] in numbers
    assert client.closed
    turn(loop)
    assert len(client.told) == 1 and loop.watched_sockets == 0


def test_immediate_failure_is_not_mistaken_for_a_connection(loop: Loop, tmp_path: Path) -> None:
    """Linux reports a hang-up without an error for a socket that was never connected."""
    made: list[Client] = []
    loop.call_soon(lambda: made.append(Client.connect(str(tmp_path / "nobody"), loop)))
    loop.run()
    turn(loop)
    assert made[0].told == [(FileNotFoundError, errno.ENOENT)] and made[0].closed


def test_failure_that_is_known_at_once_is_not_waited_for(loop: Loop, tmp_path: Path) -> None:
    """Not every kernel reports an event for a socket that was never connected."""
    client = Client.connect(str(tmp_path / "nobody"), loop, timeout=PATIENCE)
    assert not client.event_watch & POLLOUT and waiting_timers(loop) == 1  # that of the fixture
    turn(loop)
    assert client.told == [(FileNotFoundError, errno.ENOENT)]


@pytest.mark.parametrize("way", ["refused", "missing"])
def test_failed_object_may_write_and_run_the_loop_before_it_is_closed(
    loop: Loop, way: str, refused: SocketAddress, tmp_path: Path
) -> None:
    reasons: list[str | None] = []

    class Falls(Client):
        def event_connect(self, error: OSError | None) -> None:
            super().event_connect(error)
            self.write(b"x")
            self.loop.run()  # A turn, as that around it.

        def close(self, reason: str | None = None) -> None:
            reasons.append(reason)
            super().close(reason)

    client = Falls.connect(refused if way == "refused" else str(tmp_path / "none"), loop, False)
    while not client.closed:
        turn(loop)
    assert len(client.told) == 1 and reasons == ["not connected"]


def test_connect_outcome_is_reported_even_after_write_none(
    loop: Loop, refused: SocketAddress
) -> None:
    """A write(2) would get the error, and nobody could ask for it again."""
    client = Client.connect(refused, loop)
    client.write(b"x")
    assert not client.write(None) and not client.closed
    loop.run()
    assert client.told == [(ConnectionRefusedError, errno.ECONNREFUSED)]


def test_connect_outcome_is_reported_while_profiling(loop: Loop) -> None:
    loop.enable_profiling()
    listener, fillers = full_listener()
    pending = Client.connect(listener.getsockname(), loop, False)
    near, far = socket.socketpair()
    near.setblocking(False)
    other = Client(near, loop, False)
    other.watch_read(True)
    far.sendall(b"x")
    turn(loop)
    assert other.told == ["read"] and pending.told == []
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = Client.connect(server.getsockname(), loop)
        loop.run()
        assert client.told == [None] and "Client-write" not in loop.profiling_data
    for each in (pending, other, client):
        each.close()
    for end in (far, listener, *fillers):
        end.close()


def test_timeout_is_reported_and_closes(loop: Loop) -> None:
    listener, fillers = full_listener()
    client = Client.connect(listener.getsockname(), loop, timeout=0.05)
    loop.run()
    assert client.told == [(TimeoutError, errno.ETIMEDOUT)] and client.closed
    for each in (listener, *fillers):
        each.close()


def waiting_timers(loop: Loop) -> int:
    return sum(timer.callback is not None for _, _, timer in loop._timers.heap)


def test_timeout_is_dropped_once_connected(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(libc, "clock_gettime", lambda clock: now)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = Client.connect(listener.getsockname(), loop, timeout=5)
        loop.run()
        client.ends = False
        now += 10
        loop.add_timer(0, loop.stop)
        loop.run()
        assert client.told == [None] and not client.closed
        assert waiting_timers(loop) == 1  # that of the fixture
        client.close()


def test_object_closed_while_connecting_gets_no_outcome(loop: Loop) -> None:
    listener, fillers = full_listener()
    client = Client.connect(listener.getsockname(), loop, timeout=0.02)
    client.close("changed my mind")
    assert waiting_timers(loop) == 1  # that of the fixture
    loop.add_timer(0.06, loop.stop)
    loop.run()
    assert client.told == []
    for each in (listener, *fillers):
        each.close()


@pytest.mark.parametrize("address", [("localhost", 80), ("", 80), ("127.0.0.1.example", 80)])
def test_host_name_is_rejected_and_not_looked_up(loop: Loop, address: tuple[str, int]) -> None:
    before = os.listdir("/proc/self/fd")
    with pytest.raises(ValueError, match="look it up first"):
        Client.connect(address, loop)
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize(
    ("address", "named"),
    [
        (("127.0.0.1", 70000), "70000"),
        (("127.0.0.1", 65536), "65536"),
        (("127.0.0.1", -1), "-1"),
        (("::1", 1 << 40), str(1 << 40)),
        (("::1", 80, 1 << 20, 0), str(1 << 20)),
        (("::1", 80, 0, -1), "-1"),
        (("127.0.0.1", 80, 0, 0), "an IPv4 address"),
        ("x" * 108, "x" * 108),
        (b"\0" + b"x" * 108, "x" * 108),
        ("there\0not", "there.*not"),
        (("127.0.0.1\0", 80), "null"),
        ("\ud800", "surrogate"),
    ],
)
def test_impossible_address_raises_a_value_error_that_names_it_and_opens_nothing(
    loop: Loop, address: SocketAddress, named: str
) -> None:
    before = os.listdir("/proc/self/fd")
    with Trace() as calls, pytest.raises(ValueError, match=named):
        Client.connect(address, loop)
    assert list(calls) == [] and os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("name", ["x" * 107, b"\0" + b"x" * 107, "\0a\0b"])
def test_longest_path_and_abstract_name_are_valid_addresses(
    loop: Loop, name: SocketAddress
) -> None:
    with Client.connect(name, loop).sock or socket.socket() as sock:
        assert sock.family == socket.AF_UNIX
        loop.run()


@pytest.mark.parametrize("path", ["localhost", b"localhost:80"])
def test_error_for_a_path_that_nobody_listens_on_names_path_and_reason(
    loop: Loop, path: str | bytes
) -> None:
    said: list[str] = []

    class Lost(Client):
        def event_connect(self, error: OSError | None) -> None:
            said.append(str(error))
            self.loop.stop()

    Lost.connect(path, loop)
    loop.run()
    assert said == [f"[Errno {errno.ENOENT}] {os.strerror(errno.ENOENT)}: {path!r}"]


def test_exception_from_a_signal_handler_is_not_an_outcome(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(sock: socket.socket, address: object) -> None:
        raise TimeoutError("a handler's")

    monkeypatch.setattr("danga_raw._connecting.libc.connect", interrupted)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(TimeoutError, match="a handler's"):
        Client.connect(("127.0.0.1", 9), loop)
    assert os.listdir("/proc/self/fd") == before and loop.watched_sockets == 0


@pytest.mark.parametrize("address", [None, 80, ("127.0.0.1",), ("127.0.0.1", "80")])
def test_connect_rejects_what_is_not_an_address(loop: Loop, address: object) -> None:
    with pytest.raises(TypeError, match="an address is"):
        Client.connect(address, loop)  # type: ignore[arg-type]  # what is asked here


def test_raising_constructor_leaves_nothing_behind(loop: Loop) -> None:
    class Broken(Client):
        def __init__(self, sock: socket.socket, loop: Loop) -> None:
            raise RuntimeError("on purpose")

    before = os.listdir("/proc/self/fd")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with pytest.raises(RuntimeError, match="on purpose"):
            Broken.connect(listener.getsockname(), loop)
    assert os.listdir("/proc/self/fd") == before and loop.watched_sockets == 0


def test_failing_close_does_not_mask_the_exception_of_a_constructor(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Client):
        def __init__(self, sock: socket.socket, loop: Loop) -> None:
            raise RuntimeError("on purpose")

    def close(fd: int) -> None:
        os.close(fd)
        raise OSError(errno.EIO, "on purpose")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        before = os.listdir("/proc/self/fd")
        with monkeypatch.context() as patched:
            patched.setattr(libc, "close", close)
            with pytest.raises(RuntimeError, match="on purpose"):
                Broken.connect(listener.getsockname(), loop)
        assert os.listdir("/proc/self/fd") == before
    assert "close(fd" in caplog.text


def test_object_reopened_when_refused_stays_open(loop: Loop) -> None:
    here, there = socket.socketpair()
    here.setblocking(False)

    class Falls(Client):
        def event_connect(self, error: OSError | None) -> None:
            super().event_connect(error)
            self.close("refused")
            Socket.__init__(self, here, self.loop)
            self.watch_read(True)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
    client = Falls.connect(address, loop)
    loop.run()
    assert not client.closed and loop.descriptor_map == {here.fileno(): client}
    there.close()
    loop.run()
    assert client.told == [(ConnectionRefusedError, errno.ECONNREFUSED), "read"]


def test_exception_in_event_connect_is_treated_like_that_of_any_handler(loop: Loop) -> None:
    class Broken(Client):
        def event_connect(self, error: OSError | None) -> None:
            super().event_connect(error)
            raise RuntimeError("on purpose")

    seen: list[object] = []
    loop.on_exception = lambda obj, error: seen.append((obj, str(error)))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        client = Broken.connect(address, loop)
        loop.run()
        assert seen == [(client, "on purpose")] and client.closed
    client = Broken.connect(address, loop)  # refused at once, or a little later
    loop.run()
    assert len(seen) == 2 and client.closed
    turn(loop)
    assert loop.watched_sockets == 0


def test_data_and_end_of_file_that_arrive_with_the_connection_are_read_after_it(loop: Loop) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = Client.connect(listener.getsockname(), loop, False)
        client.watch_read(True)
        with listener.accept()[0] as there:
            there.sendall(b"welcome")
        loop.run()
        assert client.told[0] is None and client.told[1] == "read"
        assert client.told.count(None) == 1 and client.closed


@pytest.mark.parametrize("when", ["before", "behind"])
def test_object_whose_constructor_raises_is_no_longer_watched(loop: Loop, when: str) -> None:
    class Broken(Client):
        def __init__(self, sock: socket.socket, loop: Loop) -> None:
            if when == "behind":
                super().__init__(sock, loop)
            raise RuntimeError("on purpose")

        def close(self, reason: str | None = None) -> None:
            raise AssertionError("nobody has made it")

    turn(loop)  # Which opens the poller.
    before = os.listdir("/proc/self/fd")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with pytest.raises(RuntimeError, match="on purpose"):
            Broken.connect(listener.getsockname(), loop)
        turn(loop)
        assert loop.watched_sockets == 0
    assert os.listdir("/proc/self/fd") == before


def test_constructor_may_close_the_object(loop: Loop) -> None:
    class Closed(Client):
        def __init__(self, sock: socket.socket, loop: Loop) -> None:
            super().__init__(sock, loop)
            self.close("not wanted")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = Closed.connect(listener.getsockname(), loop, timeout=0.01)
        turn(loop)
        loop.add_timer(0.03, loop.stop)
        loop.run()
    assert client.closed and client.told == [] and loop.watched_sockets == 0


@pytest.mark.parametrize("timeout", [float("nan"), float("inf"), "1"])
def test_invalid_timeout_is_rejected_and_leaves_nothing_behind(loop: Loop, timeout: float) -> None:
    turn(loop)
    before = os.listdir("/proc/self/fd")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with pytest.raises((TypeError, ValueError)):
            Client.connect(listener.getsockname(), loop, timeout=timeout)
        turn(loop)
        assert loop.watched_sockets == 0
    assert os.listdir("/proc/self/fd") == before


def test_failing_watch_leaves_nothing_behind(loop: Loop) -> None:
    class Unwatchable(Client):
        def _watch(self, event: int, on: bool) -> None:
            raise OSError(errno.ENOSPC, "no room")

    turn(loop)
    before = os.listdir("/proc/self/fd")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with pytest.raises(OSError, match="no room"):
            Unwatchable.connect(listener.getsockname(), loop)
        turn(loop)
        assert loop.watched_sockets == 0
    assert os.listdir("/proc/self/fd") == before


def test_extra_arguments_are_passed_to_the_constructor(loop: Loop) -> None:
    class Named(Client):
        def __init__(self, sock: socket.socket, name: str, *, on: Loop) -> None:
            super().__init__(sock, on)
            self.name = name

    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = Named.connect(listener.getsockname(), "bob", on=loop)
        loop.run()
        assert client.name == "bob" and client.told == [None]
        client.close()


@pytest.mark.parametrize("way", ["connected", "refused", "missing"])
def test_writes_of_the_constructor_are_sent_first_and_do_not_affect_the_outcome(
    loop: Loop, way: str, refused: SocketAddress, tmp_path: Path
) -> None:
    class Greets(Client):
        def __init__(self, sock: socket.socket, loop: Loop) -> None:
            super().__init__(sock, loop)
            self.write(b"hello ")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        address: SocketAddress = listener.getsockname()
        if way == "refused":
            address = refused
        elif way == "missing":
            address = str(tmp_path / "none")
        client = Greets.connect(address, loop)
        client.write(b"world")
        loop.run()
        if way == "connected":
            assert client.told == [None]
            with listener.accept()[0] as there:
                turn(loop)
                client.close()
                turn(loop)
                assert read_to_end(there) == b"hello world"
        else:
            assert len(client.told) == 1 and client.told != [None] and client.closed


def test_constructor_may_use_another_handle(loop: Loop) -> None:
    class Copy(Client):
        def __init__(self, sock: socket.socket, loop: Loop) -> None:
            super().__init__(sock.dup(), loop)
            sock.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = Copy.connect(listener.getsockname(), loop)
        loop.run()
        assert client.told == [None]
        here, there = socket.socketpair()  # Which gets the number that is free now.
        here.setblocking(False)
        client.close()
        obj = Client(here, loop)
        assert obj.write(b"x") and there.recv(1) == b"x"
        obj.close()
        there.close()


def test_constructor_that_takes_another_handle_may_close_the_object(loop: Loop) -> None:
    class Closed(Client):
        def __init__(self, sock: socket.socket, loop: Loop) -> None:
            super().__init__(sock.dup(), loop)
            self.close("not wanted")
            sock.close()
            turn(loop)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = Closed.connect(listener.getsockname(), loop, timeout=PATIENCE)
        assert client.told == [] and loop._registry.connecting == {} == loop.descriptor_map


def test_constructor_that_omits_super_init_is_named_in_the_error(loop: Loop) -> None:
    class Forgetful(Client):
        def __init__(self, sock: socket.socket, loop: Loop) -> None:
            pass

    before = os.listdir("/proc/self/fd")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with pytest.raises(AttributeError, match=r"has not called super\(\)"):
            Forgetful.connect(listener.getsockname(), loop)
    assert os.listdir("/proc/self/fd") == before
