"""The kernels that the behaviour tests run on: the machine's own, through each of its backends, and
the simulated ones.

A test uses the fixture `world` to make its loops, sockets and pipes. So the same test runs on real
epoll and poll, on their simulation, and on the kqueue of every platform that has one.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import NamedTuple, Protocol

import pytest

from danga_raw import Loop, Socket
from danga_raw._backends import backends
from danga_raw._epoll import Epoll
from danga_raw._kqueue import KQueue
from danga_raw._libc import libc
from danga_raw._poll import Poll
from danga_raw._registry import LOOPS_OWN
from tests.simkernel import SimKernel

IN, OUT, ERR, HUP = 1, 4, 8, 16

PATIENCE = float(os.environ.get("DANGA_RAW_PATIENCE", "60"))
"""A test that takes more seconds is assumed to hang. Nothing else in these tests uses a clock."""

POLLERS = {"epoll": Epoll, "poll": Poll, "kqueue": KQueue}


class AnyHandle(Protocol):
    """A handle of any kernel."""

    def fileno(self) -> int: ...
    def close(self) -> object: ...
    def detach(self) -> int: ...
    def recv(self, count: int, /) -> bytes: ...
    def send(self, data: bytes, /) -> int: ...
    def shutdown(self, how: int, /) -> object: ...
    def setblocking(self, on: bool, /) -> object: ...


class Descriptor:
    """A real descriptor that is not a socket, with a socket's methods."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self.detach())

    def detach(self) -> int:
        fd, self._fd = self._fd, -1
        return fd

    def recv(self, count: int) -> bytes:
        return os.read(self._fd, count)

    def send(self, data: bytes) -> int:
        return os.write(self._fd, data)

    def shutdown(self, how: int) -> None:
        raise NotImplementedError

    def setblocking(self, on: bool) -> None:
        os.set_blocking(self._fd, on)


Call = tuple[object, ...]
"""The name of a call and its arguments."""


class Kind(NamedTuple):
    """One of the kernels."""

    backend: str
    platform: str | None = None
    """The platform to simulate; None for the machine's own kernel."""

    def __str__(self) -> str:
        return f"{self.backend}-sim-{self.platform}" if self.platform else self.backend


REAL = [Kind(name) for name in backends()]
SIMULATED = [
    Kind("epoll", "linux"),
    Kind("poll", "linux"),
    *(
        Kind("kqueue", platform)
        for platform in ("freebsd", "netbsd", "netbsd9", "openbsd", "dragonfly", "darwin")
    ),
]
WORLDS = REAL + SIMULATED

real_only = pytest.mark.parametrize("world", REAL, indirect=True, ids=str)
"""For what simulated kernels lack: processes, signals, threads, address families."""

readiness_only = pytest.mark.parametrize(
    "world", [kind for kind in WORLDS if kind.backend != "kqueue"], indirect=True, ids=str
)
"""For what no kqueue does: report a hang-up unasked, refuse a file, notice a dead number."""


