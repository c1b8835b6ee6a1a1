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
"""So many connections are taken in one batch, so that those that are there get their turn too."""

PAUSE: Final = 0.5
"""Seconds until a listener that had no room for a connection tries again, if none closes before."""

_PASSED_BY: Final = {
    *(errno.ECONNABORTED, errno.ECONNRESET, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.EINTR),
    *(errno.ENETDOWN, errno.ENETUNREACH, getattr(errno, "ENONET", 0), errno.ENOPROTOOPT),
    *(errno.EPERM, errno.EPROTO, errno.ETIMEDOUT),
}
"""What was wrong with one connection, which is gone: there may be another behind it (accept(2),
"Error handling"; EPERM is a firewall's, and only Linux has ENONET)."""

_NO_ROOM: Final = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
"""The system has no descriptor or no memory for a connection now."""


class Listener(Socket):
    """A listening socket that hands each new connection to a function.

    Its socket is the caller's to make (`socket.create_server`), with its backlog and its options; any
    family of stream sockets will do. Where the system has no descriptor or no memory for a connection
    it stops listening, and begins again when one of the loop's sockets has closed, or after half a
    second.
    """

    __slots__ = {
        "_retry": "The timer by which it listens again, after it had no room for a connection.",
        "accepted": "Called with each connection, which doesn't block, and the address of its other "
        "side, as accept(2) gave it.",
    }

    def __init__(self, sock: PythonSocket, accepted: Accepted, loop: Loop | None = None) -> None:
        """Listen on `sock`, which blocks no more from here on, and call `accepted(connection,
        address)`. A connection is closed where that raises, and what it raised goes the way of a
        handler's; the listener goes on.

        Calls ioctl(FIONBIO), those of `Socket`, and then accept4(2), getsockname(2) (in the making
        of a Python socket) and ioctl(FIONBIO) for each connection, and an accept4(2) that finds
        none. Raises `TypeError` for a callback that can't be called and for a socket that has a
        protocol of its own (TLS: wrap the connections), `OSError` as `Socket` does.
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
            self._withdraw()  # Nobody has it yet, and the socket is the caller's.
            raise

    def _watch(self, event: int, on: bool) -> None:
        paused = registry_of(self.loop).paused
        super()._watch(event, on)
        if self.fd is not None and event == POLLIN:
            paused.pop(self.fd, None)  # From here on it is as it was told to be.

    def event_read(self) -> None:
        """Somebody waits: accept4(2) until nobody does, or for 64, and hand each over."""
        for _ in range(AT_ONCE):
            sock = self.sock
            # `accepted` may have closed the listener, or have had enough for now.
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
        """Close a connection that was not taken, by the object that has it, if one does."""
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
        """There is no room for a connection, or something is wrong that nobody knows: listen again
        later, as to try at once would be all that the loop does."""
        if self._retry is None:
            # A server at its limit comes here with every client that leaves.
            (debug if error.errno in _NO_ROOM else warn)("%r: accept: %s", self, error)
        else:
            self._retry.cancel()
        # First what has it listen again, or an exception in between would leave it deaf.
        if self.fd is not None:
            registry_of(self.loop).paused[self.fd] = self
        self._retry = self.loop.add_timer(PAUSE, self.begin_again)
        try:
            super()._watch(POLLIN, False)
        except OSError:
            pass  # Then the next turn finds it readable, and tries again.

    def begin_again(self) -> None:
        """Listen again, if it is paused; the loop's registry and its own timer call this."""
        if self.fd is None or registry_of(self.loop).paused.get(self.fd) is not self:
            return
        try:
            self.watch_read(True)
        except OSError as error:
            self.__pause(error)

    def resume(self) -> None:
        """Listen again, if its timer has fired in vain: an exception may have come in between."""
        if self._retry is None or self._retry.callback is None:
            self.begin_again()

    def let_go(self) -> None:
        """As of any object; and its timer is cancelled."""
        super().let_go()
        if self._retry is not None:
            self._retry.cancel()

    def event_err(self) -> None:
        """A listener that has an error says which when it accepts."""
        self.event_read()

    def event_hup(self) -> None:
        """Its `shutdown` was called, or its `listen` never."""
        warn("%r: no listening socket, or one that was shut down", self)
        self.close("hang-up")
