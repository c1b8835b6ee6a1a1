"""The calls by which a program makes sockets and pipes itself, as the package's door has them."""

from __future__ import annotations

import socket
from ctypes import Array, c_int
from errno import ECONNREFUSED, EINPROGRESS, ENOENT
from os import O_CLOEXEC, O_NONBLOCK
from typing import TYPE_CHECKING

from tests.simkernel.errors import SimError
from tests.simkernel.files import error
from tests.simkernel.handles import Handle
from tests.simkernel.sockets import Address, Listener, StreamSocket

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.simkernel.kernel import SimKernel

NONBLOCK = getattr(socket, "SOCK_NONBLOCK", 0)


class Calls:
    """Those of one kernel; each socket is a `Handle`."""

    def __init__(self, kernel: SimKernel) -> None:
        self.kernel = kernel

    def all(self) -> dict[str, Callable[..., object]]:
        """By the door's name. macOS has no pipe2(2)."""
        calls: dict[str, Callable[..., object]] = {
            name: getattr(self, name)
            for name in ("accept", "setblocking", "socket", "connect", "getsockopt", "pipe")
        }
        return calls if self.kernel.platform == "darwin" else {**calls, "pipe2": self.pipe2}

    def accept(self, sock: Handle, /) -> tuple[Handle, Address]:
        """accept4(2)"""
        return sock.accept()

    def setblocking(self, sock: Handle, /) -> None:
        """ioctl(FIONBIO)"""
        sock.setblocking(False)

    def getsockopt(self, sock: Handle, /) -> int:
        """getsockopt(SO_ERROR)"""
        return sock.take_error()

    def socket(self, family: int, kind: int, /) -> Handle:
        """socket(2), of a TCP or a UNIX socket."""
        if kind & ~NONBLOCK != socket.SOCK_STREAM:
            raise SimError(f"socket: type {kind}")
        self.kernel.table.free()
        near = self.kernel.unconnected(family != socket.AF_UNIX)
        near.nonblocking = bool(kind & NONBLOCK)
        return Handle(self.kernel, self.kernel.open(near))

    def connect(self, sock: Handle, address: Address, /) -> None:
        """connect(2). No UNIX socket listens here. One of TCP that doesn't block is told that it goes
        on, and hears from its next wait what came of it."""
        near = sock.file
        assert isinstance(near, StreamSocket)
        if isinstance(address, str):
            raise error(ENOENT)
        near.connecting = False
        far, near.peer_name = near.peer, address
        assert far is not None
        far.name = address
        listeners = (f for f in self.kernel.table.files.values() if isinstance(f, Listener))
        listener = next((one for one in listeners if one.name == address), None)
        if listener is None:
            near.peer = None
            near.fail(ECONNREFUSED)
        else:
            listener.connected(far)
            near.stirred()
        if near.nonblocking:
            raise error(EINPROGRESS)
        if number := near.take_error():
            raise error(number)

    def pipe(self, pipefd: Array[c_int], /) -> int:
        """pipe(2), which answers as C does."""
        return self.kernel.into(pipefd, False)

    def pipe2(self, pipefd: Array[c_int], flags: int, /) -> int:
        """pipe2(2), which answers as C does."""
        if flags & ~(O_CLOEXEC | O_NONBLOCK):
            raise SimError(f"pipe2: flags {flags:#x}")
        return self.kernel.into(pipefd, bool(flags & O_NONBLOCK))
