"""Handles and their descriptors: whether a handle still has its own, and closing."""

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
    """Whether `fd` still belongs to the object: False if the object is leaving, or if its handle
    knows that it has been closed. Then the number may belong to another descriptor."""
    if obj.closed or (sock := obj.sock) is None:
        return False
    try:
        return sock.fileno() == fd
    except Exception:
        try:
            sock.fileno()
        except Exception:  # A closed file raises each time, and the exception depends on its type.
            return False
        raise  # A signal's handler raised.


def disown(sock: Handle | None, fd: int) -> None:
    """Prevent a handle from closing `fd` when it is dropped: the number belongs to another now."""
    if isinstance(sock, RawSocket) and sock.fileno() == fd:
        sock.detach()


def close_fds(fds: Iterable[int]) -> None:
    """close(2) for each, with a warning if it fails: the descriptor is gone all the same (close(2),
    "Dealing with error returns"). With an iterator, this can be repeated if interrupted."""
    for fd in fds:
        try:
            libc.close(fd)
        except OSError as error:
            complain(error, "close(fd %d): %s", fd)


class _AsUsual(dict[type, bool]):
    """By the class of a handle: True for Python's sockets, and for subclasses that don't change how
    they close. The `close` of others has to be called: a TLS socket would otherwise keep writing to
    the number."""

    def __missing__(self, kind: type) -> bool:
        methods = [getattr(kind, name, None) for name in ("close", "_real_close", "detach")]
        usual = {getattr(each, "__module__", None) for each in methods} <= {None, "socket"}
        self[kind] = issubclass(kind, RawSocket) and usual
        return self[kind]


_closes_as_usual: Final = _AsUsual()
_detach: Final = cast("Callable[[Handle], int]", RawSocket.detach)
_close_socket: Final = cast("Callable[[Handle], None]", RawSocket.close)


def close_handle(fd: int, handles: list[Handle]) -> None:
    """Close the first handle in `handles`, and remove it, so that it is closed once."""
    sock = handles[0]
    usual = _closes_as_usual[type(sock)]
    try:
        if not usual:
            del handles[0]
            sock.close()
        elif libc.close is os.close:
            # Gives up the descriptor and closes it in one step that a signal's handler can't
            # interrupt, and makes no system call if the socket is already closed.
            _close_socket(sock)
        elif sock.fileno() >= 0:
            # The same through the door, if its `close` has been replaced, as by the audit.
            for _ in map(libc.close, map(_detach, (sock,))):
                pass
    except OSError as error:
        if usual and by_handler(error):
            raise
        warn("close(fd %d): %s", fd, error)
    if usual:
        del handles[:1]
