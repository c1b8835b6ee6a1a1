"""The surface of the package, and what the kernel is asked in its place: the one table of both.

`typestubs/libc.pyi` has the C functions. A C library may make another system call than the one of
that name: since the machine's kernel lacks it, since a newer one can more, or to have one code for
several machines. strace prints, and seccomp looks at, what the library calls. So the audit, `info
--syscalls`, `info --seccomp` and docs/syscalls.md are all printed from here.

A function of which no rule says otherwise is the system call of its own name. On a machine or in a
C library that isn't in this table that is a guess, and `Where` tells which those are.

Every rule is held against what strace and qemu see (tests/kernel). Its source is glibc's
sysdeps/unix/sysv/linux, or musl's src, in the file of the function's name.
"""

from __future__ import annotations

from collections.abc import Iterator
from errno import EBADF
from typing import Final, NamedTuple

from danga_raw._clibrary import GLIBC, MUSL, Where, where

# --- the surface --------------------------------------------------------------------------------


class Function(NamedTuple):
    """A C function that the package calls, itself or by a wrapper of Python's."""

    arguments: int
    when: str
    """When it is made."""
    only: str = ""
    """The backend without which it is never made."""


SURFACE: Final = {
    "epoll_create1": Function(1, "a loop's first need of epoll", "epoll"),
    "epoll_ctl": Function(4, "a descriptor is watched, watched otherwise, or no more", "epoll"),
    "epoll_wait": Function(4, "each turn of the loop", "epoll"),
    "kqueue": Function(0, "a loop's first need of kqueue", "kqueue"),
    "kevent": Function(6, "each turn; a descriptor is watched, otherwise, or no more", "kqueue"),
    "fcntl": Function(3, "behind kqueue: close-on-exec", "kqueue"),
    "getpid": Function(0, "a kqueue is made or closed", "kqueue"),
    "poll": Function(3, "each turn of the loop", "poll"),
    "fstat": Function(2, "a descriptor is watched", "poll"),
    "read": Function(3, "Socket.read"),
    "write": Function(3, "Socket.write, and queued data that can go out"),
    "close": Function(1, "behind the turn in which a socket was closed; a loop's end"),
    "setsockopt": Function(5, "Socket.tcp_cork"),
    "getpeername": Function(3, "a socket's peer is asked for, once"),
    "getsockname": Function(3, "a socket's own address is asked for, once"),
    "getrusage": Function(2, "each event, while profiling is on"),
    "clock_gettime": Function(2, "timers; not where the C library knows the time (vdso(7))"),
}
"""Each function of typestubs/libc.pyi."""


# --- what the kernel is asked instead -----------------------------------------------------------

_NEW: Final = frozenset(("aarch64", "riscv64", "loongarch64"))
"""Machines whose kernel was made without the calls that newer ones replace."""
_64_BITS: Final = _NEW | {"x86_64", "s390x", "ppc64le"}
_32_BITS: Final = frozenset(("i386", "arm"))

MACHINES: Final = _64_BITS | _32_BITS
"""The machines that this table knows."""
LIBRARIES: Final = (GLIBC, MUSL)
"""The C libraries that it knows."""

NO_AUTOMOUNT: Final = 0x800
EMPTY_PATH: Final = 0x1000
"""AT_NO_AUTOMOUNT, AT_EMPTY_PATH."""


class Asked(NamedTuple):
    """A system call in the place of a C function."""

    name: str
    """The kernel's name."""
    arguments: int
    constants: tuple[int | None, ...] = ()
    """What the C library itself adds to the arguments; None for a null pointer."""

    def printed(self, function: str) -> str:
        """The name under which strace prints it: of a multiplexer, it looks inside."""
        return function if self.name == "socketcall" else self.name


class Rule(NamedTuple):
    """That a C function is another call."""

    function: str
    asked: Asked
    libc: str
    machines: frozenset[str]
    since: tuple[int, ...] = ()
    """The version of the C library from which on it is so."""
    before: tuple[int, ...] = (9999,)
    """The version from which on it isn't any more."""

    def holds(self, place: Where) -> bool:
        """True on this library and machine."""
        of_version = self.since <= place.version < self.before
        return place.libc == self.libc and place.machine in self.machines and of_version


_ALL: Final = MACHINES
RULES: Final = (
    # The null mask comes with its size in bytes, and so on, whether the kernel looks at it or not.
    Rule("epoll_wait", Asked("epoll_pwait", 6, (None, 8)), MUSL, _ALL),
    Rule("epoll_wait", Asked("epoll_pwait", 6, (None, 8)), GLIBC, _NEW),
    Rule("poll", Asked("ppoll", 5, (None, 8)), MUSL, _NEW),
    Rule("poll", Asked("ppoll", 5, (None, 0)), GLIBC, _NEW),
    # With times of 64 bits, a 32-bit machine's own calls don't do.
    Rule("fstat", Asked("statx", 5, (NO_AUTOMOUNT | EMPTY_PATH,)), GLIBC, _32_BITS, (2, 33)),
    Rule("fstat", Asked("fstat64", 2), GLIBC, _32_BITS),
    Rule("fstat", Asked("newfstatat", 4, (EMPTY_PATH,)), GLIBC, _64_BITS, (2, 33), (2, 39)),
    Rule("fstat", Asked("statx", 5, (NO_AUTOMOUNT | EMPTY_PATH,)), MUSL, _32_BITS, (1, 2, 5)),
    Rule("fstat", Asked("statx", 5, (EMPTY_PATH,)), MUSL, _32_BITS, (1, 2)),
    Rule("fstat", Asked("fstat64", 2), MUSL, _32_BITS),
    Rule("fcntl", Asked("fcntl64", 3), GLIBC, _32_BITS),
    Rule("fcntl", Asked("fcntl64", 3), MUSL, _32_BITS),
    Rule("clock_gettime", Asked("clock_gettime64", 2), GLIBC, _32_BITS, (2, 31)),
    Rule("clock_gettime", Asked("clock_gettime64", 2), MUSL, _32_BITS, (1, 2)),
    # A glibc that is built for Linux 4.3 or later makes these calls as such; Debian's isn't.
    *(
        Rule(name, Asked("socketcall", 2), GLIBC, frozenset(("i386", "s390x")))
        for name in ("setsockopt", "getpeername", "getsockname")
    ),
)
"""What differs, by library, version and machine; of several rules that hold the first one counts."""

class Again(NamedTuple):
    """That a C library makes a second call when the first has failed."""

    behind: str
    """The kernel's name of the first."""
    errno: int
    """How that failed."""
    asked: Asked
    """The second: of the same descriptor, and failing alike."""
    libc: str


F_GETFD: Final = 1
ASKED_AGAIN: Final = Again("fstat", EBADF, Asked("fcntl", 2, (F_GETFD,)), MUSL)
"""A descriptor that was opened with O_PATH could not be asked for its file before Linux 3.6, and
musl finds out whether it is such a one."""


def asked(function: str, place: Where) -> Asked:
    """What the kernel is asked for `function` there."""
    for rule in RULES:
        if rule.function == function and rule.holds(place):
            return rule.asked
    return Asked(function, SURFACE[function].arguments)


def known(place: Where) -> bool:
    """True if this table is known to be right there."""
    return place.libc in LIBRARIES and place.version != () and place.machine in MACHINES


def every_call() -> Iterator[str]:
    """The kernel's names of the whole surface, on every library and machine of the table."""
    yield from SURFACE
    yield ASKED_AGAIN.asked.name
    yield from (rule.asked.name for rule in RULES)


HERE: Final = where()
"""The C library and the machine of this program."""
