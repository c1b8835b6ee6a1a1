"""docs/syscalls.md: each row of its tables is run under a trace on all backends, and compared.

`python -m tests.test_trace_doc` prints the correct tables.
"""

from __future__ import annotations

import ast
import os
import re
import resource
import select
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import cast

import pytest

import danga_raw._handle
import danga_raw.socket
from danga_raw import Listener, Loop, Socket, Timer
from danga_raw._kernel import in_c
from danga_raw._libc import libc
from danga_raw._strace import CALLS, Event, KernelEvent, PollFd
from danga_raw.trace import Call, Trace
from danga_raw.types import SocketAddress
from tests.simkernel import Handle, SimKernel
from tests.world import AnyHandle

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "syscalls.md"
BACKENDS = ("epoll", "kqueue", "poll")

NOTHING = "none"

# --- how the page writes a call -------------------------------------------------------------------

_BITS = {1: "IN", 4: "OUT", 8: "ERR", 16: "HUP", 32: "NVAL"}
_VERBS = {1: "ADD", 2: "DEL", 3: "MOD"}
_FLAGS = {1: "ADD", 2: "DELETE", 4: "ENABLE", 8: "DISABLE"}
_OPTIONS = {3: "CORK", 4: "CORK"}
"""Linux's TCP_CORK and the BSDs' TCP_NOPUSH."""


def _mask(mask: int) -> str:
    return "\\|".join(name for bit, name in _BITS.items() if mask & bit)


_IN_C = {kernels: in_c(function) for function, (kernels, _) in CALLS.items()}


def written(call: Call) -> str:
    """A call in the form of a row of the page: without descriptor numbers."""
    args = call.args
    text = _IN_C.get(call.name, call.name)
    if call.name == "epoll_ctl":
        op, event = args[1], args[3]
        assert isinstance(op, int)
        text += f"({_VERBS[op]}{', ' + _mask(event.events) if isinstance(event, Event) else ''})"
    elif call.name == "kevent":
        changes = args[1]
        if changes is None:
            text += "(wait)"
        else:
            assert isinstance(changes, tuple)
            text += f"({', '.join(_change(change) for change in changes)})"
    elif call.name == "setsockopt":
        level, option, value = args[1:4]
        assert level == 6 and isinstance(option, int) and isinstance(value, int)
        text += f"({_OPTIONS[option]} {value})"
    elif text in ("ioctl", "getsockopt"):
        text += "(FIONBIO)" if text == "ioctl" else "(SO_ERROR)"
    elif text == "poll":
        entries = args[0]
        assert isinstance(entries, tuple)
        for entry in entries:
            assert isinstance(entry, PollFd)
    if call.error is not None:
        text += f" = {call.error}"
    return f"`{text}`"


def _change(change: object) -> str:
    assert isinstance(change, KernelEvent)
    return f"{'READ' if change.filter == -1 else 'WRITE'} {_FLAGS[change.flags]}"


# --- the setup on which a row is tried -----------------------------------------------------------


class Client(Socket[AnyHandle]):
    """The object of a row: each handler does the least possible."""

    __slots__ = ("reads",)

    def event_read(self) -> None:
        self.read(100)

    def event_err(self) -> None:
        pass

    def event_hup(self) -> None:
        pass

    def event_connect(self, error: OSError | None) -> None:
        pass


def close_all(sockets: list[socket.socket]) -> None:
    for sock in sockets:
        sock.close()


