"""The surface of the package, and what the kernel is asked in its place: the one table of both.

`typestubs/libc.pyi` has the C functions. A C library may make another system call than the one of
that name: since the machine's kernel lacks it, since a newer one can more, or to have one code for
several machines. strace prints, and seccomp looks at, what the library calls. So the audit, `info
--syscalls`, `info --seccomp` and docs/syscalls.md are all printed from here.

A function of which no rule says otherwise is the system call of its own name. On a machine or in a
C library that isn't in this table that is a guess, and `Where` tells which those are.

Every rule is held against what strace and qemu see (tests/audit). Its source is glibc's
sysdeps/unix/sysv/linux, or musl's src, in the file of the function's name.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from errno import EBADF, EINVAL, errorcode
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
    name: str = ""
    """Its name in C, if the door has it under another."""


SURFACE: Final = {
    "epoll_create1": Function(1, "a loop's first need of epoll", "epoll"),
    "epoll_ctl": Function(4, "a descriptor is watched, watched otherwise, or no more", "epoll"),
    "epoll_wait": Function(4, "each turn of the loop", "epoll"),
    "kqueue": Function(0, "a loop's first need of kqueue", "kqueue"),
    "kevent": Function(6, "each turn; a descriptor is watched, otherwise, or no more", "kqueue"),
    "fcntl": Function(3, "behind kqueue and pipe: close-on-exec, non-blocking", "kqueue"),
    "pipe": Function(1, "the first call_soon_threadsafe or signal, without pipe2", "kqueue"),
    "getpid": Function(0, "a kqueue is made or closed", "kqueue"),
    "poll": Function(3, "each turn of the loop", "poll"),
    "fstat": Function(2, "a descriptor is watched", "poll"),
    "pipe2": Function(2, "a loop's first call_soon_threadsafe or signal"),
    "read": Function(3, "Socket.read; a loop that was woken"),
    "write": Function(3, "Socket.write, queued data that can go out; a loop is woken"),
    "close": Function(1, "behind the turn in which a socket was closed; a loop's end"),
    "setsockopt": Function(5, "Socket.tcp_cork"),
    "getpeername": Function(3, "a socket's peer is asked for, once"),
    "getsockname": Function(3, "a socket's own address is asked for, once"),
    "accept": Function(4, "a Listener is ready to be read", name="accept4"),
    "setblocking": Function(3, "a Listener, and what it accepts", name="ioctl"),
    "socket": Function(3, "Socket.connect"),
    "connect": Function(3, "Socket.connect"),
    "getsockopt": Function(5, "a connection is there, or refused"),
    "signal": Function(3, "Loop.add_signal_handler, remove_signal_handler", name="sigaction"),
    "getrusage": Function(2, "each event, while profiling is on"),
    "clock_gettime": Function(2, "timers; not where the C library knows the time (vdso(7))"),
}
"""Each function of typestubs/libc.pyi."""


def in_c(function: str) -> str:
    """The name in C of a function of the door."""
    return SURFACE[function].name or function


# --- what the kernel is asked instead -----------------------------------------------------------

_NEW: Final = frozenset(("aarch64", "riscv64", "loongarch64"))
"""Machines whose kernel was made without the calls that newer ones replace."""
_NO_ACCEPT: Final = frozenset(("i386", "s390x"))
_NO_FSTAT: Final = frozenset(("loongarch64",))
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
        return in_c(function) if self.name == "socketcall" else self.name


class Rule(NamedTuple):
    """That a C function is another call."""

    function: str
    asked: Asked
    libraries: tuple[str, ...]
    machines: frozenset[str]
    since: tuple[int, ...] = ()
    """The version of the C library from which on it is so."""
    before: tuple[int, ...] = (9999,)
    """The version from which on it isn't any more."""

    def holds(self, place: Where) -> bool:
        """True on this library and machine."""
        of_version = self.since <= place.version < self.before
        return place.libc in self.libraries and place.machine in self.machines and of_version


