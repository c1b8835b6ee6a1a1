"""The C functions that the package calls, and the system calls that C libraries make for them.

`typestubs/libc.pyi` declares the functions. For one of them a C library may make a system call of
another name: because the kernel has none of that name, because a newer call can do more, or to
share code between machines. strace prints, and seccomp filters, what the library calls. So the
audit, `info --syscalls`, `info --seccomp` and docs/syscalls.md are all made from this table.

A function without a rule is the system call of its own name. For a machine or a C library that this
table doesn't know, that is a guess, and `known` is False.

Every rule is compared with what strace and qemu see (tests/audit). The sources are glibc's
sysdeps/unix/sysv/linux and musl's src, in the file named after the function.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from errno import EBADF, EINVAL, errorcode
from typing import Final, NamedTuple

from danga_raw._clibrary import GLIBC, MUSL, Where, where

# --- the surface --------------------------------------------------------------------------------


class Function(NamedTuple):
    """A C function that the package calls, directly or through Python's wrapper."""

    arguments: int
    when: str
    """When it is called."""
    only: str = ""
    """If not empty, only this backend calls it."""
    name: str = ""
    """Its name in C, if that is not the door's."""


SURFACE: Final = {
    "epoll_create1": Function(1, "a loop first needs epoll", "epoll"),
    "epoll_ctl": Function(4, "a watch of a descriptor begins, changes or ends", "epoll"),
    "epoll_wait": Function(4, "each turn of the loop", "epoll"),
    "kqueue": Function(0, "a loop first needs kqueue", "kqueue"),
    "kevent": Function(6, "each turn; a watch begins, changes or ends", "kqueue"),
    "fcntl": Function(3, "after kqueue and pipe: close-on-exec, non-blocking", "kqueue"),
    "pipe": Function(1, "the first call_soon_threadsafe or signal, without pipe2", "kqueue"),
    "getpid": Function(0, "a kqueue is made or closed", "kqueue"),
    "poll": Function(3, "each turn of the loop", "poll"),
    "fstat": Function(2, "a descriptor is watched", "poll"),
    "pipe2": Function(2, "a loop's first call_soon_threadsafe or signal"),
    "read": Function(3, "Socket.read; a loop has been woken"),
    "write": Function(3, "Socket.write, queued data can be sent; a loop is woken"),
    "close": Function(1, "after the turn in which a socket was closed; a loop is closed"),
    "setsockopt": Function(5, "Socket.tcp_cork"),
    "getpeername": Function(3, "a socket's peer address is first asked for"),
    "getsockname": Function(3, "a socket's local address is first asked for"),
    "accept": Function(4, "a Listener is ready to be read", name="accept4"),
    "setblocking": Function(3, "a Listener is made, or accepts a socket", name="ioctl"),
    "socket": Function(3, "Socket.connect"),
    "connect": Function(3, "Socket.connect"),
    "getsockopt": Function(5, "a connection is established or refused"),
    "signal": Function(3, "Loop.add_signal_handler, remove_signal_handler", name="sigaction"),
    "getrusage": Function(2, "each event, while profiling is on"),
    "clock_gettime": Function(2, "timers, unless the C library knows the time (vdso(7))"),
}
"""Each function of typestubs/libc.pyi."""


def in_c(function: str) -> str:
    """The C name of a function of the door."""
    return SURFACE[function].name or function


# --- the system calls made for them -------------------------------------------------------------

_NEW: Final = frozenset(("aarch64", "riscv64", "loongarch64"))
"""Machines whose kernel never had the calls that newer ones have replaced."""
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
    """The system call that a C library makes for a C function."""

    name: str
    """The kernel's name."""
    arguments: int
    constants: tuple[int | None, ...] = ()
    """The arguments that the C library itself adds; None for a null pointer."""

    def printed(self, function: str) -> str:
        """The name that strace prints: for a multiplexer, that of the call inside."""
        return in_c(function) if self.name == "socketcall" else self.name


class Rule(NamedTuple):
    """Where the system call for a C function is not the one of its name."""

    function: str
    asked: Asked
    libraries: tuple[str, ...]
    machines: frozenset[str]
    since: tuple[int, ...] = ()
    """The first version of the C library that does so."""
    before: tuple[int, ...] = (9999,)
    """The first version that no longer does."""

    def holds(self, place: Where) -> bool:
        """True on this library and machine."""
        of_version = self.since <= place.version < self.before
        return place.libc in self.libraries and place.machine in self.machines and of_version


