"""A program's handle on a simulated descriptor: an object with the methods of `socket.socket`."""

from __future__ import annotations

from errno import EBADF, EINVAL, ENOTCONN, ENOTSOCK
from types import TracebackType
from typing import TYPE_CHECKING

from tests.simkernel.files import OpenFile, error
from tests.simkernel.memory import Buffer
from tests.simkernel.sockets import SHUT_RD, SHUT_RDWR, SHUT_WR, Address, Listener, StreamSocket

if TYPE_CHECKING:
    from tests.simkernel.kernel import SimKernel


class Handle:
    """A descriptor of a socket, a pipe end or a file. Each method makes one call, undisturbed."""

    def __init__(self, kernel: SimKernel, fd: int) -> None:
        self.kernel = kernel
        self._fd = fd
        self._file = kernel.table.files[fd]
        self.closes = 0
        """How often close(2) has been called on it."""

    def __repr__(self) -> str:
        return f"<Handle fd={self._fd} of {self._file}>"

    def __enter__(self) -> Handle:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def file(self) -> OpenFile:
        """The descriptor's open file, to inspect the kernel's side."""
        return self._file

    def fileno(self) -> int:
        """The descriptor; -1 once closed, as in a Python socket."""
        return self._fd

    def close(self) -> None:
        """close(2), once; a second call does nothing, as in a Python socket."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            self.closes += 1
            self.kernel.release(fd)

    def detach(self) -> int:
        """The descriptor, which no longer belongs to this handle."""
        fd, self._fd = self._fd, -1
        return fd

    def dup(self) -> Handle:
        """dup(2)"""
        return Handle(self.kernel, self.kernel.dup(self._fd))

    def _open(self) -> OpenFile:
        if self._fd < 0:
            raise error(EBADF)
        return self._file

    def _socket(self) -> StreamSocket:
        file = self._open()
        if not isinstance(file, StreamSocket):
            raise error(ENOTCONN if isinstance(file, Listener) else ENOTSOCK)
        return file

    def setblocking(self, blocking: bool) -> None:
        """fcntl(F_SETFL, O_NONBLOCK) for all descriptors of the open file."""
        self._open().nonblocking = not blocking

    def getblocking(self) -> bool:
        """True if calls on it wait."""
        return not self._open().nonblocking

    def recv(self, count: int) -> bytes:
        """recv(2)"""
        return self._open().read(count)

    def send(self, data: Buffer) -> int:
        """send(2)"""
        return self._open().write(memoryview(data).cast("B"))

    def sendall(self, data: Buffer) -> None:
        """send(2) until everything is sent."""
        rest = memoryview(data).cast("B")
        while len(rest):
            rest = rest[self.send(rest) :]

    def shutdown(self, how: int) -> None:
        """shutdown(2)"""
        if how not in (SHUT_RD, SHUT_WR, SHUT_RDWR):
            raise error(EINVAL)
        self._socket().shutdown(how)

    def reset(self) -> None:
        """Close with SO_LINGER of 0: the peer gets a reset."""
        self._socket().send_reset()
        self.close()

    def accept(self) -> tuple[Handle, Address]:
        """accept(2)"""
        file = self._open()
        if not isinstance(file, Listener):
            raise error(EINVAL if isinstance(file, StreamSocket) else ENOTSOCK)
        self.kernel.table.free()  # a full table fails before the connection is taken
        socket = file.accept()
        assert socket.peer_name is not None or socket.error
        return self.kernel.handle(self.kernel, self.kernel.open(socket)), socket.peer_name or ""

    def getsockname(self) -> Address:
        """getsockname(2)"""
        file = self._open()
        if not isinstance(file, (StreamSocket, Listener)):
            raise error(ENOTSOCK)
        return file.name

    def getpeername(self) -> Address:
        """getpeername(2)"""
        name = self._socket().peer_name
        if name is None:
            raise error(ENOTCONN)
        return name

    def take_error(self) -> int:
        """getsockopt(SO_ERROR)"""
        return self._socket().take_error()
