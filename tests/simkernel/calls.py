"""The calls with which the program itself makes sockets and pipes, with the door's interface."""

from __future__ import annotations

import socket
from ctypes import Array, c_int
from errno import (
    EADDRNOTAVAIL,
    EAGAIN,
    ECONNREFUSED,
    ECONNRESET,
    EHOSTUNREACH,
    EINPROGRESS,
    EMFILE,
    ENETUNREACH,
    ENFILE,
    ENOBUFS,
    ENOENT,
    ENOMEM,
    ETIMEDOUT,
)
from functools import partial
from os import O_CLOEXEC, O_NONBLOCK
from typing import TYPE_CHECKING

from tests.simkernel.errors import SimError
from tests.simkernel.files import error
from tests.simkernel.handles import Handle
from tests.simkernel.signals import Handler
from tests.simkernel.sockets import Address, Listener, StreamSocket

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.simkernel.kernel import SimKernel

NONBLOCK = getattr(socket, "SOCK_NONBLOCK", 0)

AT_ONCE = (EADDRNOTAVAIL, ENETUNREACH)
AT_ONCE_UNIX = (EAGAIN, ECONNREFUSED)
"""The errors with which connect(2) may fail at once."""
LATER = (ECONNREFUSED, ECONNRESET, EHOSTUNREACH, ETIMEDOUT)
"""The possible errors of a connect in progress."""
SILENCE_NS = 600_000_000
"""How long an unanswered connect stays in progress."""


class Calls:
    """The calls of one kernel; each socket is a `Handle`."""

    def __init__(self, kernel: SimKernel) -> None:
        self.kernel = kernel

    def all(self) -> dict[str, Callable[..., object]]:
        """The calls by the door's names. macOS has no pipe2(2)."""
        calls: dict[str, Callable[..., object]] = {
            name: getattr(self, name)
            for name in "accept setblocking socket connect getsockopt pipe signal".split()
        }
        return calls if self.kernel.platform == "darwin" else {**calls, "pipe2": self.pipe2}

    def signal(self, number: int, handler: Handler | int, /) -> object:
        """rt_sigaction(2), as `signal.signal`"""
        return self.kernel.signals.signal(number, handler)

    def accept(self, sock: Handle, /) -> tuple[Handle, Address]:
        """accept4(2)"""
        self.kernel.steps += 1
        return sock.accept()

    def setblocking(self, sock: Handle, /) -> None:
        """ioctl(FIONBIO)"""
        sock.setblocking(False)

    def getsockopt(self, sock: Handle, /) -> int:
        """getsockopt(SO_ERROR)"""
        self._fail("getsockopt", ENOBUFS)
        return sock.take_error()

    def socket(self, family: int, kind: int, /) -> Handle:
        """socket(2), of a TCP or a UNIX socket."""
        if kind & ~NONBLOCK != socket.SOCK_STREAM:
            raise SimError(f"socket: type {kind}")
        self._fail("socket", EMFILE, ENFILE, ENOBUFS, ENOMEM)
        self.kernel.table.free()
        near = self.kernel.unconnected(family != socket.AF_UNIX)
        near.nonblocking = bool(kind & NONBLOCK)
        return self.kernel.handle(self.kernel, self.kernel.open(near))

    def _fail(self, call: str, *numbers: int) -> None:
        self.kernel.steps += 1
        if number := self.kernel.luck.failure(call, *numbers):
            raise error(number)

    def connect(self, sock: Handle, address: Address, /) -> None:
        """connect(2). A UNIX socket connects or fails at once. A non-blocking TCP socket gets
        EINPROGRESS, and a later wait reports the outcome."""
        near = sock.file
        assert isinstance(near, StreamSocket)
        try:
            self._begin(near, address)
        except OSError as failure:
            near.outcome = failure.errno
            raise
        if near.nonblocking and near.tcp:
            raise error(EINPROGRESS)
        if number := near.take_error():
            raise error(number)

    def _begin(self, near: StreamSocket, address: Address) -> None:
        clock = self.kernel.clock
        self._fail("connect", *(AT_ONCE if near.tcp else AT_ONCE_UNIX))
        far, near.peer_name = near.peer, address
        assert far is not None
        far.name = address
        taker = self._taker(address)
        if not near.tcp:
            if taker is None:
                raise error(ENOENT)
            taker(far)
            near.connecting = near.unconnected = False
            near.outcome = 0
            return
        near.unconnected = False

        def settle(number: int) -> None:
            if near.dead:
                return
            near.connecting = False
            number = number or self.kernel.luck.failure("connecting", *LATER)
            try:
                if not number and taker is not None:
                    taker(far)
            except OSError as refused:
                number = refused.errno or ECONNREFUSED
            near.outcome = number
            if number:
                near.peer = None
                near.fail(number)
            else:
                near.stirred()

        if taker is None and address in self.kernel.elsewhere:
            clock.after(SILENCE_NS, partial(settle, ETIMEDOUT))
        elif delay := self.kernel.luck.delay_ns():
            clock.after(delay, partial(settle, 0 if taker else ECONNREFUSED))
        else:
            settle(0 if taker else ECONNREFUSED)

    def _taker(self, address: Address) -> Callable[[StreamSocket], object] | None:
        if address in self.kernel.elsewhere:
            return self.kernel.elsewhere[address]
        for file in self.kernel.table.files.values():
            if isinstance(file, Listener) and file.name == address:
                return file.connected
        return None

    def pipe(self, pipefd: Array[c_int], /) -> int:
        """pipe(2), which returns as in C."""
        return self.kernel.into(pipefd, False)

    def pipe2(self, pipefd: Array[c_int], flags: int, /) -> int:
        """pipe2(2), which returns as in C."""
        if flags & ~(O_CLOEXEC | O_NONBLOCK):
            raise SimError(f"pipe2: flags {flags:#x}")
        return self.kernel.into(pipefd, bool(flags & O_NONBLOCK))