class Setup:
    """A loop on one backend with an open poller, and a TCP connection. The kqueue is simulated."""

    def __init__(self, backend: str, stack: ExitStack) -> None:
        self.backend = backend
        self.kernel = None
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        if backend == "kqueue":
            self.kernel = SimKernel(0, platform="freebsd", strict=False)
            stack.enter_context(self.kernel.installed())
            # A simulated socket has to be closed like a real one, by a close(2) through the door.
            patch.setattr(danga_raw._handle, "RawSocket", Handle)
            patch.setattr(danga_raw._handle, "_closes_as_usual", {Handle: True})
            patch.setattr(danga_raw._handle, "_detach", Handle.detach)
            # Signals are real, and can't write to a simulated descriptor.
            patch.setattr(signal, "set_wakeup_fd", lambda fd, **more: -1)
        self.stack = stack
        # From the start: a kqueue keeps the kevent that it was made with, and a simulated one,
        # which is not a C function, is replaced by a trace.
        self.calls = stack.enter_context(Trace())
        self.loop = Loop(backend)
        stack.callback(self.loop.close)
        patch.setattr(danga_raw.socket, "_default_loop", self.loop)
        self.loop.set_loop_timeout(0)
        self.loop.set_post_loop_callback(lambda *_: False)
        self.loop._registry.open()
        self.near, self.far = self.pair(tcp=True)

    def pair(self, tcp: bool = False) -> tuple[AnyHandle, AnyHandle]:
        one: AnyHandle
        two: AnyHandle
        if self.kernel is not None:
            one, two = self.kernel.socketpair(tcp)
        elif tcp:
            with socket.create_server(("127.0.0.1", 0)) as listener:
                two = socket.create_connection(listener.getsockname())
                one, _ = listener.accept()
        else:
            one, two = socket.socketpair()
        for end in (one, two):
            end.setblocking(False)
            self.stack.callback(end.close)
        return one, two

    def listener(self) -> socket.socket:
        """A listening socket on a free port."""
        made = self.kernel.listener() if self.kernel else socket.create_server(("127.0.0.1", 0))
        self.stack.callback(made.close)
        return cast("socket.socket", made)

    def listen(self) -> tuple[Listener, list[socket.socket]]:
        """A listener to which a client has connected, and the list for what it accepts."""
        sock, accepted = self.listener(), list[socket.socket]()
        listener = Listener(sock, lambda connection, _: accepted.append(connection), self.loop)
        self.stack.callback(close_all, accepted)
        if self.kernel is not None:
            client: AnyHandle = self.kernel.connect(cast(Handle, sock))
        else:
            client = socket.create_connection(sock.getsockname())
        self.stack.callback(client.close)
        return listener, accepted

    def connect(self, address: SocketAddress) -> Client:
        """A client that connects."""
        client = Client.connect(address, self.loop, timeout=60)
        assert client.sock is not None
        self.stack.callback(client.sock.close)
        return client

    def leave_no_room(self) -> Callable[[], object]:
        """Use up all descriptors; the result undoes that."""
        if self.kernel is not None:
            table, most = self.kernel.table, self.kernel.table.limit
            table.limit = table.free()
            # The table's limit counts from its first number, and there are no gaps here.
            return lambda: setattr(table, "limit", most)
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        with socket.socket() as next_one:
            free = next_one.fileno()
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
        return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, limits)

    def turn(self) -> None:
        """A turn that waits until there is an event."""
        self.loop.set_loop_timeout(-1)
        self.loop.run()

    def client(self, sock: AnyHandle | None = None, watch: bool = False) -> Client:
        client = Client(self.near if sock is None else sock, self.loop)
        client.watch_read(watch)
        return client

    def full(self) -> Client:
        """A client with queued data that it can't write."""
        # Not TCP, whose data moves on by itself and so makes room again.
        self.near, self.far = self.pair()
        client = self.client()
        while client.write(b"x" * 65536):
            pass
        return client

    def drain(self) -> None:
        """Read at the other end until there is room again at this one."""
        while True:
            try:
                while self.far.recv(1 << 20):
                    pass
            except BlockingIOError:
                if self.kernel is not None or select.select([], [self.near], [], 0)[1]:
                    return


Steps = Iterator[None]
Row = Callable[[Setup], Steps]
"""Prepares up to its `yield`; the row describes the calls after that."""

ROWS: dict[str, Row] = {}
"""The first cell of each row."""
SECTIONS: dict[str, list[str]] = {}


def row(section: str, title: str) -> Callable[[Row], Row]:
    def remember(run: Row) -> Row:
        assert title not in ROWS
        ROWS[title] = run
        SECTIONS.setdefault(section, []).append(title)
        return run

    return remember


MAKING, READING, WRITING = "Making an object", "Reading", "Writing"
WATCHING, CLOSING, ADDRESSES = "Watching and corking", "Closing", "Addresses and debugging"
CONNECTING, WAKING = "Accepting and connecting", "Waking the loop, and signals"
RUNNING, OTHERS, LAST = "Running the loop", "Other descriptors", "Closing the loop"


