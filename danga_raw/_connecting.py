"""Connecting: from connect(2) until its outcome is known."""

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
"""The errors of connect(2) after which it continues by itself."""

_NONBLOCK: Final[int] = getattr(_socket, "SOCK_NONBLOCK", 0)

_PATH_BYTES: Final = 108 if sys.platform == "linux" else 104
"""The room for a path in a `sockaddr_un` (unix(7); 104 on the BSDs and macOS)."""

_BITS: Final = (16, 20, 32)
"""The sizes of a port, a flow label and a scope id."""


def family(address: SocketAddress) -> int:
    """The address family of an address. Raises `ValueError` for a host name, which is not looked up
    because that could take any time, and for an impossible port or path; `TypeError` if it is not
    an address."""
    match address:
        case str() | bytes():
            path = os.fsencode(address)
            abstract = path[:1] == b"\0"
            # The kernel would cut a path at a NUL.
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
    """Append to `made` a non-blocking socket that has begun to connect. Returns the error if it has
    already failed. Calls socket(2) and connect(2). Raises `OSError` if there can be no socket
    (EMFILE)."""
    made += map(libc.socket, (family(address),), (_socket.SOCK_STREAM | _NONBLOCK,))
    try:
        if not _NONBLOCK:
            libc.setblocking(made[0])
        libc.connect(made[0], address)
    except OSError as error:
        # An exception from a signal's handler, such as a TimeoutError, is not the outcome.
        if by_handler(error):
            raise
        if isinstance(address, (str, bytes)):
            error.filename = address  # It may have been meant as a name.
        return None if error.errno in _PENDING else error
    return None


def drop(sock: PythonSocket) -> None:
    """Close a socket that nobody takes, unless it is already closed: close(2)."""
    if (fd := sock.detach()) >= 0:
        close_fds((fd,))


begun: Final[dict[int, Connecting]] = {}
"""Connects that have begun but have no object yet, by fd."""


class Connecting:
    """A pending connect, and the object that waits for it."""

    __slots__ = ("_fd", "_obj", "_outcome", "_pending", "_timer", "_told")

    def __init__(self, error: OSError | None) -> None:
        """`error` is set if the connect has failed immediately."""
        self._outcome: list[OSError | int] = [] if error is None else [error]
        """Once known, the error, or its errno, which is 0 if connected. The kernel reports SO_ERROR
        only once."""
        self._obj: AnySocket | None = None
        self._timer: Timer | None = None
        self._told = False

    def attach(self, obj: AnySocket, fd: int, pending: dict[int, Connecting]) -> None:
        """Become the connect that `obj` waits for. From now on, what it writes is queued."""
        self._obj, self._fd, self._pending = obj, fd, pending
        pending[fd] = self

    def _waiting(self) -> AnySocket | None:
        """The object, until it has the outcome or is closed."""
        obj = self._obj
        return obj if obj is not None and self._pending.get(self._fd) is self else None

    def start(self, timeout: float | None) -> None:
        """Watch for the outcome, which is a TimeoutError after `timeout` seconds. An error that is
        already known is reported in the next turn."""
        obj = self._waiting()
        if obj is None:  # Its constructor has closed it.
            return
        if self._outcome:
            obj.loop.call_soon(self._tell)
            return
        theirs = obj.event_watch & POLLOUT  # A watch set by the constructor outlasts the connect.
        # Not by `watch_write`, which a subclass may override to delay the watch.
        obj._watch(POLLOUT, True)  # pyright: ignore[reportPrivateUsage]
        obj.write_set_watch = not theirs
        if timeout is not None:
            self._timer = obj.loop.add_timer(timeout, self._tell)

    def finish(self) -> None:
        """Handle an event: get the outcome by getsockopt(SO_ERROR), unless it is known. A socket
        whose connect failed immediately has a hang-up too, and no SO_ERROR."""
        obj = self._waiting()
        if obj is not None and obj.sock is not None and not self._outcome:
            self._outcome += map(libc.getsockopt, (obj.sock,))
        self._tell()

    def resume(self) -> None:
        """Report the outcome if an exception has prevented that."""
        obj, timer = self._waiting(), self._timer
        if obj is not None and (self._outcome or (timer is not None and timer.callback is None)):
            obj.loop.call_soon(self._tell)

    def _tell(self) -> None:
        """Report the outcome to the object, once, unless it was closed. If none is known yet, this
        is called by the timer."""
        obj = self._waiting()
        if obj is None:
            return
        error: OSError | int | None = self._outcome[0] if self._outcome else ETIMEDOUT
        if isinstance(error, int):
            error = OSError(error, os.strerror(error)) if error else None
        self.cancel()
        if error is None and obj.write_set_watch and not obj.write_buf:
            # If something was queued meanwhile, the watch stays until it is written. Not by
            # `watch_write`, which keeps the watch until the outcome is reported.
            obj._watch(POLLOUT, False)  # pyright: ignore[reportPrivateUsage]
            obj.write_set_watch = False
        try:
            if not self._told:
                # No call before event_connect, so that it is called once. A failed connect stays
                # pending until the object is closed.
                self._told = True
                if error is None:
                    del self._pending[self._fd]
                obj.event_connect(error)
        finally:
            if error is not None and obj.fd == self._fd:
                obj.close_as("not connected")
        # What is queued is left to event_write, which also lets the writer continue.
        obj._go_direct()  # pyright: ignore[reportPrivateUsage]

    def cancel(self) -> None:
        """Cancel the timeout, if there is one."""
        if self._timer is not None:
            self._timer.cancel()