class World:
    """A kernel, and what a test has made on it, which is closed when the test ends."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.backend = kind.backend
        self.simulated = kind.platform is not None
        self.stack = ExitStack()
        self._loop: Loop | None = None

    # --- loops ------------------------------------------------------------------------------------

    def new_loop(self) -> Loop:
        """A new loop."""
        loop = Loop(self.backend)
        self.stack.callback(loop.close)
        return loop

    @property
    def loop(self) -> Loop:
        """A loop, the same each time."""
        if self._loop is None:
            self._loop = self.new_loop()
        return self._loop

    def default_loop(self) -> Loop:
        """A new loop for the class methods of `Socket`."""
        loop = self.new_loop()
        patch = self.stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr("danga_raw.socket._default_loop", loop)
        return loop

    def turn(self, loop: Loop | None = None) -> None:
        """Run one turn of the loop, for what is ready now."""
        loop = loop or self.loop
        timeout, callback = loop._timers.timeout, loop._registry.post_loop_callbacks.get(LOOPS_OWN)
        loop.set_loop_timeout(0)
        loop.set_post_loop_callback(lambda *_: False)
        try:
            loop.run()
        finally:
            loop.set_post_loop_callback(callback)
            loop.set_loop_timeout(timeout)

    def until(self, condition: Callable[[], object], loop: Loop | None = None) -> None:
        """Run turns of the loop, if necessary, until the condition holds."""
        loop = loop or self.loop
        if condition():
            return
        loop.set_post_loop_callback(lambda *_: not condition())
        try:
            loop.run()
        finally:
            loop.set_post_loop_callback(None)

    # --- descriptors ------------------------------------------------------------------------------

    def socketpair(self, tcp: bool = False) -> tuple[AnyHandle, AnyHandle]:
        """Two connected, non-blocking sockets."""
        raise NotImplementedError

    def pipe(self) -> tuple[AnyHandle, AnyHandle]:
        """The read end and the write end of a pipe, both non-blocking."""
        raise NotImplementedError

    def file(self) -> AnyHandle:
        """A regular file."""
        raise NotImplementedError

    def open_fds(self) -> set[int]:
        """All open descriptors."""
        raise NotImplementedError

    def is_open(self, fd: int) -> bool:
        return fd in self.open_fds()

    def reset_by_peer(self) -> AnyHandle:
        """A TCP socket whose peer has reset the connection."""
        one, reset = self.reset_when_told()
        reset()
        return one

    def reset_when_told(self) -> tuple[AnyHandle, Callable[[], object]]:
        """A TCP socket, and a function that has its peer reset the connection."""
        raise NotImplementedError

    def lenient(self) -> None:
        """Answer calls on dead descriptors with EBADF, instead of failing the test."""

    def _kept(self, *things: AnyHandle) -> None:
        for thing in things:
            self.stack.callback(thing.close)

    # --- calls ------------------------------------------------------------------------------------

    @contextmanager
    def calls(self) -> Iterator[list[Call]]:
        """The package's calls from now on: the poller's methods, and the door's read, write, close
        and setsockopt."""
        made: list[Call] = []
        with pytest.MonkeyPatch.context() as patch:
            poller = POLLERS[self.backend]
            for verb in ("register", "modify", "unregister", "wait_bare"):
                noted = _noting(made, verb.partition("_")[0], getattr(poller, verb), skip=1)
                patch.setattr(poller, verb, noted)
            for name in ("read", "write", "close", "setsockopt"):
                patch.setattr(libc, name, _noting(made, name, getattr(libc, name)))
            yield made


def _noting(
    made: list[Call], name: str, call: Callable[..., object], skip: int = 0
) -> Callable[..., object]:
    def noted(*arguments: object) -> object:
        told = arguments[skip:]
        if name == "setsockopt":
            told = told[:3]
        made.append((name, *(bytes(a) if isinstance(a, memoryview) else a for a in told)))
        return call(*arguments)

    return noted


def only(calls: list[Call], *names: str) -> list[Call]:
    """The calls with these names."""
    return [call for call in calls if call[0] in names]


class RealWorld(World):
    """The machine's own kernel."""

    def socketpair(self, tcp: bool = False) -> tuple[AnyHandle, AnyHandle]:
        one, two = self._tcp() if tcp else socket.socketpair()
        for end in (one, two):
            end.setblocking(False)
        self._kept(one, two)
        return one, two

    def _tcp(self) -> tuple[socket.socket, socket.socket]:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            one = socket.create_connection(listener.getsockname())
            return one, listener.accept()[0]

    def pipe(self) -> tuple[AnyHandle, AnyHandle]:
        ends = [Descriptor(fd) for fd in os.pipe()]
        for end in ends:
            end.setblocking(False)
        self._kept(*ends)
        return ends[0], ends[1]

    def file(self) -> AnyHandle:
        file = Descriptor(os.open(__file__, os.O_RDONLY))
        self._kept(file)
        return file

    def open_fds(self) -> set[int]:
        # The list includes the descriptor of the listing itself, which is closed by then.
        return {fd for fd in map(int, os.listdir("/dev/fd")) if self.is_open(fd)}

    def is_open(self, fd: int) -> bool:
        try:
            os.fstat(fd)
        except OSError:
            return False
        return True

    def reset_when_told(self) -> tuple[AnyHandle, Callable[[], object]]:
        one, two = self._tcp()
        one.setblocking(False)
        self._kept(one, two)
        two.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        return one, two.close