@row(MAKING, "`Loop()`, `default_loop()`")
def _(g: Setup) -> Steps:
    yield
    Loop(g.backend)
    danga_raw.default_loop()


@row(MAKING, "the first use of the poller")
def _(g: Setup) -> Steps:
    loop = Loop(g.backend)
    g.stack.callback(loop.close)
    yield
    loop._registry.open()
    loop._registry.open()


@row(MAKING, "`Socket(sock)`")
def _(g: Setup) -> Steps:
    yield
    Client(g.near, g.loop)


@row(MAKING, "`Socket(sock)` of a descriptor that is already watched")
def _(g: Setup) -> Steps:
    g.client()
    yield
    with pytest.raises(FileExistsError):
        g.client()


@row(CONNECTING, "`Listener(sock, accepted)`")
def _(g: Setup) -> Steps:
    sock = g.listener()
    yield
    Listener(sock, lambda connection, address: None, g.loop)


@row(
    CONNECTING,
    "the turn in which it accepts one connection (`Listener.event_read()`, `Listener.event_err()`)",
)
def _(g: Setup) -> Steps:
    _, accepted = g.listen()
    yield
    g.turn()
    assert len(accepted) == 1


@row(CONNECTING, "the turn in which no descriptor is free for it")
def _(g: Setup) -> Steps:
    _, accepted = g.listen()
    again = g.leave_no_room()
    g.stack.callback(again)
    yield
    g.turn()
    assert not accepted


@row(
    CONNECTING,
    "the next turn in which a socket closes (`Listener.begin_again()`); if none does, it tries again after half a second (`Listener.resume()`)",
)
def _(g: Setup) -> Steps:
    client = g.client()
    g.listen()
    again = g.leave_no_room()
    g.stack.callback(again)
    g.turn()
    client.close()
    yield
    g.turn()


@row(CONNECTING, "`Listener.event_hup()`: `close`")
def _(g: Setup) -> Steps:
    listener, _ = g.listen()
    yield
    listener.event_hup()


@row(CONNECTING, "`Socket.connect(address)`")
def _(g: Setup) -> Steps:
    address = g.listener().getsockname()
    yield
    g.connect(address)


@row(CONNECTING, "`Socket.connect(address)` that fails at once: the next turn reports it")
def _(g: Setup) -> Steps:
    yield
    g.connect("/nowhere/at/all")


@row(CONNECTING, "the turn in which it is connected (`Socket.event_connect(error)`)")
def _(g: Setup) -> Steps:
    client = g.connect(g.listener().getsockname())
    yield
    g.turn()
    assert not client.closed


@row(CONNECTING, "the turn in which it is refused")
def _(g: Setup) -> Steps:
    listener = g.listener()
    address = listener.getsockname()
    listener.close()
    client = g.connect(address)
    yield
    g.turn()
    assert client.closed


@row(READING, "`Socket.read(n)`")
def _(g: Setup) -> Steps:
    client = g.client()
    g.far.send(b"abc")
    if g.kernel is None:
        select.select([g.near], [], [])
    yield
    assert client.read(10) == b"abc"


@row(READING, "`Socket.read(n)` with nothing there")
def _(g: Setup) -> Steps:
    client = g.client()
    yield
    assert client.read(10) == b""


@row(READING, "`Socket.read(n)` of pushed-back data")
def _(g: Setup) -> Steps:
    client = g.client()
    client.push_back_read(b"abc")
    yield
    assert client.read(10) == b"abc"


@row(READING, "`Socket.push_back_read(data)`")
def _(g: Setup) -> Steps:
    client = g.client()
    yield
    client.push_back_read(b"abc")


@row(WRITING, "`Socket.write(data)` that goes out whole")
def _(g: Setup) -> Steps:
    client = g.client()
    yield
    assert client.write(b"abc")


@row(WRITING, "`Socket.write(data)` of which only a part goes out (`Socket.on_incomplete_write()`)")
def _(g: Setup) -> Steps:
    client = g.client(g.pair()[0])
    yield
    assert not client.write(bytes(10_000_000))


@row(WRITING, "`Socket.write(data)` of which nothing goes out")
def _(g: Setup) -> Steps:
    g.full().steal_socket()
    g.loop.run()
    client = g.client()
    yield
    assert not client.write(b"abc")


