"""The simulated Linux against the real one: random sequences of calls give the same results on
both, errno for errno."""

from __future__ import annotations

import ctypes
import os
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from ctypes import byref, c_int, c_ulong
from errno import errorcode
from fcntl import ioctl
from random import Random
from termios import FIONREAD
from typing import Protocol

import pytest

from danga_raw._epoll import Epoll
from danga_raw._libc import failure, libc
from danga_raw._poll import pollfd
from tests.needs import REQUIRED
from tests.simkernel import Handle, SimKernel
from tests.simkernel.sockets import StreamSocket

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the truth held against is Linux")

PROGRAMS = 10_000 if REQUIRED else 500
BATCHES = 10
STEPS = 35
SETTLE = 10.0
"""How many seconds a packet may take on the real loopback, which delivers from a soft interrupt."""

Step = tuple[str, int, int]
"""A call, its descriptor (counted in the order of opening), and a number."""
Result = object
"""What a call returned, or the name of its errno."""
StepRecord = tuple[Step, Result, Result]
"""A step, its result, and the masks of all descriptors after it."""

_shutdown = ctypes.CDLL(None, use_errno=True).shutdown


class World(Protocol):
    """What a program needs of a kernel besides the door's calls."""

    def installed(self) -> AbstractContextManager[object]: ...
    def socketpair(self) -> Sequence[int]: ...
    def tcp(self) -> Sequence[int]: ...
    def pipe(self) -> Sequence[int]: ...
    def file(self) -> Sequence[int]: ...
    def dup(self, fd: int) -> int: ...
    def shutdown(self, fd: int, how: int) -> None: ...
    def unread(self, fd: int) -> int: ...


class Simulated:
    """The simulated kernel, with the descriptor numbers that the real one would give."""

    def __init__(self, first_fd: int) -> None:
        self.kernel = SimKernel(strict=False, first_fd=first_fd)

    def installed(self) -> AbstractContextManager[object]:
        return self.kernel.installed()

    def _nonblocking(self, *handles: Handle) -> Sequence[int]:
        for handle in handles:
            handle.setblocking(False)
        return [handle.fileno() for handle in handles]

    def socketpair(self) -> Sequence[int]:
        return self._nonblocking(*self.kernel.socketpair())

    def tcp(self) -> Sequence[int]:
        listener = self.kernel.listener()
        client = self.kernel.connect(listener)
        return self._nonblocking(listener, client, listener.accept()[0])

    def pipe(self) -> Sequence[int]:
        return self._nonblocking(*self.kernel.pipe())

    def file(self) -> Sequence[int]:
        return [self.kernel.file().fileno()]

    def dup(self, fd: int) -> int:
        return self.kernel.dup(fd)

    def shutdown(self, fd: int, how: int) -> None:
        self.kernel.get(fd, "shutdown")
        Handle(self.kernel, fd).shutdown(how)

    def unread(self, fd: int) -> int:
        file = self.kernel.table.files[fd]
        assert isinstance(file, StreamSocket)
        return file.arrived


class Real:
    """The kernel that runs this test."""

    def installed(self) -> AbstractContextManager[object]:
        return nullcontext()

    def _bare(self, *sockets: socket.socket) -> Sequence[int]:
        for sock in sockets:
            sock.setblocking(False)
        return [sock.detach() for sock in sockets]

    def socketpair(self) -> Sequence[int]:
        return self._bare(*socket.socketpair())

    def tcp(self) -> Sequence[int]:
        listener = socket.create_server(("127.0.0.1", 0))
        client = socket.socket()
        client.connect(listener.getsockname())
        return self._bare(listener, client, listener.accept()[0])

    def pipe(self) -> Sequence[int]:
        return os.pipe2(os.O_NONBLOCK)

    def file(self) -> Sequence[int]:
        return [os.memfd_create("empty")]

    def dup(self, fd: int) -> int:
        return os.dup(fd)

    def shutdown(self, fd: int, how: int) -> None:
        if _shutdown(fd, how) < 0:
            raise failure("shutdown")

    def unread(self, fd: int) -> int:
        return c_int.from_buffer_copy(ioctl(fd, FIONREAD, bytes(4))).value


def program(seed: int) -> list[Step]:
    """A random program. Many of its calls fail; they must fail alike."""
    random = Random(seed)
    weights = {
        "socketpair": 2, "pipe": 2, "tcp": 1.5, "file": 0.3, "write": 11, "read": 9, "fill": 1,
        "shut": 2.5, "close": 4, "dup": 2, "register": 9, "modify": 6, "unregister": 3, "wait": 9,
    }  # fmt: skip
    calls = random.choices(list(weights), list(weights.values()), k=STEPS)
    steps = [(random.choice(("socketpair", "pipe", "tcp")), 0, 0)]
    for call in calls:
        if call in ("write", "read"):
            number = random.choice((0, 1, 3, 100, 1000))
        elif call == "shut":
            number = random.randrange(3)
        else:
            number = random.choice((0, 1, 4, 5))
        steps.append((call, random.randrange(16), number))
    return steps


