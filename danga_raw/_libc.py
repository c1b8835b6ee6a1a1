"""The one door to the C library: every call that the package can make goes through `libc`.

`typestubs/libc.pyi` declares what stands behind the door, with the C prototypes as types. The type
checker is shown that module, and the running program gets an object with the same names, so that
each call site is checked before the program runs and not, by a converter for every argument, while
it runs: an `epoll_wait` with `argtypes` costs twice one without. Hence the rule for what is passed:

* a C int goes as a Python int, its range checked where it comes from a user, since ctypes truncates
  without a word;
* anything else (a pointer, a size_t) goes as a ctypes object, never as a bare int.

Callers fetch a function from the door at each use. So whoever replaces an attribute (the audit in
`trace.py`, another kernel in the tests) is seen at once and by everybody. `libc.platform` says
whose numbers and layouts the calls behind the door take.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import sys
import time
from operator import methodcaller

# Not from typing, which costs more to import than all of this package (see types.py).
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Final, TypeAlias

    import libc as libc

PLATFORM: Final = sys.platform.rstrip("0123456789")
"""The kind of system: "linux", "darwin", "freebsd", "netbsd", "openbsd", "dragonfly", ..."""

INT_MAX: Final = 0x7FFFFFFF
"""The largest C int, on every platform with one of these mechanisms."""

Fields: TypeAlias = tuple[tuple[str, str], ...]
"""A C struct as its header declares it: the names of its fields and their C types, in order."""

C_TYPES: Final = {
    "short": ctypes.c_short,
    "unsigned short": ctypes.c_ushort,
    "int": ctypes.c_int,
    "unsigned int": ctypes.c_uint,
    "long": ctypes.c_long,
    "unsigned long": ctypes.c_ulong,
    "int64_t": ctypes.c_int64,
    "uint32_t": ctypes.c_uint32,
    "uint64_t": ctypes.c_uint64,
    "uint64_t[4]": ctypes.c_uint64 * 4,
    "intptr_t": ctypes.c_ssize_t,
    "uintptr_t": ctypes.c_size_t,
    "void *": ctypes.c_void_p,
}
"""The C types that occur in the structs of this package, as this platform has them."""


def structure(
    name: str, fields: Fields, *, pack: int = 0, base: type[ctypes.Structure] = ctypes.Structure
) -> type[ctypes.Structure]:
    """The ctypes type of a C struct; `pack` is that of `#pragma pack`, 0 for natural alignment."""
    body: dict[str, object] = {"_fields_": [(field, C_TYPES[c]) for field, c in fields]}
    if pack:
        # Since 3.14 a packed ctypes struct must say that it is laid out so; earlier ones look away.
        body |= {"_pack_": pack, "_layout_": "ms"}
    return type(name, (base,), body)


RESULT: Final = "_danga_raw_result"
"""The attribute of an exception that was raised behind a call and knows what the call returned."""


def take_result(error: BaseException) -> object:
    """What the call returned behind which `error` was raised, if it knows: the sink of a trace may
    raise, and the call has been made all the same. A signal's handler knows nothing: then None."""
    result: object = vars(error).pop(RESULT, None)
    return result


def by_handler(error: BaseException) -> bool:
    """True if a signal's handler raised, behind a call or before it. The failures of calls have an
    errno; an OSError of a handler, mostly a TimeoutError, has none."""
    return not isinstance(error, OSError) or error.errno is None


class Descriptor:
    """A descriptor of the package's own, which is made once and closed once, also where an exception
    comes in between, as a signal's handler may raise at nearly any time.

    To extend a list by a map, which calls only then, is to call and to keep the result in one
    instruction. An iterator gives the number once, whatever is raised meanwhile.
    """

    __slots__ = ("_closing", "_made")

    def __init__(self) -> None:
        self._made: list[int] = []
        self._closing: Iterator[int] = iter(self._made)  # It gives what the list will hold by then.

    def make(self, results: Iterator[int]) -> int:
        """What `results`, a map over one call, gives, or what an earlier one gave; -1 for a
        failure, after which it can be tried again. Not to be called behind `close`."""
        made = self._made
        if not made:
            try:
                made += results
            except BaseException as error:
                # The call is made also if the sink of a trace raised behind it.
                if isinstance(fd := take_result(error), int) and fd >= 0:
                    made += (fd,)
                raise
        fd = made[0]
        if fd < 0:
            del made[:]
        return fd

    def close(self, call: Callable[[int], object]) -> None:
        """`call(fd)`, if it is open."""
        for _ in map(call, self._closing):
            pass


def check_fd(fd: int, call: str) -> None:
    """Raises `OSError` (EBADF) for a number that is no C int, which ctypes would cut to another."""
    if not 0 <= fd <= INT_MAX:
        raise OSError(errno.EBADF, f"{call}(fd {fd}): {os.strerror(errno.EBADF)}")


def failure(call: str) -> OSError:
    """The `OSError` for a foreign call that has just returned -1; `call` is how it was called."""
    number = ctypes.get_errno()
    return OSError(number, f"{call}: {os.strerror(number)}")


FOREIGN: Final[Mapping[str, tuple[str, ...]]] = {
    "epoll_create1": ("epoll_create1",),
    "epoll_ctl": ("epoll_ctl",),
    "epoll_wait": ("epoll_wait",),
    "kqueue": ("kqueue",),
    # NetBSD renames a function when a struct it takes has changed, and keeps the plain name for
    # binaries built before: `kevent` there is the version of 2009 and reads another layout.
    "kevent": ("__kevent100", "__kevent50") if PLATFORM == "netbsd" else ("kevent",),
    "poll": ("poll",),
    "setsockopt": ("setsockopt",),
    "fcntl": ("fcntl",),
}
"""Each foreign function and the symbols to look for, the newest first."""


class Door:
    """Holds what `typestubs/libc.pyi` declares; a function that this platform lacks is absent."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.platform = PLATFORM
        # A variadic function has a calling convention of its own on some machines (arm64 macOS),
        # and ctypes takes it when it is told which arguments are the named ones.
        library.fcntl.argtypes = (ctypes.c_int, ctypes.c_int)
        for name, symbols in FOREIGN.items():
            for symbol in symbols:
                if hasattr(library, symbol):
                    setattr(self, name, getattr(library, symbol))
                    break
        # Python's own wrappers of one call each. They cost half of a ctypes call, retry on EINTR,
        # and let the handle decode its own kind of address.
        self.read = os.read
        self.write = os.write
        self.close = os.close
        self.fstat = os.fstat
        self.getpid = os.getpid
        self.getrusage = resource.getrusage
        self.clock_gettime = time.clock_gettime
        self.getpeername = methodcaller("getpeername")
        self.getsockname = methodcaller("getsockname")


if not TYPE_CHECKING:
    # CDLL(None) is the running program itself, which has libc in it: find_library would need a
    # compiler or ldconfig, and minimal containers have neither.
    libc = Door(ctypes.CDLL(None, use_errno=True))