@row(WRITING, "`Socket.write(data)` while something is queued")
def _(g: Setup) -> Steps:
    client = g.full()
    yield
    assert not client.write(b"abc")


@row(WRITING, "`Socket.write(None)`, `Socket.event_write()`: two queued blocks go out")
def _(g: Setup) -> Steps:
    g.full().steal_socket()
    g.loop.run()
    client = g.client()
    client.write(b"abc")
    client.write(b"def")
    g.drain()
    yield
    client.event_write()
    assert not client.write_buf


@row(WRITING, "`Socket.write(None)` with nothing queued, `Socket.write(callable)`")
def _(g: Setup) -> Steps:
    client = g.client()
    yield
    client.write(None)
    client.write(lambda: None)


@row(
    WRITING,
    "`Socket.write(data)` with `Socket.set_writer_func(func)`: only the function's own calls",
)
def _(g: Setup) -> Steps:
    client = g.client()
    yield
    client.set_writer_func(lambda data, count, offset: count)
    assert client.write(b"abc")


@row(WRITING, "`Socket.write(data)` to a peer that is gone; close(2) follows as below")
def _(g: Setup) -> Steps:
    near, far = g.pair()
    client = g.client(near)
    far.close()
    yield
    assert not client.write(b"abc")


@row(WRITING, "any of these on a closed object")
def _(g: Setup) -> Steps:
    client = g.client()
    client.close()
    yield
    assert client.write(b"abc")
    assert client.read(5) is None
    client.push_back_read(b"x")
    client.watch_read(True)
    client.tcp_cork(True)
    client.close()
    client.steal_socket()


@row(WATCHING, "`Socket.watch_read(True)`")
def _(g: Setup) -> Steps:
    client = g.client()
    yield
    client.watch_read(True)


@row(WATCHING, "`Socket.watch_read(False)`")
def _(g: Setup) -> Steps:
    client = g.client(watch=True)
    yield
    client.watch_read(False)


@row(WATCHING, "`Socket.watch_write(True)`")
def _(g: Setup) -> Steps:
    client = g.client(watch=True)
    yield
    client.watch_write(True)


@row(WATCHING, "`Socket.watch_write(False)`")
def _(g: Setup) -> Steps:
    client = g.client(watch=True)
    client.watch_write(True)
    yield
    client.watch_write(False)


@row(WATCHING, "either, if it changes nothing")
def _(g: Setup) -> Steps:
    client = g.client(watch=True)
    yield
    client.watch_read(True)
    client.watch_write(False)


@row(WATCHING, "`Socket.tcp_cork(True)`")
def _(g: Setup) -> Steps:
    client = g.client()
    yield
    client.tcp_cork(True)
    client.tcp_cork(True)


@row(WATCHING, "`Socket.tcp_cork(False)`")
def _(g: Setup) -> Steps:
    client = g.client()
    client.tcp_cork(True)
    yield
    client.tcp_cork(False)
    client.tcp_cork(False)


@row(WATCHING, "`Socket.tcp_cork(True)` of a UNIX socket, each time")
def _(g: Setup) -> Steps:
    client = g.client(g.pair()[0])
    yield
    client.tcp_cork(True)


@row(CLOSING, "`Socket.close()`, `Socket.close_as(reason)`")
def _(g: Setup) -> Steps:
    client = g.client(watch=True)
    yield
    client.close()


@row(CLOSING, "`Socket.steal_socket()`")
def _(g: Setup) -> Steps:
    client = g.client(watch=True)
    yield
    client.steal_socket()


@row(CLOSING, "either while corked")
def _(g: Setup) -> Steps:
    client = g.client()
    client.tcp_cork(True)
    yield
    client.close()


@row(CLOSING, "the turn in which a closed object is removed")
def _(g: Setup) -> Steps:
    client = g.client()
    client.close()
    yield
    g.loop.run()


@row(CLOSING, "the turn in which a stolen one is removed")
def _(g: Setup) -> Steps:
    client = g.client()
    client.steal_socket()
    yield
    g.loop.run()


