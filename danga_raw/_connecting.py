"""Connecting: a socket whose connect(2) has begun, until the kernel says what came of it."""

from __future__ import annotations

import _socket
import os
import sys
from errno import EINPROGRESS, EINTR, ETIMEDOUT

from danga_raw._handle import close_fds
from danga_raw._interrupt import by_handler
from danga_raw._libc import libc
from danga_raw._poll import POLLOUT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from socket import socket as PythonSocket
    from typing import Final

    from danga_raw.timers import Timer
    from danga_raw.types import AnySocket, SocketAddress

_PENDING: Final = (EINPROGRESS, EINTR)
"""What connect(2) answers where it goes on by itself."""

_NONBLOCK: Final[int] = getattr(_socket, "SOCK_NONBLOCK", 0)

_PATH_BYTES: Final = 108 if sys.platform == "linux" else 104
"""The room for a path in a `sockaddr_un` (unix(7); 104 on the BSDs and macOS)."""

_BITS: Final = (16, 20, 32)
"""Of a port, a flow label and a scope id."""


def family(address: SocketAddress) -> int:
    """The address family of an address. Raises `ValueError` for a name, which is not looked up, as
    that could take any time, and for a port or a path that can't be; `TypeError` for what is no
    address."""
    match address:
        case str() | bytes():
            path = os.fsencode(address)
            abstract = path[:1] == b"\0"
            # Of a path with a NUL in it the kernel would take what is before that.
            if len(path) - abstract >= _PATH_BYTES or (b"\0" in path and not abstract):
                what = (
                    f"the path of a UNIX socket has up to {_PATH_BYTES - 1} bytes, none of them NUL"
                )
                raise ValueError(f"{what}: {address!r}")
            return _socket.AF_UNIX
        case (str(host), int()) | (str(host), int(), int(), int()):
            kind = _socket.AF_INET6 if ":" in host else _socket.AF_INET
            try:
                _socket.inet_pton(kind, host)
            except OSError:
                what = f"connect takes an IP address, which {host!r} is not"
                raise ValueError(f"{what}: if it is a name, look it up first") from None
            if kind == _socket.AF_INET and len(address) > 2:
                raise ValueError(f"an IPv4 address is (ip, port): {address!r}")
            if not all(0 <= number < 1 << bits for number, bits in zip(address[1:], _BITS)):
                raise ValueError(f"a port has 16 bits, a flow label 20, a scope id 32: {address!r}")
            return kind
        case _:
            raise TypeError(f"an address is (ip, port), or a path as str or bytes: {address!r}")


def begin(address: SocketAddress, made: list[PythonSocket]) -> OSError | None:
    """Put a socket into `made` that doesn't block and has begun to connect; the error if it has
    failed already: socket(2) and connect(2). Raises `OSError` where there is no socket to be had
    (EMFILE)."""
    made += map(libc.socket, (family(address),), (_socket.SOCK_STREAM | _NONBLOCK,))
    try:
        if not _NONBLOCK:
            libc.setblocking(made[0])
        libc.connect(made[0], address)
    except OSError as error:
        # What a signal's handler raises, a TimeoutError perhaps, is no outcome of the connect.
        if by_handler(error):
            raise
        if isinstance(address, (str, bytes)):
            error.filename = address  # It may have been meant for a name, and no path.
        return None if error.errno in _PENDING else error
    return None


def drop(sock: PythonSocket) -> None:
    """Close a socket that nobody gets, unless it is closed already: close(2)."""
    if (fd := sock.detach()) >= 0:
        close_fds((fd,))


begun: Final[dict[int, Connecting]] = {}
"""What has begun to connect and has no object yet, by its descriptor."""


class Connecting:
    """A connect that is pending, and the object that waits for it."""

    __slots__ = ("_fd", "_obj", "_outcome", "_pending", "_timer", "_told")

    def __init__(self, error: OSError | None) -> None:
        """`error` is that of a connect that has failed at once."""
        self._outcome: list[OSError | int] = [] if error is None else [error]
        """Once it is known, the error or its number, 0 where it is connected: what getsockopt(SO_ERROR)
        says, the kernel tells once."""
        self._obj: AnySocket | None = None
        self._timer: Timer | None = None
        self._told = False

    def attach(self, obj: AnySocket, fd: int, pending: dict[int, Connecting]) -> None:
        """Be the connect that `obj` waits for. From here on what it writes is queued."""
        self._obj, self._fd, self._pending = obj, fd, pending
        pending[fd] = self

    def _waiting(self) -> AnySocket | None:
        """The object, until it is told or closed."""
        obj = self._obj
        return obj if obj is not None and self._pending.get(self._fd) is self else None

    def start(self, timeout: float | None) -> None:
        """Watch for the outcome; tell an error that is known in the next turn, and a TimeoutError in
        so many seconds."""
        obj = self._waiting()
        if obj is None:  # Its constructor has closed it.
            return
        if self._outcome:
            obj.loop.call_soon(self._tell)
            return
        theirs = obj.event_watch & POLLOUT  # A watch of the constructor's own outlives the connect.
        # Not by its watch_write, which may have its own ideas of when.
        obj._watch(POLLOUT, True)  # pyright: ignore[reportPrivateUsage]
        obj.write_set_watch = not theirs
        if timeout is not None:
            self._timer = obj.loop.add_timer(timeout, self._tell)

    def finish(self) -> None:
        """There is an event: ask for the outcome by getsockopt(SO_ERROR), unless it is known. A socket
        whose connect has failed at once is hung up too, and has no SO_ERROR."""
        obj = self._waiting()
        if obj is not None and obj.sock is not None and not self._outcome:
            self._outcome += map(libc.getsockopt, (obj.sock,))
        self._tell()

    def resume(self) -> None:
        """Tell the outcome, if an exception has come before it was told."""
        obj, timer = self._waiting(), self._timer
        if obj is not None and (self._outcome or (timer is not None and timer.callback is None)):
            obj.loop.call_soon(self._tell)

    def _tell(self) -> None:
        """Tell the object the outcome, unless it was closed; it is told once. Where none is known it is
        the timer that calls this."""
        obj = self._waiting()
        if obj is None:
            return
        if not self._outcome:
            self._outcome += (ETIMEDOUT,)
        error: OSError | int | None = self._outcome[0]
        if isinstance(error, int):
            error = OSError(error, os.strerror(error)) if error else None
        self.cancel()
        if error is None and obj.write_set_watch and not obj.write_buf:
            # What was written meanwhile is queued, and keeps the watch until it is out. Not by its
            # watch_write, which keeps it until this is told.
            obj._watch(POLLOUT, False)  # pyright: ignore[reportPrivateUsage]
            obj.write_set_watch = False
        try:
            if not self._told:
                # No call until it is told, so that it is told once. One that has failed stays pending
                # until it is closed.
                self._told = True
                if error is None:
                    del self._pending[self._fd]
                obj.event_connect(error)
        finally:
            if error is not None and obj.fd == self._fd:
                obj.close_as("not connected")
        # What is queued is left to event_write, by which those go on who were refused a write.
        obj._go_direct()  # pyright: ignore[reportPrivateUsage]

    def cancel(self) -> None:
        """Cancel the timeout, if there is one."""
        if self._timer is not None:
            self._timer.cancel()
