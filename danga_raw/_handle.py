"""Handles and descriptors: which handle still has its own, and how they are closed."""

from __future__ import annotations

import os
from _socket import socket as RawSocket

from danga_raw._interrupt import by_handler
from danga_raw._libc import libc
from danga_raw._log import complain, warn
from danga_raw._typing import cast

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Final

    from danga_raw.types import AnySocket, Handle


def still_has(obj: AnySocket, fd: int) -> bool:
    """Whether `fd` is still the object's: False for one that is leaving, and where its handle knows
    that its owner has closed it. Then the number may be another's by now."""
    if obj.closed or (sock := obj.sock) is None:
        return False
    try:
        return sock.fileno() == fd
    except Exception:
        try:
            sock.fileno()
        except Exception:  # A closed file says so each time, and others do in words of their own.
            return False
        raise  # It was a signal's handler that raised.


def disown(sock: Handle, fd: int) -> None:
    """Keep a handle from closing `fd` when it is dropped: the number is another's by now."""
    if isinstance(sock, RawSocket) and sock.fileno() == fd:
        sock.detach()


def close_fds(fds: Iterable[int]) -> None:
    """close(2) for each. A failure is warned of: the descriptor is gone all the same (close(2), "Dealing
    with error returns"). Who gives an iterator may begin again with it where this was interrupted."""
    for fd in fds:
        try:
            libc.close(fd)
        except OSError as error:
            complain(error, "close(fd %d): %s", fd)


class _AsUsual(dict[type, bool]):
    """By the class of a handle: True for Python's own sockets, and for subclasses that close no
    otherwise. The `close` of others is called: a TLS socket would write to the number for as long as
    it isn't told."""

    def __missing__(self, kind: type) -> bool:
        methods = [getattr(kind, name, None) for name in ("close", "_real_close", "detach")]
        usual = {getattr(each, "__module__", None) for each in methods} <= {None, "socket"}
        self[kind] = issubclass(kind, RawSocket) and usual
        return self[kind]


_closes_as_usual: Final = _AsUsual()
_detach: Final = cast("Callable[[Handle], int]", RawSocket.detach)
_close_socket: Final = cast("Callable[[Handle], None]", RawSocket.close)


def close_handle(fd: int, handles: list[Handle]) -> None:
    """Close the one handle in `handles`, and take it out, so that it is closed once."""
    sock = handles[0]
    try:
        if not _closes_as_usual[type(sock)]:
            del handles[:]
            sock.close()
        elif libc.close is os.close:
            # A socket gives up its descriptor and closes it in one step, behind which a signal's
            # handler comes at the earliest. It makes no call where its owner has closed it.
            _close_socket(sock)
        elif sock.fileno() >= 0:
            # The same through the door, where another stands in it, as the audit does.
            for _ in map(libc.close, map(_detach, handles)):
                pass
    except OSError as error:
        if handles and by_handler(error):
            raise
        warn("close(fd %d): %s", fd, error)
    del handles[:]
