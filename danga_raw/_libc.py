"""The one door to the C library: every call that the package can make goes through `libc`.

`typestubs/libc.pyi` declares what stands behind the door, with the C prototypes as types. A type
checker is shown that module, and the running program an object with the same names: so each call is
checked before the program runs, and not while it runs by a converter for each argument, which would
double the price of an `epoll_wait`. Hence the rule for what is passed:

* a C int goes as a Python int, its range checked where it comes from a user, since ctypes truncates
  without a word;
* anything else (a pointer, a size_t) goes as a ctypes object, never as a bare int.

Callers fetch a function from the door at each use. So whoever replaces an attribute (the audit in
`trace.py`, another kernel in the tests) is seen at once and by everybody. `libc.platform` says
whose numbers and layouts the calls behind the door take.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from _ctypes import FUNCFLAG_CDECL, FUNCFLAG_USE_ERRNO, CFuncPtr
from _socket import SO_ERROR, SOL_SOCKET
from _socket import socket as RawSocket
from errno import EBADF
from operator import methodcaller

# Not from typing, which costs more to import than all of this package (see types.py).
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from resource import struct_rusage
    from socket import socket as Socket
    from types import FrameType
    from typing import Final

    import libc as libc

PLATFORM: Final = sys.platform.rstrip("0123456789")
"""The kind of system: "linux", "darwin", "freebsd", "netbsd", "openbsd", "dragonfly", ..."""

INT_MAX: Final = 0x7FFFFFFF
"""The largest C int, on every platform with one of these mechanisms."""


def failure(call: str, number: int | None = None) -> OSError:
    """The `OSError` of a call that has failed with this errno, or without one, of the foreign call that
    has just returned -1."""
    number = ctypes.get_errno() if number is None else number
    return OSError(number, f"{call}: {os.strerror(number)}")


def raise_failure(call: str, *ignored: int) -> None:
    """Raises the `OSError` of the foreign call that has just returned -1, unless its errno is in
    `ignored`."""
    number = ctypes.get_errno()
    if number not in ignored:
        raise failure(call, number)


def check_fd(fd: int, call: str) -> None:
    """Raises `OSError` (EBADF) for a number that is no C int, which ctypes would cut to another."""
    if not 0 <= fd <= INT_MAX:
        raise failure(f"{call}(fd {fd})", EBADF)


_NAMES = "epoll_create1 epoll_ctl epoll_wait kqueue kevent poll setsockopt fcntl pipe2 pipe"

FOREIGN: Final[dict[str, tuple[str, ...]]] = {name: (name,) for name in _NAMES.split()}
"""Each foreign function and the symbols to look for, the newest first."""

if PLATFORM == "netbsd":
    # It renames a function when a struct that it takes has changed, and keeps the plain name for
    # binaries built before: `kevent` is the version of 2009 and reads another layout.
    FOREIGN["kevent"] = ("__kevent100", "__kevent50")


def _getrusage(who: int) -> struct_rusage:
    import resource  # for profiling only, and a small container may lack it

    # The next call is made without this function, which costs half as much as the call itself.
    if libc.getrusage is _getrusage:
        setattr(libc, "getrusage", resource.getrusage)
    return resource.getrusage(who)


def _signal(number: int, handler: Callable[[int, FrameType | None], object] | int) -> object:
    from signal import signal  # imports enum, and most programs that make a loop have no use for it

    return signal(number, handler)


def _socket(family: int, kind: int) -> Socket:
    from socket import socket  # imports selectors, which opens and closes an epoll

    return socket(family, kind)


class _Function(CFuncPtr):
    """A C function that returns an int. CPython takes that for granted where there is no `restype`,
    and one costs 210 instructions a call."""

    _flags_ = FUNCFLAG_CDECL | FUNCFLAG_USE_ERRNO


def _function(library: ctypes.CDLL, symbol: str) -> object:
    if sys.implementation.name == "cpython":
        function = _Function((symbol, library))
    else:
        function = getattr(library, symbol)
    setattr(function, "__name__", symbol)
    if symbol == "fcntl":
        # A variadic function has a calling convention of its own on some machines (arm64 macOS),
        # and ctypes takes it when it is told which arguments are the named ones.
        setattr(function, "argtypes", (ctypes.c_int, ctypes.c_int))
    return function


class Door:
    """Holds what `typestubs/libc.pyi` declares; a function that this platform lacks is absent."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.platform = PLATFORM
        for name, symbols in FOREIGN.items():
            for symbol in symbols:
                try:
                    setattr(self, name, _function(library, symbol))
                    break
                except AttributeError:
                    continue
        # Python's own wrappers of one call each. They cost half of a ctypes call, retry on EINTR,
        # and let the handle decode its own kind of address.
        self.read = os.read
        self.write = os.write
        self.close = os.close
        self.fstat = os.fstat
        self.getpid = os.getpid
        self.getrusage = _getrusage
        self.clock_gettime = time.clock_gettime
        self.signal = _signal
        self.socket = _socket
        self.connect = RawSocket.connect
        self.accept = methodcaller("accept")
        self.setblocking = methodcaller("setblocking", False)
        self.getsockopt = methodcaller("getsockopt", SOL_SOCKET, SO_ERROR)
        self.getpeername = methodcaller("getpeername")
        self.getsockname = methodcaller("getsockname")


if not TYPE_CHECKING:
    # CDLL(None) is the running program itself, which has libc in it: find_library would need a
    # compiler or ldconfig, and minimal containers have neither.
    libc = Door(ctypes.CDLL(None, use_errno=True))
