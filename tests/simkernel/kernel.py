"""The simulated kernel: its objects put together, and the system calls that it offers."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import Array
from errno import (
    EAGAIN,
    ECONNREFUSED,
    ECONNRESET,
    EINTR,
    EINVAL,
    EIO,
    EMFILE,
    ENFILE,
    ENOBUFS,
    ENOMEM,
    ENOSPC,
    ENOTSOCK,
    EOPNOTSUPP,
    EPERM,
    EPIPE,
    ETIMEDOUT,
)
from itertools import count
from operator import index
from resource import struct_rusage
from typing import Literal, TypeVar

from tests.simkernel import door, handles
from tests.simkernel import poll as poll_call
from tests.simkernel.clock import Clock
from tests.simkernel.epoll import ADD as EPOLL_CTL_ADD
from tests.simkernel.epoll import MOD as EPOLL_CTL_MOD
from tests.simkernel.epoll import Epoll, as_epoll
from tests.simkernel.errors import SimError
from tests.simkernel.files import OpenFile, RegularFile, Table, error
from tests.simkernel.kqueue import LAYOUTS, KQueue, as_kqueue
from tests.simkernel.luck import Luck
from tests.simkernel.memory import Buffer, c_int, memory
from tests.simkernel.pipes import PIPE_BUF, PipeEnd
from tests.simkernel.signals import Signals
from tests.simkernel.sockets import Address, Listener, StreamSocket

T = TypeVar("T")
Form = Literal["linux", "freebsd", "netbsd"]
Change = tuple[int, int, int]
"""(ident, filter, flags)"""

TICK_NS = 10_000_000
"""NetBSD's clock ticks at 100 Hz."""
F_SETFD, F_SETFL, FD_CLOEXEC = 2, 4, 1
EPOLL_CLOEXEC = os.O_CLOEXEC
IPPROTO_TCP = 6
CORK_OPTION = {"linux": 3, "freebsd": 4, "darwin": 4, "dragonfly": 4, "openbsd": 0x10}
"""TCP_CORK or TCP_NOPUSH, where it is defined; libkqueue runs on Linux."""