@row(
    ADDRESSES, "`Socket.peer_ip_string()`, `Socket.peer_addr_string()`, `Socket.as_string()`: once"
)
def _(g: Setup) -> Steps:
    client = g.client()
    yield
    for _ in range(2):
        assert client.peer_ip_string() and client.peer_addr_string() and client.as_string()


@row(ADDRESSES, "`Socket.local_ip_string()`, `Socket.local_addr_string()`: once")
def _(g: Setup) -> Steps:
    client = g.client()
    yield
    for _ in range(2):
        assert client.local_ip_string() and client.local_addr_string()


@row(ADDRESSES, "`Socket.dump_error(text)`: the call of `as_string`")
def _(g: Setup) -> Steps:
    client = g.client()
    yield
    client.dump_error("text")


@row(
    ADDRESSES,
    "`Socket.peer_ip`, `Socket.peer_port`, `Socket.local_ip`, `Socket.local_port`, "
    "`Socket.debugmsg(text)`, `Socket.DebugMsg(text)`",
)
def _(g: Setup) -> Steps:
    client = g.client()
    yield
    assert (client.peer_ip, client.peer_port, client.local_ip, client.local_port) == (None,) * 4
    client.debugmsg("text")
    Socket.DebugMsg("text")


@row(RUNNING, "a turn of `Loop.run()`, `Socket.EventLoop()` with nothing ready")
def _(g: Setup) -> Steps:
    g.client(watch=True)
    yield
    Socket.EventLoop()


@row(RUNNING, "the first turn of a loop while other threads exist, which may want to wake it")
def _(g: Setup) -> Steps:
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    thread.start()
    g.stack.callback(thread.join)
    g.stack.callback(over.set)
    yield
    g.loop.run()


@row(RUNNING, "a turn in which timers fire: reading the clock is no system call")
def _(g: Setup) -> Steps:
    yield
    g.loop.add_timer(0, lambda: None)
    Socket.AddTimer(0, lambda: None).cancel()
    g.loop.run()


@row(RUNNING, "a turn that a timer has stopped before its wait")
def _(g: Setup) -> Steps:
    yield
    g.loop.add_timer(0, g.loop.stop)
    g.loop.run()


@row(RUNNING, "a turn in which an object reads (`Socket.event_read()` is the subclass's own)")
def _(g: Setup) -> Steps:
    g.client(watch=True)
    g.far.send(b"x")
    yield
    g.loop.set_loop_timeout(-1)
    g.loop.run()


@row(RUNNING, "the same, profiled (`Loop.enable_profiling()`, `Socket.EnableProfiling()`)")
def _(g: Setup) -> Steps:
    g.client(watch=True)
    g.far.send(b"x")
    yield
    g.loop.enable_profiling()
    g.loop.set_loop_timeout(-1)
    g.loop.run()
    Socket.EnableProfiling()
    g.loop.disable_profiling()
    Socket.DisableProfiling()


@row(RUNNING, "a turn with an event for an unknown descriptor")
def _(g: Setup) -> Steps:
    g.far.send(b"x")
    g.loop._registry.open().register(g.near.detach(), 1)
    yield
    g.loop.set_loop_timeout(-1)
    g.loop.run()


@row(
    RUNNING,
    "a turn with an event for a number that was closed while another descriptor of its file is open: "
    "epoll is opened anew",
)
def _(g: Setup) -> Steps:
    number = g.near.fileno()
    g.far.send(b"x")
    g.loop._registry.open().register(number, 1)
    if g.kernel is not None:
        g.stack.callback(g.kernel.release, g.kernel.dup(number))
        g.kernel.release(g.near.detach())
    else:
        g.stack.callback(os.close, os.dup(number))
        os.close(g.near.detach())
    yield
    g.loop.run()