_ALL: Final = MACHINES
_MULTIPLEXED: Final = "socket connect accept getsockopt setsockopt getpeername getsockname"
_STATX: Final = Asked("statx", 5, (NO_AUTOMOUNT | EMPTY_PATH,))
_NEWFSTATAT: Final = Asked("newfstatat", 4, (EMPTY_PATH,))
RULES: Final = (
    # The size in bytes is passed along with the null mask, whether or not the kernel looks at it.
    Rule("epoll_wait", Asked("epoll_pwait", 6, (None, 8)), (MUSL,), _ALL),
    Rule("epoll_wait", Asked("epoll_pwait", 6, (None, 8)), (GLIBC,), _NEW),
    Rule("poll", Asked("ppoll", 5, (None, 8)), (MUSL,), _NEW),
    Rule("poll", Asked("ppoll", 5, (None, 0)), (GLIBC,), _NEW),
    # Some kernels have no fstat, and that of 32-bit machines is no use for 64-bit times.
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
    # A glibc built for Linux 4.3 or later makes these calls directly; Debian's is not.
    *(
        Rule(name, Asked("socketcall", 2), (GLIBC,), frozenset(("i386", "s390x")))
        for name in _MULTIPLEXED.split()
    ),
)
"""The differences, by library, version and machine; the first rule that holds is the one used."""


class Again(NamedTuple):
    """Where a C library makes a second call after the first has failed."""

    after: str
    """The kernel's name of the first."""
    errno: int
    """The error of the first."""
    asked: Asked
    """The second: with the leading arguments of the first, then the constants. It fails alike."""
    libc: str
    machines: frozenset[str] = MACHINES

    def holds(self, call: str, errno: int, place: Where) -> bool:
        """True after a call that failed like this in that place."""
        alike = (call, errno, place.libc) == (self.after, self.errno, self.libc)
        return alike and place.machine in self.machines


F_GETFD: Final = 1
ASKED_AGAIN: Final = (
    # Before Linux 3.6, fstat failed for a descriptor opened with O_PATH, and musl finds out whether
    # this is one.
    Again("fstat", EBADF, Asked("fcntl", 2, (F_GETFD,)), MUSL),
    # Before Linux 2.6.28 there was no accept4. EINVAL otherwise means a socket that doesn't listen.
    Again("accept4", EINVAL, Asked("accept", 3), MUSL, MACHINES - _NO_ACCEPT),
    Again("accept4", EINVAL, Asked("accept4", 4, (0,)), MUSL, _NO_ACCEPT),
)


_BEFORE_FSTAT: Final = (2, 32)
"""The last glibc that did not export fstat."""


def asked(function: str, place: Where) -> Asked:
    """The system call for `function` in that place."""
    if function == "fstat" and place.old_stat:
        place = place._replace(version=min(place.version, _BEFORE_FSTAT))
    for rule in RULES:
        if rule.function == function and rule.holds(place):
            return rule.asked
    return Asked(in_c(function), SURFACE[function].arguments)


MAKES_A_SOCKET: Final = "accept"
"""After this function Python calls getsockname on the descriptor, to check that it is a socket."""


class ByPython(NamedTuple):
    """A C function that Python itself calls after one of the surface."""

    after: str
    function: str
    when: str


BY_PYTHON: Final = (
    ByPython(MAKES_A_SOCKET, "getsockname", "the descriptor becomes a Python socket"),
    # signal.set_wakeup_fd, see Modules/signalmodule.c. Later, the signal itself causes a write.
    ByPython("signal", "fstat", "a signal is to wake a loop: is its pipe open?"),
    ByPython("signal", "fcntl", "a signal is to wake a loop: is its pipe non-blocking?"),
)


class Entry(NamedTuple):
    """A C function of the surface, and its system call."""

    function: str
    call: str
    """The kernel's name."""
    arguments: int
    """How many the system call has."""
    when: str


def surface(place: Where, backends: Collection[str]) -> Iterator[Entry]:
    """The system calls that the package can make in that place, with those backends."""
    for name, function in SURFACE.items():
        if function.only and function.only not in backends:
            continue
        call = asked(name, place)
        yield Entry(in_c(name), call.name, call.arguments, function.when)
        for python in BY_PYTHON:
            if python.after == name:
                more = asked(python.function, place)
                yield Entry(in_c(python.function), more.name, more.arguments, python.when)
        for rule in ASKED_AGAIN:
            if rule.holds(call.name, rule.errno, place):
                when = f"after a {call.name} that failed with {errorcode[rule.errno]}"
                yield Entry(in_c(name), rule.asked.name, rule.asked.arguments, when)


def known(place: Where) -> bool:
    """True if this table is known to be right in that place."""
    return place.libc in LIBRARIES and place.version != () and place.machine in MACHINES


def every_call() -> Iterator[str]:
    """The kernel's names of the whole surface, for all libraries and machines in the table."""
    yield from map(in_c, SURFACE)
    yield from (rule.asked.name for rule in ASKED_AGAIN)
    yield from (rule.asked.name for rule in RULES)


HERE: Final = where()
"""The C library and machine of this process."""
