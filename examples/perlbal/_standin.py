"""What the package is to bring itself, until it does: listening, connecting, and calls for soon."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from typing import TypeVar

from danga_raw import Loop, Socket, Timer
from danga_raw.types import Handle

_AT_ONCE = 64
ConnectorT = TypeVar("ConnectorT", bound="Connector")
_PAUSE = 0.1


class Listener(Socket):
    __slots__ = ("_accepted", "_listening")

    def __init__(
        self,
        sock: socket.socket,
        accepted: Callable[[socket.socket, object], object],
        loop: Loop | None = None,
    ) -> None:
        sock.setblocking(False)
        super().__init__(sock, loop)
        self._listening = sock
        self._accepted = accepted
        self.watch_read(True)

    def event_read(self) -> None:
        for _ in range(_AT_ONCE):
            if self.closed:
                return
            try:
                connection, address = self._listening.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self.watch_read(False)
                    self.loop.add_timer(_PAUSE, lambda: self.watch_read(True))
                    return
                continue
            connection.setblocking(False)
            self._accepted(connection, address)

    def event_err(self) -> None:
        self.close("error")

    event_hup = event_err


class Connector(Socket):
    """A socket that connects, and is told once how that went."""

    __slots__ = ("_connecting", "_timer")

    def __init__(self, sock: Handle, loop: Loop | None = None) -> None:
        super().__init__(sock, loop)
        self._connecting = False
        self._timer: Timer | None = None

    def _begin(self, seconds: float) -> None:
        self._connecting = True
        self._timer = self.loop.add_timer(seconds, self._too_late)
        self.watch_write(True)

    def event_connect(self, error: OSError | None) -> None:
        """How connecting went: None, or the error, behind which the object is closed."""

    def _too_late(self) -> None:
        self._outcome(OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)))

    def _outcome(self, error: OSError | None) -> None:
        if not self._connecting:
            return
        self._connecting = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.closed:
            return
        if error is None:
            self.watch_write(False)
        self.event_connect(error)
        if error is not None:
            self.close("connect failed")

    def _asked(self) -> OSError | None:
        assert isinstance(self.sock, socket.socket)
        number = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        return OSError(number, os.strerror(number)) if number else None

    def event_write(self) -> None:
        if self._connecting:
            self._outcome(self._asked())
        else:
            super().event_write()

    def event_err(self) -> None:
        if self._connecting:
            self._outcome(self._asked() or OSError(errno.ECONNREFUSED, "refused"))

    event_hup = event_err


def connect(
    kind: type[ConnectorT], address: tuple[str, int], loop: Loop, timeout: float
) -> ConnectorT:
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        number = sock.connect_ex(address)
        if number not in (0, errno.EINPROGRESS):
            raise OSError(number, os.strerror(number))
        obj = kind(sock, loop)
    except BaseException:
        sock.close()
        raise
    obj._begin(timeout)
    return obj