@row(
    RUNNING,
    "`Loop.add_timer()`, `Socket.AddTimer()`, `Timer.cancel()`, `Loop.stop()`, "
    "`Loop.set_loop_timeout()`, `Socket.SetLoopTimeout()`, `Loop.set_post_loop_callback()`, "
    "`Socket.SetPostLoopCallback()`, `Socket.set_own_callback()`, `Socket.set_loop_callback()`, "
    "`Loop.disable_profiling()`, `Socket.DisableProfiling()`, `Loop.call_soon()`, "
    "`Loop.handle_exception()` (except the object's `close`), `Socket.let_go()`, `Listener.let_go()`",
)
def _(g: Setup) -> Steps:
    client = g.client()
    yield
    g.loop.add_timer(5, print).cancel()
    Socket.AddTimer(5, print).cancel()
    g.loop.stop()
    g.loop.set_loop_timeout(5)
    Socket.SetLoopTimeout(5)
    g.loop.set_post_loop_callback(None)
    Socket.SetPostLoopCallback(None)
    Socket.set_loop_callback(None)
    client.SetPostLoopCallback(lambda *_: True)
    client.set_own_callback(None)
    g.loop.disable_profiling()
    Socket.DisableProfiling()
    g.loop.call_soon(lambda: None)
    assert not g.loop.handle_exception(ValueError("text"), client)
    client.let_go()


@row(
    RUNNING,
    "`Loop.descriptor_map`, `Socket.DescriptorMap()`, `Loop.watched_sockets`, "
    "`Socket.WatchedSockets()`, `Loop.to_close`, `Socket.ToClose()`, `Loop.profiling_data`, "
    "`Socket.ProfilingData()`, `Loop.have_epoll`, `Socket.HaveEpoll()`, `Loop.have_kqueue`, "
    "`Socket.HaveKQueue()`, `Loop.other_fds`, `Loop.on_exception`",
)
def _(g: Setup) -> Steps:
    yield
    one = (g.loop.descriptor_map, g.loop.watched_sockets, g.loop.to_close, g.loop.profiling_data)
    assert one == (
        Socket.DescriptorMap(), Socket.WatchedSockets(), Socket.ToClose(), Socket.ProfilingData()
    )  # fmt: skip
    assert (g.loop.have_epoll, g.loop.have_kqueue) == (Socket.HaveEpoll(), Socket.HaveKQueue())
    assert g.loop.other_fds == Socket.OtherFds()
    g.loop.on_exception = None


@row(
    WAKING,
    "the first `Loop.call_soon_threadsafe(callback)`, or `Loop.stop()` from another thread",
)
def _(g: Setup) -> Steps:
    yield
    g.loop.call_soon_threadsafe(lambda: None)


@row(WAKING, "the same where there is no pipe2 (macOS)")
def _(g: Setup) -> Steps:
    g.stack.enter_context(pytest.MonkeyPatch.context()).delattr(libc, "pipe2")
    yield
    g.loop.call_soon_threadsafe(lambda: None)


@row(WAKING, "`Loop.call_soon_threadsafe(callback)`, `Loop.stop()` later on")
def _(g: Setup) -> Steps:
    g.loop.call_soon_threadsafe(lambda: None)
    g.loop.run()
    yield
    g.loop.stop()


@row(WAKING, "the same, before the loop has handled the wake-up")
def _(g: Setup) -> Steps:
    g.loop.call_soon_threadsafe(lambda: None)
    yield
    g.loop.call_soon_threadsafe(lambda: None)
    g.loop.stop()


@row(WAKING, "the turn of a loop that was woken")
def _(g: Setup) -> Steps:
    g.loop.call_soon_threadsafe(lambda: None)
    yield
    g.turn()


@row(WAKING, "`Loop.add_signal_handler(number, callback)`, after the calls of a first wake-up")
def _(g: Setup) -> Steps:
    g.loop.call_soon_threadsafe(lambda: None)
    yield
    g.loop.add_signal_handler(signal.SIGUSR1, lambda: None)


@row(WAKING, "`Loop.remove_signal_handler(number)`")
def _(g: Setup) -> Steps:
    g.loop.add_signal_handler(signal.SIGUSR1, lambda: None)
    yield
    assert g.loop.remove_signal_handler(signal.SIGUSR1)


@row(WAKING, "the same for a signal without a handler")
def _(g: Setup) -> Steps:
    yield
    assert not g.loop.remove_signal_handler(signal.SIGUSR1)


@row(OTHERS, "`Loop.add_other_fds(fds)`, `Socket.AddOtherFds(fds)`: for each new descriptor")
def _(g: Setup) -> Steps:
    yield
    g.loop.add_other_fds({g.near.fileno(): print})


