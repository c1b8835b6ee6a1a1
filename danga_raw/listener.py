"""A socket that accepts connections."""

from __future__ import annotations

import errno

from danga_raw._connecting import drop
from danga_raw._libc import libc
from danga_raw._log import debug, warn
from danga_raw._mistakes import check_callback
from danga_raw._poll import POLLIN
from danga_raw.loop import registry_of
from danga_raw.socket import Socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from socket import socket as PythonSocket
    from typing import Final

    from danga_raw.loop import Loop
    from danga_raw.timers import Timer
    from danga_raw.types import Accepted

AT_ONCE: Final = 64
"""The most connections accepted in one batch, so that existing connections get their turn."""

PAUSE: Final = 0.5
"""Seconds after which a listener without a free descriptor tries again, if none closes before."""

_PASSED_BY: Final = {
    *(errno.ECONNABORTED, errno.ECONNRESET, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.EINTR),
    *(errno.ENETDOWN, errno.ENETUNREACH, getattr(errno, "ENONET", 0), errno.ENOPROTOOPT),
    *(errno.EPERM, errno.EPROTO, errno.ETIMEDOUT),
}
"""Errors of one connection, which is gone; the next one may be fine (accept(2), "Error handling";
EPERM comes from a firewall, and only Linux has ENONET)."""

_NO_ROOM: Final = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
"""The system has no descriptor or memory for a connection at the moment."""


class Listener(Socket):
    """A listening socket that passes each new connection to a function.

    The caller makes the socket (`socket.create_server`), with its backlog and options; any family
    of stream sockets will do. If the system has no descriptor or memory for a connection, the
    listener pauses, and resumes when one of the loop's sockets has closed, or after half a second.
    """

    __slots__ = {
        "_retry": "The timer that ends a pause.",
        "accepted": "Called with each connection, non-blocking, and its address from accept(2).",
    }

    def __init__(self, sock: PythonSocket, accepted: Accepted, loop: Loop | None = None) -> None:
        """Listen on `sock`, which is made non-blocking, and call `accepted(connection, address)`.
        If that raises, the connection is closed, the exception is handled like that of an event
        handler, and the listener continues.

        Calls ioctl(FIONBIO) and the calls of `Socket`; then for each connection accept4(2),
        getsockname(2) (to make a Python socket) and ioctl(FIONBIO), and an accept4(2) that finds
        none. Raises `TypeError` for a callback that can't be called, and for a socket with its own
        protocol (TLS: wrap the connections); `OSError` as `Socket` does.
        """
        check_callback("accepted", accepted)
        if not hasattr(sock, "accept"):
            raise TypeError(f"a Listener takes a listening socket, not {sock!r}")
        if getattr(sock.accept, "__module__", None) == "ssl":
            raise TypeError(f"a Listener takes a plain socket: wrap what it accepts, not {sock!r}")
        self.accepted: Accepted = accepted
        self._retry: Timer | None = None
        libc.setblocking(sock)
        try:
            super().__init__(sock, loop)
            self.watch_read(True)
        except BaseException:
            self._withdraw()  # Nobody has it, and the socket is the caller's.
            raise

    def _watch(self, event: int, on: bool) -> None:
        paused = registry_of(self.loop).paused
        super()._watch(event, on)
        if self.fd is not None and event == POLLIN:
            paused.pop(self.fd, None)  # An explicit watch ends the pause.

    def event_read(self) -> None:
        """accept4(2) until no connection is waiting, at most 64, and pass each on."""
        for _ in range(AT_ONCE):
            sock = self.sock
            # `accepted` may have closed the listener, or stopped it for now.
            if sock is None or not self.event_watch & POLLIN:
                return
            try:
                connection, address = libc.accept(sock)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _PASSED_BY:
                    continue
                return self.__pause(error)
            if self._retry is not None:
                self._retry.cancel()
                self._retry = None
            try:
                libc.setblocking(connection)
                self.accepted(connection, address)
            except BaseException as error:
                self.__take_back(connection, error)

    def __take_back(self, connection: PythonSocket, error: BaseException) -> None:
        """Close a connection after `accepted` raised, through its object if it has one."""
        obj = registry_of(self.loop).objects.get(connection.fileno())
        if obj is not None and obj.sock is not connection:
            obj = None
        try:
            if not isinstance(error, Exception) or not self.loop.handle_exception(error, obj):
                del error  # no cycle
                raise
        finally:
            if obj is not None:
                obj.close_as("exception")
            else:
                drop(connection)

    def __pause(self, error: OSError) -> None:
        """Pause after an error that is not that of one connection: trying again at once would keep
        the loop busy with nothing else."""
        if self._retry is None:
            # A server at its limit gets here each time a client leaves.
            (debug if error.errno in _NO_ROOM else warn)("%r: accept: %s", self, error)
        else:
            self._retry.cancel()
        # First what makes it resume: after an exception in between, it would never listen again.
        if self.fd is not None:
            registry_of(self.loop).paused[self.fd] = self
        self._retry = self.loop.add_timer(PAUSE, self.begin_again)
        try:
            super()._watch(POLLIN, False)
        except OSError:
            pass  # The next turn finds it readable, and tries again.

    def begin_again(self) -> None:
        """Resume, if paused. Called by the loop's registry and by the timer."""
        if self.fd is None or registry_of(self.loop).paused.get(self.fd) is not self:
            return
        try:
            self.watch_read(True)
        except OSError as error:
            self.__pause(error)

    def resume(self) -> None:
        """Resume, if the timer has fired but an exception has prevented that."""
        if self._retry is None or self._retry.callback is None:
            self.begin_again()

    def let_go(self) -> None:
        """As `Socket.let_go`, and cancels the timer."""
        super().let_go()
        if self._retry is not None:
            self._retry.cancel()

    def event_err(self) -> None:
        """Accept, which reports the error."""
        self.event_read()

    def event_hup(self) -> None:
        """Close: `shutdown` was called on the socket, or `listen` was not."""
        warn("%r: no listening socket, or one that was shut down", self)
        self.close("hang-up")