_ALL: Final = MACHINES
_MULTIPLEXED: Final = "socket connect accept getsockopt setsockopt getpeername getsockname"
_STATX: Final = Asked("statx", 5, (NO_AUTOMOUNT | EMPTY_PATH,))
_NEWFSTATAT: Final = Asked("newfstatat", 4, (EMPTY_PATH,))
RULES: Final = (
    # The null mask comes with its size in bytes, and so on, whether the kernel looks at it or not.
    Rule("epoll_wait", Asked("epoll_pwait", 6, (None, 8)), (MUSL,), _ALL),
    Rule("epoll_wait", Asked("epoll_pwait", 6, (None, 8)), (GLIBC,), _NEW),
    Rule("poll", Asked("ppoll", 5, (None, 8)), (MUSL,), _NEW),
    Rule("poll", Asked("ppoll", 5, (None, 0)), (GLIBC,), _NEW),
    # A kernel without fstat; and with times of 64 bits, a 32-bit machine's own call doesn't do.
    Rule("fstat", _STATX, LIBRARIES, _NO_FSTAT),
    Rule("fstat", _STATX, (GLIBC,), _32_BITS, since=(2, 33)),
    Rule("fstat", _NEWFSTATAT, (GLIBC,), _64_BITS - _NO_FSTAT, since=(2, 33), before=(2, 39)),
    Rule("fstat", _STATX, (MUSL,), _32_BITS, since=(1, 2, 5)),
    Rule("fstat", Asked("statx", 5, (EMPTY_PATH,)), (MUSL,), _32_BITS, since=(1, 2)),
    Rule("fstat", Asked("fstat64", 2), LIBRARIES, _32_BITS),
    Rule("fcntl", Asked("fcntl64", 3), LIBRARIES, _32_BITS),
    Rule("clock_gettime", Asked("clock_gettime64", 2), (GLIBC,), _32_BITS, since=(2, 31)),
    Rule("clock_gettime", Asked("clock_gettime64", 2), (MUSL,), _32_BITS, since=(1, 2)),
    Rule("signal", Asked("rt_sigaction", 4, (8,)), LIBRARIES, _ALL),
    # A glibc that is built for Linux 4.3 or later makes these calls as such; Debian's isn't.
    *(
        Rule(name, Asked("socketcall", 2), (GLIBC,), frozenset(("i386", "s390x")))
        for name in _MULTIPLEXED.split()
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
    """The second: the first's arguments but for its last ones, and those constants. It fails alike."""
    libc: str
    machines: frozenset[str] = MACHINES

    def holds(self, call: str, errno: int, place: Where) -> bool:
        """True behind a call that failed so, there."""
        alike = (call, errno, place.libc) == (self.behind, self.errno, self.libc)
        return alike and place.machine in self.machines


F_GETFD: Final = 1
ASKED_AGAIN: Final = (
    # One that was opened with O_PATH could not be asked for its file before Linux 3.6, and musl finds
    # out whether the descriptor is such a one.
    Again("fstat", EBADF, Asked("fcntl", 2, (F_GETFD,)), MUSL),
    # Before Linux 2.6.28 there was no accept4. The other reason is a socket that doesn't listen.
    Again("accept4", EINVAL, Asked("accept", 3), MUSL, MACHINES - _NO_ACCEPT),
    Again("accept4", EINVAL, Asked("accept4", 4, (0,)), MUSL, _NO_ACCEPT),
)


_BEFORE_FSTAT: Final = (2, 32)
"""The last glibc that had no fstat of its own."""


def asked(function: str, place: Where) -> Asked:
    """What the kernel is asked for `function` there."""
    if function == "fstat" and place.old_stat:
        place = place._replace(version=min(place.version, _BEFORE_FSTAT))
    for rule in RULES:
        if rule.function == function and rule.holds(place):
            return rule.asked
    return Asked(in_c(function), SURFACE[function].arguments)


MAKES_A_SOCKET: Final = "accept"
"""Behind this function Python asks the new descriptor for its own name, to see that it is a socket."""


class ByPython(NamedTuple):
    """A C function that Python calls by itself behind one of the surface."""

    behind: str
    function: str
    when: str


BY_PYTHON: Final = (
    ByPython(MAKES_A_SOCKET, "getsockname", "a Python socket is made of it"),
    # signal.set_wakeup_fd, as Modules/signalmodule.c has it. The signal's own write follows later.
    ByPython("signal", "fstat", "a signal is to wake a loop: is its pipe open"),
    ByPython("signal", "fcntl", "a signal is to wake a loop: does its pipe not block"),
)


class Entry(NamedTuple):
    """A C function of the surface, as it reaches the kernel."""

    function: str
    call: str
    """The kernel's name."""
    arguments: int
    """How many the kernel is given."""
    when: str


def surface(place: Where, backends: Collection[str]) -> Iterator[Entry]:
    """What the package can ask the kernel there, with those backends."""
    for name, function in SURFACE.items():
        if function.only and function.only not in backends:
            continue
        call = asked(name, place)
        yield Entry(in_c(name), call.name, call.arguments, function.when)
        for python in BY_PYTHON:
            if python.behind == name:
                more = asked(python.function, place)
                yield Entry(in_c(python.function), more.name, more.arguments, python.when)
        for rule in ASKED_AGAIN:
            if rule.holds(call.name, rule.errno, place):
                when = f"behind a {call.name} that failed with {errorcode[rule.errno]}"
                yield Entry(in_c(name), rule.asked.name, rule.asked.arguments, when)


def known(place: Where) -> bool:
    """True if this table is known to be right there."""
    return place.libc in LIBRARIES and place.version != () and place.machine in MACHINES


def every_call() -> Iterator[str]:
    """The kernel's names of the whole surface, on every library and machine of the table."""
    yield from map(in_c, SURFACE)
    yield from (rule.asked.name for rule in ASKED_AGAIN)
    yield from (rule.asked.name for rule in RULES)


HERE: Final = where()
"""The C library and the machine of this program."""
