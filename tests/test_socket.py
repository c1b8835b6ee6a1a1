"""The object itself: its attributes, corking, addresses, and its descriptions of itself."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from ctypes import c_int
from errno import (
    EBADF,
    ECONNABORTED,
    ECONNREFUSED,
    ECONNRESET,
    EHOSTDOWN,
    EHOSTUNREACH,
    EINVAL,
    EIO,
    ENETDOWN,
    ENETRESET,
    ENETUNREACH,
    ENOPROTOOPT,
    ENOTCONN,
    ENOTSOCK,
    EOPNOTSUPP,
    EPIPE,
    ESHUTDOWN,
    ETIMEDOUT,
    errorcode,
)
from pathlib import Path
from typing import Any

import pytest

from danga_raw import Loop, Socket, default_loop
from danga_raw._libc import libc
from danga_raw.types import AnySocket
from tests.world import ERR, HUP, IN, OUT, AnyHandle, Recorder, World, drain, only, real_only

ROOT = Path(__file__).parents[1]

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's TCP_CORK")


def test_new_object_starts_in_the_same_state_as_the_originals(world: World) -> None:
    one, _ = world.socketpair()
    fd = one.fileno()
    with world.calls() as calls:
        obj = Socket(one, world.loop)
    assert calls == [("register", fd, ERR | HUP | 32)]
    assert obj.sock is one and obj.fd == fd and obj.loop is world.loop
    assert obj.closed is False and obj.corked is False
    assert obj.event_watch == ERR | HUP | 32
    assert not obj.write_buf and obj.write_buf_offset == 0 and obj.write_buf_size == 0
    assert obj.write_set_watch is False and not obj.read_push_back
    assert obj.writer_func is None
    assert obj.peer_ip is None and obj.peer_port is None
    assert obj.local_ip is None and obj.local_port is None
    assert world.loop.descriptor_map == {fd: obj} and world.loop.watched_sockets == 1


def test_object_joins_the_default_loop_unless_given_another(world: World) -> None:
    loop = world.default_loop()
    assert default_loop() is loop
    one, two = world.socketpair()
    assert Socket(one).loop is loop
    other = world.new_loop()
    assert Socket(two, loop=other).loop is other
    assert loop.watched_sockets == other.watched_sockets == 1


def test_subclass_with_slots_has_no_dict(world: World) -> None:
    class Slotted(Socket[AnyHandle]):
        __slots__ = ("mine",)
        mine: int

    obj = Slotted(world.socketpair()[0], world.loop)
    obj.mine = 1
    assert obj.mine == 1 and not hasattr(obj, "__dict__")
    with pytest.raises(AttributeError):
        obj.other = 2  # type: ignore[attr-defined]


def test_subclass_may_define_its_own_init(world: World) -> None:
    class Mine(Socket[AnyHandle]):
        def __init__(self, sock: AnyHandle, loop: Loop, name: str) -> None:
            super().__init__(sock, loop)
            self.name = name

    assert Mine(world.socketpair()[0], world.loop, "x").name == "x"


def test_subclass_may_use_private_names_of_its_own(world: World) -> None:
    """Such as `self._queue`, which once replaced a method of `Socket`."""

    class Chat(Recorder):
        def __init__(self, sock: AnyHandle) -> None:
            super().__init__(sock, world.loop)
            names = [
                name.partition("__")[2] for name in dir(Socket) if name.startswith("_Socket__")
            ]
            assert {"queue", "registry", "direct"} <= {*names}
            for name in names:
                setattr(self, "_" + name, [])

    one, two = world.socketpair()
    obj = Chat(one)
    while obj.write(bytes(65536)):
        pass
    obj.push_back_read(b"x")
    obj.watch_read(True)
    world.turn()
    assert obj.got == b"x" and obj.write_buf
    while obj.write_buf:
        drain(two)
        world.turn()
    assert obj.event_watch & (IN | OUT) == IN and obj.as_string()
    two.close()
    world.until(lambda: obj.closed)


def test_objects_have_separate_queues(world: World) -> None:
    a, b = (Recorder(thing, world.loop) for thing in world.socketpair())
    a.push_back_read(b"x")
    while a.write(bytes(65536)):
        pass
    assert not b.read_push_back and not b.write_buf and b.write_buf_size == 0
    c = Recorder(world.socketpair()[0], world.loop)
    assert not c.read_push_back and not c.write_buf


def test_event_write_writes_queued_data(world: World) -> None:
    one, two = world.socketpair()
    obj = Socket(one, world.loop)

    def blocks(data: object, count: int, offset: int) -> int:
        raise BlockingIOError

    obj.set_writer_func(blocks)
    obj.write(b"queued")
    obj.set_writer_func(None)
    obj.event_write()
    assert drain(two) == b"queued"


# --- corking --------------------------------------------------------------------------------------


@real_only
@linux_only
def test_tcp_cork_sets_and_clears_the_option_once(world: World) -> None:
    one, _ = world.socketpair(tcp=True)
    assert isinstance(one, socket.socket)

    def option() -> int:
        assert isinstance(one, socket.socket)
        return one.getsockopt(socket.IPPROTO_TCP, socket.TCP_CORK)

    obj = Recorder(one, world.loop)
    with world.calls() as calls:
        obj.tcp_cork(True)
        obj.tcp_cork(True)
        assert obj.corked and option() == 1
        obj.tcp_cork(False)
        obj.tcp_cork(False)
        assert option() == 0
    assert only(calls, "setsockopt") == calls
    assert len(calls) == 2


@real_only
@linux_only
def test_corked_data_is_held_until_uncorked(world: World) -> None:
    one, two = world.socketpair(tcp=True)
    obj = Recorder(one, world.loop)
    obj.tcp_cork(True)
    obj.write(b"header ")
    obj.write(b"body")
    obj.tcp_cork(False)
    peer = Recorder(two, world.loop)
    peer.watch_read(True)
    world.until(lambda: len(peer.got) == 11)
    assert peer.events == ["read"]


@real_only
def test_cork_refused_by_a_socketpair_is_tried_again_each_time(world: World) -> None:
    one, _ = world.socketpair()
    obj = Recorder(one, world.loop)
    with world.calls() as calls:
        for _unused in range(3):
            obj.tcp_cork(True)
            assert obj.corked is False
        obj.tcp_cork(False)
    assert len(only(calls, "setsockopt")) == 3 and not obj.closed


@real_only
def test_corking_a_pipe_is_silently_ignored(world: World, caplog: pytest.LogCaptureFixture) -> None:
    one, _ = world.pipe()
    obj = Recorder(one, world.loop)
    obj.tcp_cork(True)
    assert not obj.corked and not obj.closed and caplog.text == ""


def failing_setsockopt(monkeypatch: pytest.MonkeyPatch, number: int) -> list[int]:
    """Let setsockopt fail with this errno, and record the values that it is called with."""
    import ctypes

    values: list[int] = []

    def setsockopt(fd: int, level: int, option: int, value: Any, size: int) -> int:
        on = value._obj
        assert isinstance(on, c_int)
        values.append(on.value)
        ctypes.set_errno(number)
        return -1

    monkeypatch.setattr(libc, "setsockopt", setsockopt)
    return values


@pytest.mark.parametrize("number", [ENOPROTOOPT, ENOTSOCK, EOPNOTSUPP, EINVAL])
def test_descriptor_that_cannot_be_corked_is_left_alone(
    world: World, number: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    values = failing_setsockopt(monkeypatch, number)
    obj = Recorder(world.socketpair()[0], world.loop)
    obj.tcp_cork(True)
    obj.tcp_cork(True)
    assert not obj.closed and not obj.corked and caplog.text == ""
    assert values in ([1, 1], [])  # no call if the platform has no such option


LOST_CONNECTION_ERRORS = [ECONNRESET, ECONNABORTED, ECONNREFUSED, ENOTCONN, EPIPE, ESHUTDOWN, ETIMEDOUT, ENETDOWN,
        ENETUNREACH, ENETRESET, EHOSTDOWN, EHOSTUNREACH]  # fmt: skip
"""The errors that a socket may get for a connection that is gone."""


@pytest.mark.parametrize("number", LOST_CONNECTION_ERRORS, ids=errorcode.__getitem__)
@pytest.mark.parametrize("on", [True, False], ids=["cork", "uncork"])
def test_corking_a_lost_connection_is_not_an_error(
    world: World,
    number: int,
    on: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    obj = Recorder(world.socketpair(tcp=True)[0], world.loop)
    if not on:
        obj.tcp_cork(True)
    failing_setsockopt(monkeypatch, number)
    obj.tcp_cork(on)
    assert not obj.closed
    obj.close()
    assert caplog.text == ""


@pytest.mark.parametrize("corked", [False, True], ids=["corked after it", "corked before it"])
def test_corking_after_a_client_reset_does_not_end_the_loop(
    world: World, corked: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def answer(obj: Recorder) -> None:
        obj.tcp_cork(not corked)
        obj.write(b"an answer")
        obj.tcp_cork(corked)
        obj.close()

    one, reset = world.reset_when_told()
    obj = Recorder(one, world.loop, read=answer, err=answer)
    obj.tcp_cork(corked)
    obj.watch_read(True)
    reset()
    world.until(lambda: obj.closed)
    world.turn()
    assert not world.is_open(one.fileno()) and caplog.text == ""


@linux_only
@real_only
def test_corking_a_dead_descriptor_warns_and_closes(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failing_setsockopt(monkeypatch, EBADF)
    obj = Recorder(world.socketpair()[0], world.loop)
    with caplog.at_level(logging.WARNING, "danga_raw"):
        obj.tcp_cork(True)
    assert obj.events == ["close tcp_cork_failed"]
    assert "setsockopt" in caplog.text and os.strerror(EBADF) in caplog.text


@linux_only
@real_only
def test_any_other_failure_to_cork_is_raised(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    failing_setsockopt(monkeypatch, EIO)
    obj = Recorder(world.socketpair()[0], world.loop)
    with pytest.raises(OSError, match="setsockopt.*TCP_CORK") as caught:
        obj.tcp_cork(True)
    assert caught.value.errno == EIO and not obj.closed and not obj.corked


@linux_only
@real_only
def test_close_completes_even_if_uncorking_fails(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    one, _ = world.socketpair(tcp=True)
    fd = one.fileno()
    obj = Recorder(one, world.loop)
    obj.tcp_cork(True)
    with monkeypatch.context() as patch:
        failing_setsockopt(patch, EIO)
        obj.close()
    world.turn()
    assert obj.closed and not world.is_open(fd) and "setsockopt" in caplog.text


# --- addresses ------------------------------------------------------------------------------------


def tcp(family: socket.AddressFamily, host: str) -> tuple[socket.socket, socket.socket]:
    with socket.create_server((host, 0), family=family) as listener:
        one = socket.create_connection(listener.getsockname()[:2])
        return one, listener.accept()[0]


@real_only
def test_ipv4_socket_reports_its_addresses(world: World) -> None:
    one, two = tcp(socket.AF_INET, "127.0.0.1")
    with one, two:
        obj = Recorder(one, world.loop)
        here, there = one.getsockname()[1], two.getsockname()[1]
        assert obj.peer_ip_string() == obj.local_ip_string() == "127.0.0.1"
        assert obj.peer_addr_string() == f"127.0.0.1:{there}"
        assert obj.local_addr_string() == f"127.0.0.1:{here}"
        assert (obj.peer_ip, obj.peer_port) == ("127.0.0.1", there)
        assert (obj.local_ip, obj.local_port) == ("127.0.0.1", here)
        assert obj.as_string() == f"Recorder(): open to 127.0.0.1:{there}"
        obj.close()
        world.loop.reset()


@real_only
@pytest.mark.skipif(not socket.has_ipv6, reason="needs IPv6")
def test_ipv6_addresses_are_formatted_with_brackets(world: World) -> None:
    try:
        one, two = tcp(socket.AF_INET6, "::1")
    except OSError:
        pytest.skip("needs IPv6 on the loopback")
    with one, two:
        obj = Recorder(one, world.loop)
        assert obj.peer_ip_string() == obj.local_ip_string() == "::1"
        assert obj.peer_addr_string() == f"[::1]:{two.getsockname()[1]}"
        assert obj.local_addr_string() == f"[::1]:{one.getsockname()[1]}"
        obj.watch_read(True)
        assert obj.as_string() == f"Recorder(R): open to [::1]:{two.getsockname()[1]}"
        obj.close()
        world.loop.reset()


def test_ipv6_scope_is_left_out_of_the_address(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(libc, "getpeername", lambda sock: ("fe80::1%eth0", 80, 0, 2))
    obj = Recorder(world.socketpair()[0], world.loop)
    assert obj.peer_ip_string() == "fe80::1" and obj.peer_addr_string() == "[fe80::1]:80"


@pytest.mark.parametrize("answer", ["", b"\0name", "/run/x", (1, 2), ("eth0", 1, 2, 3, b"")])
def test_address_without_ip_and_port_is_none(
    world: World, answer: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    for call in ("getpeername", "getsockname"):
        monkeypatch.setattr(libc, call, lambda sock: answer)
    obj = Recorder(world.socketpair()[0], world.loop)
    assert obj.peer_ip_string() is None and obj.peer_addr_string() is None
    assert obj.local_ip_string() is None and obj.local_addr_string() is None
    assert obj.as_string() == "Recorder(): open"


def test_unix_socket_has_no_address(world: World) -> None:
    obj = Recorder(world.socketpair()[0], world.loop)
    assert obj.peer_ip_string() is None and obj.peer_addr_string() is None
    assert obj.local_ip_string() is None and obj.local_addr_string() is None
    assert obj.as_string() == "Recorder(): open"


@real_only
def test_named_unix_socket_has_no_address_either(world: World, tmp_path: Any) -> None:
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        client.connect(str(tmp_path / "s"))
        obj = Recorder(client, world.loop)
        assert obj.peer_addr_string() is None and obj.as_string() == "Recorder(): open"
        obj.close()
        world.loop.reset()


@real_only
def test_peer_address_is_queried_until_known_and_then_cached(world: World) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as client:
        asked: list[object] = []
        getpeername = libc.getpeername

        def counted(sock: object) -> Any:
            asked.append(sock)
            return getpeername(sock)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(libc, "getpeername", counted)
            obj = Recorder(client, world.loop)
            assert obj.peer_ip_string() is None and obj.as_string() == "Recorder(): open"
            client.connect(listener.getsockname())
            port = listener.getsockname()[1]
            assert obj.peer_addr_string() == f"127.0.0.1:{port}"
            count = len(asked)
            assert obj.peer_ip_string() == "127.0.0.1" and obj.peer_port == port
            assert obj.as_string().endswith(f" to 127.0.0.1:{port}")
            assert len(asked) == count
        accepted, _ = listener.accept()
        accepted.close()
        assert obj.peer_addr_string() == f"127.0.0.1:{port}"
        obj.close()
        assert obj.peer_addr_string() is None and obj.local_addr_string() is None
        assert obj.as_string() == "Recorder(): closed"
        world.loop.reset()


def test_as_string_shows_watched_events_and_whether_the_object_is_open(world: World) -> None:
    obj = Recorder(world.socketpair()[0], world.loop)
    said = [obj.as_string()]
    obj.watch_read(True)
    said.append(obj.as_string())
    obj.watch_write(True)
    said.append(obj.as_string())
    obj.watch_read(False)
    said.append(obj.as_string())
    obj.close()
    said.append(obj.as_string())
    assert said == [
        "Recorder(): open",
        "Recorder(R): open",
        "Recorder(RW): open",
        "Recorder(W): open",
        "Recorder(W): closed",
    ]


# --- messages -------------------------------------------------------------------------------------


def test_debug_messages_go_to_standard_error(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    obj = Recorder(world.socketpair()[0], world.loop)
    obj.debugmsg("plain 100%")
    obj.debugmsg("number %d of %s\n", 3, "x")
    Socket.DebugMsg("class %05.1f", 2.25)
    Recorder.DebugMsg("a line end\n")
    out, err = capsys.readouterr()
    assert out == ""
    assert err == ">>> plain 100%\n>>> number 3 of x\n>>> class 002.2\n>>> a line end\n"


def test_dump_error_prints_the_message_the_object_and_the_call_stack(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    def inner(obj: AnySocket) -> None:
        obj.dump_error("what went wrong")

    def outer(obj: AnySocket) -> None:
        inner(obj)

    obj = Recorder(world.socketpair()[0], world.loop)
    outer(obj)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == "" and lines[0] == "ERROR: what went wrong"
    assert "Recorder object" in lines[1] and lines[1].endswith(" = Recorder(): open")
    callers = [line.rsplit(" called ", 1)[1] for line in lines[2:]]
    assert callers[:3] == ["inner", "outer", sys._getframe().f_code.co_name]
    assert lines[2].startswith(f"\t{__file__}:")


def test_dump_error_opens_no_file() -> None:
    # An audit hook can't be removed, so it gets a separate process.
    code = (
        "import sys, socket\n"
        "from danga_raw import Socket\n"
        "object = Socket(socket.socket())\n"
        "seen = []\n"
        "sys.addaudithook(lambda event, _: seen.append(event))\n"
        "object.dump_error('what went wrong')\n"
        "print({'open', 'import'} & set(seen), flush=True)\n"
        "object.close()\n"
        "object.loop.reset()\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
    assert "<string>:6 called <module>" in done.stderr


def test_failure_to_unregister_is_dumped_and_the_close_completes(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.lenient()
    one, _ = world.socketpair()
    fd = one.fileno()
    obj = Recorder(one, world.loop)
    world.loop._registry.open().unregister(fd, obj.event_watch)
    obj.close()
    world.turn()
    assert obj.closed and not world.is_open(fd)
    err = capsys.readouterr().err
    # On a kqueue, removing a filter that is already gone is no error.
    assert ("ERROR: " in err and "Recorder(): closed" in err) == (world.backend != "kqueue")


def test_warnings_reach_standard_error_without_any_logging_configuration() -> None:
    from tests.test_loop import run

    code = """
import os, danga_raw
loop = danga_raw.Loop("poll")
here, there = os.pipe()
loop._registry.open().register(here, 1)
os.write(there, b"x")
loop.set_post_loop_callback(lambda *_: False)
loop.run()
"""
    result = run(code)
    assert result.returncode == 0
    assert "of which nothing is known. removing." in result.stderr


def test_close_reason_is_logged_at_debug_level(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    obj = Recorder(world.socketpair()[0], world.loop)
    fd = obj.fd
    with caplog.at_level(logging.DEBUG, "danga_raw"):
        obj.close("my reason")
    assert f"fd {fd}" in caplog.text and "my reason" in caplog.text


def test_watch_read_sets_the_read_bit_of_the_event_mask(world: World) -> None:
    one, _ = world.socketpair()
    obj = Recorder(one, world.loop)
    obj.watch_read(True)
    assert obj.event_watch & IN