class Run:
    """One program on one kernel."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.poller = Epoll()
        self.poller.open()
        self.fds: list[int] = []
        self.kinds: list[str] = []
        self.peers: list[list[int]] = []
        """For each descriptor, in the order of opening, those of the other end."""
        self.ends: list[list[int]] = []
        """For each, those of its own end, including dups, which all share the same list."""
        self.open: set[int] = set()

    def step(self, step: Step) -> Result:
        """The result of one step."""
        call, which, number = step
        try:
            if call in ("socketpair", "pipe", "tcp", "file"):
                return self._opened(call)
            fd = self.fds[which % len(self.fds)]
            # A closed number may have been reused.
            which = next((w for w in self.open if self.fds[w] == fd), which % len(self.fds))
            return getattr(self, call)(which, fd, number)
        except OSError as error:
            return errorcode[error.errno or 0]

    def _opened(self, call: str) -> Result:
        fds = getattr(self.world, call)()
        ends: list[list[int]] = [[len(self.fds) + i] for i in range(len(fds))]
        for i, fd in enumerate(fds):
            self.fds.append(fd)
            self.kinds.append("listener" if call == "tcp" and i == 0 else call)
            self.ends.append(ends[i])
            # The last two are the ends of a connection.
            pair = len(fds) - 1 + len(fds) - 2
            self.peers.append(ends[pair - i] if 0 <= pair - i < len(fds) else [])
            self.open.add(len(self.fds) - 1)
        return list(fds)

    def write(self, which: int, fd: int, number: int) -> Result:
        return libc.write(fd, b"x" * number)

    def read(self, which: int, fd: int, number: int) -> Result:
        return f"{len(libc.read(fd, number))} bytes"

    def fill(self, which: int, fd: int, number: int) -> Result:
        """Write until there is no more room, look at the mask, and empty it again: kernels differ
        in how much fits, and in how ready a half-full buffer is."""
        readers = [reader for reader in self.peers[which] if reader in self.open]
        if self.kinds[which] not in ("socketpair", "pipe") or not readers or which not in self.open:
            return None
        written = 0
        try:
            while True:
                written += libc.write(fd, bytes(4096))
        except BlockingIOError:
            full = self.masks()
        unread = 0
        try:
            while data := libc.read(self.fds[readers[0]], 65536):
                unread += len(data)
        except BlockingIOError:
            pass
        return full, unread >= written > 0

    def shut(self, which: int, fd: int, number: int) -> Result:
        if self.kinds[which] == "listener":
            return None
        self.world.shutdown(fd, socket.SHUT_WR if self.kinds[which] == "tcp" else number)
        return None

    def close(self, which: int, fd: int, number: int) -> Result:
        libc.close(fd)
        self.open.remove(which)
        return None

    def dup(self, which: int, fd: int, number: int) -> Result:
        new = self.world.dup(fd)
        self.fds.append(new)
        self.kinds.append(self.kinds[which])
        self.ends[which].append(len(self.fds) - 1)
        self.ends.append(self.ends[which])
        self.peers.append(self.peers[which])
        self.open.add(len(self.fds) - 1)
        return new

    def register(self, which: int, fd: int, number: int) -> Result:
        self.poller.register(fd, number)
        return None

    def modify(self, which: int, fd: int, number: int) -> Result:
        self.poller.modify(fd, 0, number)
        return None

    def unregister(self, which: int, fd: int, number: int) -> Result:
        self.poller.unregister(fd, 0)
        return None

    def wait(self, which: int, fd: int, number: int) -> Result:
        return sorted(self.poller.wait(1 if number == 5 else 0))

    def masks(self) -> Result:
        """poll(2)'s report on every descriptor that there ever was, and TCP's unread bytes."""
        table = (pollfd * len(self.fds))(*[pollfd(fd, 5, 0) for fd in self.fds])
        count = libc.poll(byref(table), c_ulong(len(self.fds)), 0)
        unread = [
            self.world.unread(self.fds[which])
            for which in sorted(self.open)
            if self.kinds[which] == "tcp"
        ]
        return count, [entry.revents for entry in table], unread

    def finish(self) -> None:
        """Close all open descriptors."""
        for fd in {self.fds[which] for which in self.open}:
            libc.close(fd)
        self.poller.close()


def run(
    world: World, steps: list[Step], expected: list[StepRecord] | None = None
) -> list[StepRecord]:
    """The results of all steps.

    If the masks are not as `expected`, a packet may still be on its way: they are polled until they
    agree, for at most SETTLE.
    """
    told: list[StepRecord] = []
    with world.installed():
        running = Run(world)
        try:
            for step in steps:
                result, masks = running.step(step), running.masks()
                if expected is not None and "tcp" in running.kinds:
                    deadline = time.monotonic() + SETTLE
                    while masks != expected[len(told)][2] and time.monotonic() < deadline:
                        time.sleep(0)
                        masks = running.masks()
                told.append((step, result, masks))
                if expected is not None and told[-1] != expected[len(told) - 1]:
                    break
        finally:
            running.finish()
    return told


@contextmanager
def no_holes() -> Iterator[int]:
    """For a block in which each new real descriptor has the next number; yields the first."""
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    held = [os.open(os.devnull, os.O_RDONLY)]
    try:
        while held[-1] <= highest:
            held.append(os.open(os.devnull, os.O_RDONLY))
        yield held[-1] + 1
    finally:
        for fd in held:
            os.close(fd)


def difference(seed: int) -> str | None:
    """Run program `seed` on both kernels; the first difference, if any."""
    steps = program(seed)
    with no_holes() as first_fd:
        simulated = run(Simulated(first_fd), steps)
        real = run(Real(), steps, simulated)
    if real == simulated:
        return None
    calls = "\n".join(f"  {call} -> {result}" for call, result, _ in real)
    wrong = simulated[len(real) - 1]
    return f"seed {seed}:\n{calls}\nsimulated {wrong[1:]}\nreal      {real[-1][1:]}"


@pytest.mark.parametrize("batch", range(BATCHES))
def test_random_programs_behave_the_same_on_the_simulated_and_the_real_kernel(
    batch: int,
) -> None:
    each = PROGRAMS // BATCHES
    for seed in range(batch * each, (batch + 1) * each):
        told = difference(seed)
        assert told is None, told