class SimKernel:
    """A kernel for one process, in which `seed` decides everything.

    `form` selects the rules: "linux" has epoll and poll, "freebsd" and "netbsd" have kqueue and
    poll. `platform` names the layout of struct kevent (the form's own, or that of another platform
    with the same rules). `noise` and `harm` are the probabilities of `Luck`; at 0 the kernel does
    everything at once, in order, and never fails. A `strict` kernel fails the test if a closed
    descriptor is used; otherwise the call fails with EBADF, for tests of exactly that.
    """

    NO_MEMORY = (ENOMEM,)

    def __init__(
        self,
        seed: int = 0,
        form: Form | None = None,
        platform: str | None = None,
        *,
        noise: float = 0.0,
        harm: float = 0.0,
        strict: bool = True,
        capacity: int = 65536,
        first_fd: int = 3,
        limit: int = 1024,
    ) -> None:
        if form is None:
            form = "linux" if platform is None else _form_of(platform)
        self.form: Form = form
        self.platform = platform or form
        self.rules: Form = "linux" if self.platform == "libkqueue" else form
        """The system whose sockets, pipes and poll(2) are simulated: libkqueue runs on Linux."""
        if form != "linux" and self.platform not in LAYOUTS:
            raise ValueError(f"no layout for {platform!r}; known are {', '.join(sorted(LAYOUTS))}")
        self.luck = Luck(seed, noise, harm)
        self.strict = strict
        self.capacity = capacity
        self.clock = Clock()
        self.table = Table(first_fd, limit)
        self.kqueues: list[KQueue] = []
        self.inodes = count(1)
        self.steps = 0
        """How many calls have been made."""
        self.changes: list[list[Change]] = []
        """The change list of each kevent call that had one."""
        self.epipe_at_registration = False
        """True to return what macOS may return when the peer of a registered descriptor is gone."""
        self.entry_points = door.EntryPoints(self)
        """`kqueue`, `kevent`, `fcntl` and `close`, for `KQueue(library, platform)`."""
        self.signals = Signals(self, seed)
        self.elsewhere: dict[Address, Callable[[StreamSocket], object] | None] = {}
        """Other addresses to connect to than the listeners of this process, and the function that
        takes the other side of a connection; None if nothing answers at the address."""
        self.handle: Callable[[SimKernel, int], handles.Handle] = handles.Handle
        """The class of sockets that the program makes or accepts."""
        self.waits = 0
        """How many waits have begun."""
        self.found = False
        """True if the last wait found something."""
        self._ports = 40000

    @contextmanager
    def installed(self) -> Iterator[SimKernel]:
        """Inside, the whole package runs on this kernel."""
        with door.replaced(self):
            yield self

    # --- making descriptors -----------------------------------------------------------------------

    def open(self, file: OpenFile) -> int:
        """A new descriptor for `file`. Raises `OSError` (EMFILE)."""
        return self.table.add(file)

    def socketpair(self, tcp: bool = False) -> tuple[handles.Handle, handles.Handle]:
        """Two connected blocking sockets, as socketpair(2) makes them, or with TCP's behaviour."""
        self.table.free(2)
        names = self._addresses() if tcp else ("", "")
        one, two = self._connection(*names, tcp)
        return handles.Handle(self, self.open(one)), handles.Handle(self, self.open(two))

    def _addresses(self) -> tuple[Address, Address]:
        self._ports += 2
        return ("127.0.0.1", self._ports), ("127.0.0.1", self._ports + 1)

    def _connection(
        self, name: Address, peer: Address, tcp: bool = True
    ) -> tuple[StreamSocket, StreamSocket]:
        one = StreamSocket(self, tcp, self._capacity(), name, peer)
        two = StreamSocket(self, tcp, self._capacity(), peer, name)
        one.peer, two.peer = two, one
        return one, two

    def _capacity(self) -> int:
        if not self.luck.noise:
            return self.capacity
        return int(2 ** self.luck.random.uniform(3, 14))

    def pipe(self) -> tuple[handles.Handle, handles.Handle]:
        """The read end and the write end of a blocking pipe."""
        self.table.free(2)
        buffer = bytearray()
        capacity = max(self._capacity(), PIPE_BUF) if self.luck.noise else self.capacity
        ends = [PipeEnd(self, buffer, capacity, writes) for writes in (False, True)]
        ends[0].other, ends[1].other = ends[1], ends[0]
        return handles.Handle(self, self.open(ends[0])), handles.Handle(self, self.open(ends[1]))

    def file(self) -> handles.Handle:
        """A regular file, which epoll refuses."""
        return handles.Handle(self, self.open(RegularFile(self)))

    def listener(self) -> handles.Handle:
        """A blocking TCP listener on 127.0.0.1."""
        self._ports += 1
        return handles.Handle(self, self.open(Listener(self, ("127.0.0.1", self._ports))))

    def connect(self, listener: handles.Handle) -> handles.Handle:
        """A blocking TCP socket connected to `listener`. Raises `OSError`."""
        file = self.table.get(listener.fileno(), self.strict, "connect")
        if not isinstance(file, Listener):
            raise error(ECONNREFUSED)
        self._ports += 1
        near, far = self._connection(("127.0.0.1", self._ports), file.name)
        self.table.free()
        file.connected(far)
        return handles.Handle(self, self.open(near))

    def connecting(self) -> tuple[handles.Handle, Callable[[int], handles.Handle | None]]:
        """A non-blocking TCP socket that is connecting, and a function that ends that: with 0 it
        returns the other side, with an errno it makes the connect fail."""
        self.table.free()
        near, far = self._connection(*self._addresses())
        near.nonblocking = near.connecting = True
        handle = handles.Handle(self, self.open(near))

        def end(number: int = 0) -> handles.Handle | None:
            near.connecting = False
            if number:
                near.fail(number)
                return None
            near.stirred()
            return handles.Handle(self, self.open(far))

        return handle, end

    def unconnected(self, tcp: bool) -> StreamSocket:
        """A socket that is to connect; its peer has no owner yet."""
        names = self._addresses() if tcp else ("", "")
        near, _ = self._connection(*names, tcp)
        near.connecting = near.unconnected = True
        return near

    def port(self) -> Address:
        """An address on which nobody listens yet."""
        self._ports += 1
        return ("127.0.0.1", self._ports)

    def into(self, pipefd: Array[ctypes.c_int], nonblocking: bool) -> int:
        """Make a pipe and put its descriptors into `pipefd`. Returns as in C."""

        def body() -> int:
            if number := self.luck.failure("pipe", EMFILE, ENFILE):
                raise error(number)
            for place, end in enumerate(self.pipe()):
                end.setblocking(not nonblocking)
                pipefd[place] = end.detach()
            return 0

        return self._c(body)

    def dup(self, fd: int) -> int:
        """dup(2). Raises `OSError`."""
        return self.table.add(self.get(fd, "dup"))

    def get(self, fd: int, call: str) -> OpenFile:
        """The open file of a descriptor. Raises `OSError` (EBADF)."""
        return self.table.get(c_int(fd, f"{call}: fd"), self.strict, call)

    # --- waiting ----------------------------------------------------------------------------------

    def wait(self, ready: Callable[[], T], timeout_ms: int, what: str) -> T:
        """Block until `ready()` is true; `timeout_ms` is as in poll(2). Raises `OSError`."""
        return self.wait_ns(ready, None if timeout_ms < 0 else timeout_ms * 1_000_000, what)

    def wait_ns(self, ready: Callable[[], T], timeout_ns: int | None, what: str) -> T:
        """Block until `ready()` is true or `timeout_ns` is over. Raises `OSError`."""
        self.waits += 1
        self.found = False
        if number := self.luck.failure(what, *self.NO_MEMORY):
            raise error(number)
        if self.luck.noisy(f"EINTR from {what}"):
            raise error(EINTR)
        if timeout_ns and self.rules == "netbsd":
            # Whole ticks of its clock, and one more for the current one.
            timeout_ns = (-(-timeout_ns // TICK_NS) + 1) * TICK_NS - self.clock.now_ns % TICK_NS
        if not self.signals.handlers:
            answer = self.clock.wait(ready, timeout_ns, what)
            self.found = bool(answer)
            return answer

        def ready_or_interrupted() -> T:
            if self.signals.pending:
                raise error(EINTR)
            return ready()

        try:
            answer = self.clock.wait(ready_or_interrupted, timeout_ns, what)
            self.found = bool(answer)
            return answer
        finally:
            self.signals.handle()

    # --- the calls that raise ---------------------------------------------------------------------

    def read(self, fd: int, count: int, /) -> bytes:
        """read(2), as `os.read`."""
        self.steps += 1
        file = self.get(fd, "read")
        if index(count) < 0:
            raise error(EINVAL)
        self._disturb(file, "read", count, ECONNRESET, ETIMEDOUT)
        return file.read(count)

    def write(self, fd: int, data: Buffer, /) -> int:
        """write(2), as `os.write`."""
        self.steps += 1
        file = self.get(fd, "write")
        view = memoryview(data).cast("B")
        self._disturb(file, "write", len(view), ECONNRESET, EPIPE, ETIMEDOUT, ENOBUFS)
        return file.write(view)

    def _disturb(self, file: OpenFile, call: str, size: int, *numbers: int) -> None:
        if not isinstance(file, StreamSocket):
            # A pipe allocates a page for the data written (pipe_write).
            if call == "write" and (number := self.luck.failure("write to a pipe", ENOMEM)):
                raise error(number)
            return
        if number := self.luck.failure(call, *numbers):
            if number != ENOBUFS:
                file.fail(number)
                file.take_error()
            raise error(number)
        if size and file.nonblocking and self.luck.noisy(f"EAGAIN from {call}"):
            raise error(EAGAIN)

    def close(self, fd: int, /) -> None:
        """close(2), as `os.close`. The number is free afterwards, even if the call fails."""
        self.release(fd)
        if number := self.luck.failure("close", EIO):
            raise error(number)

    def release(self, fd: int) -> None:
        """close(2), which never fails on an open descriptor."""
        self.steps += 1
        self.get(fd, "close")
        for kq in self.kqueues:
            kq.forget(fd)
        file = self.table.remove(fd)
        if not file.descriptors:
            for epoll, number in file.watchers:
                epoll.forget(number, file)
            file.watchers.clear()
            file.released()

    def fstat(self, fd: int, /) -> os.stat_result:
        """fstat(2), as `os.fstat`; only the mode and the inode mean anything. The BSDs have no
        inode for a TCP socket (soo_stat), and NetBSD and OpenBSD none for a pipe (pipe_stat)."""
        self.steps += 1
        file = self.get(fd, "fstat")
        return os.stat_result((file.mode, file.inode if self.rules == "linux" else 0, *[0] * 8))

    def clock_gettime(self, clock: int, /) -> float:
        """clock_gettime(2), as `time.clock_gettime`."""
        if clock != time.CLOCK_MONOTONIC:
            raise SimError(f"clock_gettime: clock {clock} may jump")
        return self.clock.now_ns / 1e9

    def getrusage(self, who: int, /) -> struct_rusage:
        """getrusage(2), as `resource.getrusage`: a microsecond of user time for each call made."""
        return struct_rusage((self.steps / 1e6, *[0.0], *[0] * 14))

    # --- the calls that return as in C ------------------------------------------------------------

    def _c(self, body: Callable[[], int]) -> int:
        """The result of `body`, or -1 with errno set if it raises."""
        self.steps += 1
        try:
            return body()
        except OSError as failure:
            ctypes.set_errno(failure.errno or EINVAL)
            return -1

    def epoll_create1(self, flags: int, /) -> int:
        """epoll_create1(2)"""
        if flags != EPOLL_CLOEXEC:
            raise SimError(f"epoll_create1: flags {flags:#x}")
        return self._c(lambda: self._poller("epoll_create1", Epoll))

    def _poller(self, call: str, kind: type[OpenFile]) -> int:
        if number := self.luck.failure(call, EMFILE, ENFILE, ENOMEM):
            raise error(number)
        return self.open(kind(self))

    def epoll_ctl(self, epfd: int, op: int, fd: int, event: object, /) -> int:
        """epoll_ctl(2)"""

        def body() -> int:
            poller, file = self.get(epfd, "epoll_ctl"), self.get(fd, "epoll_ctl")
            if op == EPOLL_CTL_ADD and (number := self.luck.failure("epoll_ctl", ENOMEM, ENOSPC)):
                raise error(number)
            if op == EPOLL_CTL_MOD and isinstance(file, Listener):
                if number := self.luck.failure("epoll_ctl MOD", ENOMEM):
                    raise error(number)
            if not file.pollable:
                raise error(EPERM)
            as_epoll(poller).control(c_int(op, "epoll_ctl: op"), fd, file, event)
            return 0

        return self._c(body)

    def epoll_wait(self, epfd: int, events: object, most: int, timeout: object, /) -> int:
        """epoll_wait(2)"""
        timeout_ms = c_int(timeout, "epoll_wait: timeout")
        return self._c(
            lambda: as_epoll(self.get(epfd, "epoll_wait")).wait(
                events, c_int(most, "epoll_wait: maxevents"), timeout_ms
            )
        )

    def poll(self, fds: object, nfds: object, timeout: object, /) -> int:
        """poll(2)"""
        return self._c(lambda: poll_call.poll(self, fds, nfds, c_int(timeout, "poll: timeout")))

    def kqueue(self) -> int:
        """kqueue(2)"""
        if self.form == "linux":
            raise SimError("kqueue: this kernel has none")

        def body() -> int:
            fd = self._poller("kqueue", KQueue)
            self.kqueues.append(as_kqueue(self.table.files[fd]))
            return fd

        return self._c(body)

    def kevent(
        self,
        kq: int,
        changes: object,
        nchanges: object,
        events: object,
        room: object,
        limit: object,
        /,
    ) -> int:
        """kevent(2)"""
        return self._c(
            lambda: as_kqueue(self.get(kq, "kevent")).kevent(changes, nchanges, events, room, limit)
        )

    def note_changes(self, kq: KQueue, changes: list[Change]) -> None:
        """Record a change list for tests that check the calls."""
        if changes:
            self.changes.append(changes)

    def setsockopt(self, fd: int, level: int, option: int, value: object, size: int, /) -> int:
        """setsockopt(2), for TCP_CORK and TCP_NOPUSH."""
        if (level, option, size) != (IPPROTO_TCP, CORK_OPTION.get(self.platform), 4):
            raise SimError(f"setsockopt: level {level}, option {option}, {size} bytes")
        on = memory(value, 4, "setsockopt: optval")

        def body() -> int:
            file = self.get(fd, "setsockopt")
            if not isinstance(file, (StreamSocket, Listener)):
                raise error(ENOTSOCK)
            if isinstance(file, StreamSocket):
                if not file.tcp:
                    raise error(EOPNOTSUPP)
                if number := file.refused_option():
                    raise error(number)
                if number := self.luck.failure("setsockopt", ENOBUFS):
                    raise error(number)
                file.set_cork(any(on))
            return 0

        return self._c(body)

    def fcntl(self, fd: int, op: int, arg: int, /) -> int:
        """fcntl(2), for F_SETFD and F_SETFL."""
        if (op, arg) not in ((F_SETFD, FD_CLOEXEC), (F_SETFL, os.O_NONBLOCK)):
            raise SimError(f"fcntl: op {op}, argument {arg}")

        def body() -> int:
            file = self.get(fd, "fcntl")
            if op == F_SETFL:
                file.nonblocking = True
            return 0

        return self._c(body)


def _form_of(platform: str) -> Form:
    if platform == "linux":
        return "linux"
    return "netbsd" if platform.startswith("netbsd") else "freebsd"