@row(OTHERS, "any of these: for each that is already watched, to check that it still is")
def _(g: Setup) -> Steps:
    g.loop.add_other_fds({g.near.fileno(): print})
    yield
    Socket.OtherFds({g.near.fileno(): print})


@row(OTHERS, "`Loop.other_fds = fds`, `Socket.OtherFds(fds)`: for each that is left out")
def _(g: Setup) -> Steps:
    g.loop.add_other_fds({g.near.fileno(): print})
    yield
    Socket.OtherFds({})


@row(LAST, "`Loop.reset()`, `Loop.close()`, `Socket.Reset()`, the end of `with loop`")
def _(g: Setup) -> Steps:
    g.client()
    yield
    with g.loop:
        pass
    g.loop.reset()
    Socket.Reset()


@row(LAST, "the same, with a closed object waiting")
def _(g: Setup) -> Steps:
    g.client().close()
    yield
    g.loop.close()


@row(LAST, "the same, for a loop that was woken once and handles a signal")
def _(g: Setup) -> Steps:
    g.loop.add_signal_handler(signal.SIGUSR1, lambda: None)
    yield
    g.loop.close()


# --- the tests ------------------------------------------------------------------------------------


def measured(title: str, backend: str) -> str:
    """The correct cell of a row."""
    with ExitStack() as stack:
        setup = Setup(backend, stack)
        steps = ROWS[title](setup)
        next(steps)
        setup.calls.clear()
        assert next(steps, "ended") == "ended"
        return ", ".join(map(written, setup.calls)) or NOTHING


def table_rows() -> dict[str, list[str]]:
    """The cells of the page, by the first cell of their row."""
    rows: dict[str, list[str]] = {}
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == 4 and cells[0] not in ("", "---") and cells[1] != "epoll":
            assert cells[0] not in rows, cells[0]
            rows[cells[0]] = cells[1:]
    return rows


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("title", ROWS)
def test_row_of_the_page_matches_the_trace(title: str, backend: str) -> None:
    if backend == "epoll" and not hasattr(libc, "epoll_wait"):
        pytest.skip("this system has no epoll")
    page = table_rows()
    assert title in page, "the page lacks this row"
    assert measured(title, backend) == page[title][BACKENDS.index(backend)]


def test_page_has_no_other_rows() -> None:
    assert list(table_rows()) == list(ROWS)


@pytest.mark.parametrize("cls", [Socket, Listener, Loop, Timer])
def test_every_method_has_a_row(cls: type) -> None:
    titles = " ".join(table_rows())
    named = set(re.findall(rf"`{cls.__name__}\.(\w+)", titles))
    # Attributes that hold a value, and handlers that a subclass defines.
    slots = set(getattr(cls, "__slots__", ())) | {
        "backend", "callback",
        "event_err", "event_hup",
    }  # fmt: skip
    public = {name for name in vars(cls) if not name.startswith("_")} - slots
    assert public - named == set()
    assert {name for name in named if not hasattr(cls, name)} == set()


def test_rows_make_every_call_that_the_stub_declares() -> None:
    stub = ast.parse((ROOT / "typestubs" / "libc.pyi").read_text())
    declared = {f.name: f for f in stub.body if isinstance(f, ast.FunctionDef)}
    given: dict[str, set[int]] = {}
    with pytest.MonkeyPatch.context() as patch:

        def watched(name: str, call: object, take: Callable[..., object]) -> object:
            def taking(args: tuple[object, ...], result: object) -> object:
                given.setdefault(name, set()).add(len(args))
                return take(args, result)

            return (call, taking)

        calls: Mapping[str, object] = {
            name: watched(name, call, take) for name, (call, take) in CALLS.items()
        }
        patch.setattr("danga_raw.trace.CALLS", calls)
        for title in ROWS:
            for backend in BACKENDS:
                measured(title, backend)
    traced = {name: function for name, function in declared.items() if name != "clock_gettime"}
    assert given == {name: {len(f.args.posonlyargs)} for name, f in traced.items()}


def main() -> None:
    for section, titles in SECTIONS.items():
        print(f"\n## {section}\n\n| | epoll | kqueue | poll |\n|---|---|---|---|")
        for title in titles:
            print(f"| {title} | {' | '.join(measured(title, b) for b in BACKENDS)} |")


if __name__ == "__main__":
    main()