class SimulatedWorld(World):
    """A simulated kernel."""

    def __init__(self, kind: Kind) -> None:
        super().__init__(kind)
        self.kernel = SimKernel(0, platform=kind.platform)
        self.stack.enter_context(self.kernel.installed())

    def socketpair(self, tcp: bool = False) -> tuple[AnyHandle, AnyHandle]:
        one, two = self.kernel.socketpair(tcp)
        for end in (one, two):
            end.setblocking(False)
        self._kept(one, two)
        return one, two

    def pipe(self) -> tuple[AnyHandle, AnyHandle]:
        one, two = self.kernel.pipe()
        for end in (one, two):
            end.setblocking(False)
        self._kept(one, two)
        return one, two

    def file(self) -> AnyHandle:
        file = self.kernel.file()
        self._kept(file)
        return file

    def open_fds(self) -> set[int]:
        return set(self.kernel.table.files)

    def reset_when_told(self) -> tuple[AnyHandle, Callable[[], object]]:
        one, two = self.kernel.socketpair(tcp=True)
        one.setblocking(False)
        self._kept(one)
        return one, two.reset

    def lenient(self) -> None:
        self.kernel.strict = False


@contextmanager
def world_of(kind: Kind) -> Iterator[World]:
    """The world of a kind. At the end, everything that it made is closed, and the same descriptors
    must be open as before."""
    world = SimulatedWorld(kind) if kind.platform else RealWorld(kind)
    before = world.open_fds()
    with world.stack:
        yield world
    # libkqueue closes the descriptors of a kqueue some time later.
    if not (kind == Kind("kqueue") and "DANGA_RAW_LIBKQUEUE" in os.environ):
        assert world.open_fds() == before


class Hangs(BaseException):
    """A test would never end. Not an `Exception`, so that no handler takes it."""


@contextmanager
def no_hanging(seconds: float = PATIENCE) -> Iterator[None]:
    """Raise if a test would never end, and again if its cleanup wouldn't."""

    def give_up(number: int, frame: FrameType | None) -> None:
        raise Hangs(f"this goes on for more than {seconds} seconds")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def drain(thing: AnyHandle) -> bytes:
    """Everything that can be read from `thing` now."""
    pieces = []
    try:
        while piece := thing.recv(1 << 20):
            pieces.append(piece)
    except BlockingIOError:
        pass
    return b"".join(pieces)


def fill(thing: AnyHandle) -> int:
    """Write until not a single byte more is accepted; returns how many were written."""
    total = 0
    for size in (65536, 1):
        try:
            while True:
                total += thing.send(bytes(size))
        except BlockingIOError:
            pass
    return total


class Recorder(Socket[AnyHandle]):
    """Records its events in `events`, and what it has read in `got`.

    An event with an action (`read=`, `write=`, `err=`, `hup=`) does only that; otherwise it reads
    what is there, writes what is queued, and closes at the end of the data.
    """

    __slots__ = ("events", "got", "on")

    def __init__(
        self,
        sock: AnyHandle,
        loop: Loop,
        *,
        events: list[str] | None = None,
        actions: Mapping[str, Callable[[Recorder], object]] | None = None,
        **on: Callable[[Recorder], object],
    ) -> None:
        super().__init__(sock, loop)
        self.events = [] if events is None else events
        self.got = bytearray()
        self.on = {**(actions or {}), **on}

    def _event(self, event: str, usual: Callable[[], object]) -> None:
        self.events.append(event)
        if action := self.on.get(event):
            action(self)
        else:
            usual()

    def take(self) -> None:
        data = self.read(1 << 20)
        if data is None:
            self.close("end")
        else:
            self.got += data

    def event_read(self) -> None:
        self._event("read", self.take)

    def event_write(self) -> None:
        self._event("write", super().event_write)

    def event_err(self) -> None:
        self._event("err", self.close)

    def event_hup(self) -> None:
        self._event("hup", self.close)

    def close(self, reason: str | None = None) -> None:
        if not self.closed:
            self.events.append(f"close {reason}")
        super().close(reason)
