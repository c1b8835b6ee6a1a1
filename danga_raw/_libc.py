"""The door to the C library: every call of the package goes through `libc`.

`typestubs/libc.pyi` declares what is behind the door, with the C prototypes as types. Type checkers
see that module, and the running program an object with the same names. So calls are checked before
the program runs, and not by a ctypes converter for each argument, which would double the cost of an
`epoll_wait`. Hence the rule for arguments:

* a C int is passed as a Python int; its range is checked if it comes from a user, because ctypes
  truncates silently;
* anything else (a pointer, a size_t) is passed as a ctypes object, never as a plain int.

Callers fetch a function from the door each time they use it. So when an attribute is replaced, by
the audit in `trace.py` or by another kernel in the tests, this takes effect at once and everywhere.
`libc.platform` says which platform's constants and layouts the calls take.
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

# Not from typing, which costs more to import than this whole package (see types.py).
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
"""The largest C int, on every supported platform."""


def failure(call: str, number: int | None = None) -> OSError:
    """The `OSError` of a call that failed with errno `number`; by default, that of the foreign call
    that has just returned -1."""
    number = ctypes.get_errno() if number is None else number
    return OSError(number, f"{call}: {os.strerror(number)}")


def raise_failure(call: str, *ignored: int) -> None:
    """Raises the `OSError` of the foreign call that has just returned -1, unless its errno is in
    `ignored`."""
    number = ctypes.get_errno()
    if number not in ignored:
        raise failure(call, number)


def check_fd(fd: int, call: str) -> None:
    """Raises `OSError` (EBADF) for a number that is not a C int, which ctypes would truncate."""
    if not 0 <= fd <= INT_MAX:
        raise failure(f"{call}(fd {fd})", EBADF)


_NAMES = "epoll_create1 epoll_ctl epoll_wait kqueue kevent poll setsockopt fcntl pipe2 pipe"

FOREIGN: Final[dict[str, tuple[str, ...]]] = {name: (name,) for name in _NAMES.split()}
"""Each foreign function, and the symbols to look for; the last one found is used."""

if PLATFORM == "netbsd":
    # NetBSD renames a function when a struct in its arguments changes, and keeps the plain name for
    # old binaries: `kevent` is the version of 2009, with another layout.
    FOREIGN["kevent"] = ("__kevent50", "__kevent100")


def _getrusage(who: int) -> struct_rusage:
    import resource  # only for profiling, and may be missing in a small container

    # Later calls bypass this function, which costs half as much as the call itself.
    if libc.getrusage is _getrusage:
        setattr(libc, "getrusage", resource.getrusage)
    return resource.getrusage(who)


def _signal(number: int, handler: Callable[[int, FrameType | None], object] | int) -> object:
    from signal import signal  # imports enum, which most programs don't need

    return signal(number, handler)


def _socket(family: int, kind: int) -> Socket:
    from socket import socket  # imports selectors, which opens and closes an epoll

    return socket(family, kind)


class _Function(CFuncPtr):
    """A C function that returns an int, the default of CPython: a `restype` would cost 210
    instructions per call."""

    _flags_ = FUNCFLAG_CDECL | FUNCFLAG_USE_ERRNO


def _function(library: ctypes.CDLL, symbol: str) -> object:
    if sys.implementation.name == "cpython":
        function = _Function((symbol, library))
    else:
        function = getattr(library, symbol)
    setattr(function, "__name__", symbol)
    if symbol == "fcntl":
        # Variadic functions have their own calling convention on some machines (arm64 macOS).
        # ctypes uses it if it knows which arguments are named.
        setattr(function, "argtypes", (ctypes.c_int, ctypes.c_int))
    return function


class Door:
    """Has what `typestubs/libc.pyi` declares, except functions that this platform lacks."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.platform = PLATFORM
        for name, symbols in FOREIGN.items():
            for symbol in symbols:
                try:
                    setattr(self, name, _function(library, symbol))
                except AttributeError:
                    pass
        # Python's wrappers of one call each. They cost half of a ctypes call, retry on EINTR, and
        # let the handle decode its kind of address.
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
    # CDLL(None) is the running program, which includes libc. find_library would need a compiler or
    # ldconfig, and minimal containers have neither.
    libc = Door(ctypes.CDLL(None, use_errno=True))
