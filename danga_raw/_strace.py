"""One system call as a record, and as the line that strace 7.2 prints for it.

`_kernel.py` knows which system call that is, and with which arguments.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import stat
import sys
from _socket import AF_INET, AF_INET6, AF_UNIX, SO_ERROR, SOL_SOCKET
from collections.abc import Callable, Mapping
from ctypes import Array, Structure, addressof, c_char_p, c_int, c_void_p
from ctypes import cast as to_pointer
from functools import lru_cache
from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias, cast

from danga_raw._clibrary import Where
from danga_raw._epoll import EPOLL_CTL_DEL, EVENT
from danga_raw._kernel import (
    ASKED_AGAIN,
    EMPTY_PATH,
    F_GETFD,
    HERE,
    MAKES_A_SOCKET,
    NO_AUTOMOUNT,
    Asked,
    asked,
)
from danga_raw._libc import PLATFORM
from danga_raw._sockopt import CORK_OPTIONS, IPPROTO_TCP
from danga_raw.types import SocketAddress

if TYPE_CHECKING:
    from resource import struct_rusage

    from danga_raw._kqueue import Kevent

_MOST: Final = 32
"""How many bytes of a string, or members of a list, strace prints."""

# --- bits and their names -----------------------------------------------------------------------


def _bits(prefix: str, names: str) -> Mapping[int, str]:
    """The names of bits, from the lowest up; a dash is a bit without a name."""
    return {1 << i: prefix + name for i, name in enumerate(names.split()) if name != "-"}


_EPOLL: Final = _bits(
    "EPOLL",
    "IN PRI OUT ERR HUP NVAL RDNORM RDBAND WRNORM WRBAND MSG - - RDHUP "
    "- - - - - - - - - - - - - - EXCLUSIVE WAKEUP ONESHOT ET",
)
_POLL: Final = _bits(
    "POLL", "IN PRI OUT ERR HUP NVAL RDNORM RDBAND WRNORM WRBAND MSG - REMOVE RDHUP - _BUSY_LOOP"
)
_KEVENT: Final = _bits("EV_", "ADD DELETE ENABLE DISABLE ONESHOT CLEAR - - - - - - - - ERROR EOF")
_CLOEXEC: Final = {os.O_CLOEXEC: "EPOLL_CLOEXEC"}
# Not 0: it stands for file types that this system lacks, and is the type of what is not a file.
_MODES: Final = {
    **{stat.S_ISUID: "S_ISUID", stat.S_ISGID: "S_ISGID", stat.S_ISVTX: "S_ISVTX"},
    **{n: name for name, n in vars(stat).items() if n and re.fullmatch("S_IF[A-Z]+", name)},
}
_OPERATIONS: Final = {1: "EPOLL_CTL_ADD", 2: "EPOLL_CTL_DEL", 3: "EPOLL_CTL_MOD"}
_LEVELS: Final = {IPPROTO_TCP: "SOL_TCP" if PLATFORM == "linux" else "IPPROTO_TCP"}
_OPTIONS: Final = {n: name for name, n in [CORK_OPTIONS.get(PLATFORM, ("", -1))]}
# NetBSD numbers its filters from 0 up; elsewhere the numbers are negative.
_FILTERS: Final = {-1: "EVFILT_READ", -2: "EVFILT_WRITE", 0: "EVFILT_READ", 1: "EVFILT_WRITE"}

# For names that share a number, the one that the kernel itself uses.
_KERNELS_OWN: Final = ("EAGAIN", "EDEADLK", "EOPNOTSUPP")
_ERRORS: Final = {
    **errno.errorcode,
    **{number: name for name, number in vars(errno).items() if name in _KERNELS_OWN},
}


@lru_cache(256)
def _epoll_events(mask: int) -> str:
    return _flags(mask, _EPOLL, "EPOLL???")


@lru_cache(256)
def _poll_events(mask: int) -> str:
    return _flags(mask & 0xFFFF, _POLL, "POLL???")


def _flags(value: int, names: Mapping[int, str], unknown: str) -> str:
    found = [name for bit, name in names.items() if value & bit]
    rest = value & ~sum(names)
    if rest:
        found.append(f"{rest:#x}" if found else f"{rest:#x} /* {unknown} */")
    return "|".join(found) or "0"


def _hex(value: int) -> str:
    return f"{value:#x}" if value else "0"


def _named(value: int, names: Mapping[int, str], unknown: str) -> str:
    return names.get(value) or f"{value:#x} /* {unknown} */"


_ESCAPES: Final = dict(zip(b'\t\n\v\f\r"\\', 'tnvfr"\\'))
_PLAIN: Final = re.compile(rb"[ !#-\[\]-~]*")


def quoted(data: bytes) -> str:
    """`data` as strace quotes it: octal escapes are as short as the next character allows."""
    if _PLAIN.fullmatch(data):
        return f'"{data.decode("ascii")}"'
    text: list[str] = []
    for byte, following in zip(data, data[1:] + b" "):
        if byte in _ESCAPES:
            text.append(f"\\{_ESCAPES[byte]}")
        elif 32 <= byte < 127:
            text.append(chr(byte))
        else:
            text.append(f"\\{byte:03o}" if following in b"01234567" else f"\\{byte:o}")
    return f'"{"".join(text)}"'


# --- representations of C arguments -------------------------------------------------------------


class Pointer(NamedTuple):
    """An address passed to the kernel, if the kernel neither read nor wrote anything there."""

    address: int | None
    """None if it is unknown, because Python made the buffer."""

    def __str__(self) -> str:
        return "0x..." if self.address is None else f"{self.address:#x}"


class Event(NamedTuple):
    """struct epoll_event."""

    events: int
    data: int

    def __str__(self) -> str:
        return f"{{events={_epoll_events(self.events)}, data={_hex(self.data)}}}"


class PollFd(NamedTuple):
    """struct pollfd, after the call."""

    fd: int
    events: int
    revents: int

    def __str__(self) -> str:
        return f"{{fd={self.fd}, events={_poll_events(self.events)}}}"

    def returned(self) -> str:
        """Its text in the result."""
        return f"{{fd={self.fd}, revents={_poll_events(self.revents)}}}"


class KernelEvent(NamedTuple):
    """struct kevent, under the field names that FreeBSD's kdump(1) prints."""

    ident: int
    filter: int
    flags: int
    fflags: int
    data: int

    def __str__(self) -> str:
        return (
            f"{{ident={self.ident}, filter={_named(self.filter, _FILTERS, 'EVFILT_???')}, "
            f"flags={_flags(self.flags, _KEVENT, 'EV_???')}, "
            f"fflags={_flags(self.fflags, {}, 'NOTE_???')}, data={self.data}, udata=NULL}}"
        )


class Timespec(NamedTuple):
    """struct timespec."""

    tv_sec: int
    tv_nsec: int

    def __str__(self) -> str:
        return f"{{tv_sec={self.tv_sec}, tv_nsec={self.tv_nsec}}}"


class Address(NamedTuple):
    """struct sockaddr, in Python's form."""

    address: SocketAddress

    def __str__(self) -> str:
        match self.address:
            case (str(ip), int(port)):
                return f'{{sa_family=AF_INET, sin_port=htons({port}), sin_addr=inet_addr("{ip}")}}'
            case (str(ip), int(port), int(flow), int(number)):
                ip, _, interface = ip.partition("%")
                scope = f'if_nametoindex("{interface}")' if interface else number
                return (
                    f"{{sa_family=AF_INET6, sin6_port=htons({port}), sin6_flowinfo=htonl({flow}), "
                    f'inet_pton(AF_INET6, "{ip}", &sin6_addr), sin6_scope_id={scope}}}'
                )
            case path:
                name = self.path(path)
                abstract = name.startswith(b"\0")
                text = "@" * abstract + quoted(name[abstract:])
                return f"{{sa_family=AF_UNIX{f', sun_path={text}' if name else ''}}}"

    @staticmethod
    def path(address: object) -> bytes:
        """The path of a UNIX address."""
        return address if isinstance(address, bytes) else os.fsencode(cast(str, address))


class Length(NamedTuple):
    """The size of an address: the size of its buffer, and how much of that was used."""

    room: int
    used: int

    def __str__(self) -> str:
        return f"[{self.room}]" if self.used == self.room else f"[{self.room} => {self.used}]"


class Word(NamedTuple):
    """A number that is printed by its name."""

    name: str
    number: int

    def __str__(self) -> str:
        return self.name


class Ends(NamedTuple):
    """The two descriptors of a pipe."""

    read: int
    write: int

    def __str__(self) -> str:
        return f"[{self.read}, {self.write}]"


class Unknown(NamedTuple):
    """An argument that a trace doesn't see; `text` is what is known of it."""

    text: str

    def __str__(self) -> str:
        return self.text


class Usage(NamedTuple):
    """struct rusage: its times, in microseconds."""

    user: int
    system: int

    def __str__(self) -> str:
        return f"{{ru_utime={_timeval(self.user)}, ru_stime={_timeval(self.system)}, ...}}"


def _timeval(microseconds: int) -> str:
    return f"{{tv_sec={microseconds // 1_000_000}, tv_usec={microseconds % 1_000_000}}}"


Value: TypeAlias = (
    int
    | str
    | bytes
    | Pointer
    | Event
    | Timespec
    | Address
    | Length
    | Word
    | Ends
    | Unknown
    | os.stat_result
    | Usage
    | tuple[Event, ...]
    | tuple[PollFd, ...]
    | tuple[KernelEvent, ...]
    | None
)
"""An argument of a call: immutable, and as it was when the call returned."""


def _text(value: Value) -> str:
    """`value` as strace prints it, if that depends only on its type."""
    match value:
        case None:
            return "NULL"
        case bytes():
            return quoted(value[:_MOST]) + ("..." if len(value) > _MOST else "")
        case str():
            return quoted(os.fsencode(value))
        case os.stat_result():
            return _stat(value)
        case tuple() if type(value) is tuple:
            return _list([str(member) for member in value[: _MOST + 1]])
        case _:
            return str(value)


def _list(members: list[str]) -> str:
    return f"[{', '.join([*members[:_MOST], '...'] if len(members) > _MOST else members)}]"


def _that_fit(members: list[str]) -> list[str]:
    """The first of `members`, and "..." if the rest doesn't fit into strace's buffer for the
    results of poll(2): 1,024 bytes, less what it reserves for the end (its poll.c)."""
    length = 1
    for number, member in enumerate(members):
        length += len(member)
        if length >= 1024 - 27:
            return [*members[:number], "..."]
        length += len(", ")
    return members


def _stat(info: os.stat_result) -> str:
    mode = info.st_mode
    what = f"st_size={info.st_size}"
    if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        numbers = [_hex(n) for n in (os.major(info.st_rdev), os.minor(info.st_rdev))]
        what = f"st_rdev=makedev({', '.join(numbers)})"
    return f"{{st_mode={_mode(mode)}, {what}, ...}}"


def _statx(value: Value) -> str:
    """fstat's result tells neither which fields statx filled nor the attributes."""
    if not isinstance(value, os.stat_result):
        return _text(value)
    what = f"stx_mode={_mode(value.st_mode)}, stx_size={value.st_size}"
    return f"{{stx_mask=..., stx_attributes=..., {what}, ...}}"


def _mode(mode: int) -> str:
    kind = [_MODES[stat.S_IFMT(mode)]] if stat.S_IFMT(mode) in _MODES else []
    kind += [_MODES[bit] for bit in (stat.S_ISUID, stat.S_ISGID, stat.S_ISVTX) if mode & bit]
    return "|".join([*kind, f"0{mode & 0o777:03o}"])


# --- a record -----------------------------------------------------------------------------------


class Call(NamedTuple):
    """One system call: its `name`, the kernel's, as strace prints it; its `args`, with what the
    kernel wrote into them; its `result`, -1 if it failed; its `errno`, 0 if it succeeded; and the
    `time` at which it returned, in seconds since the epoch."""

    name: str
    args: tuple[Value, ...]
    result: int
    errno: int
    time: float

    @property
    def decoded(self) -> tuple[str, ...]:
        """The arguments as strace prints them."""
        forms = _FORMS.get(self.name, {})
        return tuple(forms.get(i, _text)(value) for i, value in enumerate(self.args))

    @property
    def error(self) -> str | None:
        """The name of the error, such as "EAGAIN"; None if there was none."""
        return _ERRORS.get(self.errno, f"ERRNO_{self.errno}") if self.errno else None

    def line(self, prefix: str = "") -> str:
        """The line that strace prints, after `prefix`, which counts towards its column."""
        outcome = str(self.result)
        if self.error is not None:
            outcome += f" {self.error} ({os.strerror(self.errno)})"
        elif self.name in ("poll", "ppoll"):
            ready = [e.returned() for e in cast(tuple[PollFd, ...], self.args[0]) if e.revents]
            told = _list(_that_fit(ready)) if self.result else "Timeout"
            if self.result and isinstance(self.args[2], Timespec):
                told += ", left {tv_sec=..., tv_nsec=...}"  # The C library doesn't pass it on.
            outcome += f" ({told})"
        head = f"{prefix}{self.name}({', '.join(self.decoded)}) "
        return f"{head:<40}= {outcome}"

    def __str__(self) -> str:
        return self.line()


_Form: TypeAlias = Callable[[Value], str]


def _set_of(names: Mapping[int, str], unknown: str) -> _Form:
    return lambda value: _flags(cast(int, value), names, unknown)


def _one_of(names: Mapping[int, str], unknown: str) -> _Form:
    return lambda value: _named(cast(int, value), names, unknown)


def _boxed(value: Value) -> str:
    return f"[{value!r}]"


_AT: Final = {NO_AUTOMOUNT: "AT_NO_AUTOMOUNT", EMPTY_PATH: "AT_EMPTY_PATH"}
_STATX_BASIC_STATS: Final = 0x7FF


def _sync_as_stat(value: Value) -> str:
    """The flags of statx: strace prints AT_STATX_SYNC_AS_STAT though it is 0."""
    return "AT_STATX_SYNC_AS_STAT|" + _flags(cast(int, value), _AT, "AT_???")


_FCNTL: Final = {
    1: _one_of({F_GETFD: "F_GETFD", 2: "F_SETFD", 4: "F_SETFL"}, "F_???"),
    2: _set_of({1: "FD_CLOEXEC", os.O_NONBLOCK: "O_NONBLOCK"}, "FD_???"),
}
_SOCK: Final = {os.O_CLOEXEC: "SOCK_CLOEXEC", os.O_NONBLOCK: "SOCK_NONBLOCK"}
_PIPE: Final = {os.O_NONBLOCK: "O_NONBLOCK", os.O_CLOEXEC: "O_CLOEXEC"}


def _socket_type(value: Value) -> str:
    kind, more = cast(int, value) & 0xF, cast(int, value) & ~0xF
    name = _named(kind, {1: "SOCK_STREAM", 2: "SOCK_DGRAM"}, "SOCK_???")
    return f"{name}|{_flags(more, _SOCK, 'SOCK_???')}" if more else name


def _socket_error(value: Value) -> str:
    if isinstance(value, Pointer):
        return _text(value)
    number = cast(int, value)
    return f"[{_ERRORS.get(number, number)}]"


_FORMS: Final[Mapping[str, Mapping[int, _Form]]] = {
    "epoll_create1": {0: _set_of(_CLOEXEC, "EPOLL_???")},
    "epoll_ctl": {1: _one_of(_OPERATIONS, "EPOLL_CTL_???")},
    "setsockopt": {1: _one_of(_LEVELS, "SOL_???"), 2: _one_of(_OPTIONS, "TCP_???"), 3: _boxed},
    **{name: _FCNTL for name in ("fcntl", "fcntl64")},
    "accept4": {3: _set_of(_SOCK, "SOCK_???")},
    "ioctl": {2: _boxed},
    "socket": {1: _socket_type},
    "getsockopt": {3: _socket_error, 4: _boxed},
    "pipe2": {1: _set_of(_PIPE, "O_???")},
    "getrusage": {0: _one_of({0: "RUSAGE_SELF"}, "RUSAGE_???")},
    "newfstatat": {3: _set_of(_AT, "AT_???")},
    "statx": {
        2: _sync_as_stat,
        3: _one_of({_STATX_BASIC_STATS: "STATX_BASIC_STATS"}, "STATX_???"),
        4: _statx,
    },
}
"""By call and position: how to print an argument if that doesn't follow from its type."""


# --- the arguments of the C functions ------------------------------------------------------------

Given: TypeAlias = tuple[object, ...]

_POLLFD: Final = Struct("=ihh")


def _int(value: object) -> int:
    """The value of a C integer: a ctypes object, or for an int perhaps a Python int of its bits."""
    if isinstance(value, int):
        return value if value <= 0x7FFFFFFF else value - 0x100000000
    return cast(int, getattr(value, "value"))


def _target(reference: object) -> Structure:
    """The object that a `byref` refers to."""
    return cast(Structure, getattr(reference, "_obj"))


def _bytes(reference: object, size: int) -> memoryview:
    return memoryview(_target(reference)).cast("B")[:size]


def _address(data: object) -> int | None:
    """The address of bytes that were passed as a pointer."""
    return to_pointer(c_char_p(cast(bytes, data)), c_void_p).value


def _ints(given: Given, result: object) -> tuple[Value, ...]:
    return tuple(map(_int, given))


def _epoll_ctl(given: Given, result: object) -> tuple[Value, ...]:
    epfd, op, fd, event = given
    ignored = op == EPOLL_CTL_DEL
    value = Pointer(_address(event)) if ignored else Event._make(EVENT.unpack(cast(bytes, event)))
    return (_int(epfd), _int(op), _int(fd), value)


def _epoll_wait(given: Given, result: object) -> tuple[Value, ...]:
    epfd, reference, most, timeout = given
    if (count := _int(result)) < 0:
        return (_int(epfd), Pointer(addressof(_target(reference))), _int(most), _int(timeout))
    rows = EVENT.iter_unpack(_bytes(reference, count * EVENT.size))
    return (_int(epfd), tuple(map(Event._make, rows)), _int(most), _int(timeout))


def _poll(given: Given, result: object) -> tuple[Value, ...]:
    reference, count, timeout = given
    rows = _POLLFD.iter_unpack(_bytes(reference, _int(count) * _POLLFD.size))
    return (tuple(map(PollFd._make, rows)), _int(count), _int(timeout))


def _kevent(given: Given, result: object) -> tuple[Value, ...]:
    kq, changes, n_changes, events, room, limit = given
    told: Value = _kevents(events, _int(result))
    if events is not None and _int(result) < 0:
        told = Pointer(addressof(cast(Structure, events)))
    timeout = None
    if limit is not None:
        timeout = Timespec(_target(limit).tv_sec, _target(limit).tv_nsec)
    changed = _kevents(changes, _int(n_changes))
    return (_int(kq), changed, _int(n_changes), told, _int(room), timeout)


def _kevents(array: object, count: int) -> tuple[KernelEvent, ...] | None:
    if array is None:
        return None
    entries = cast("Array[Kevent]", array)[: max(count, 0)]
    return tuple(KernelEvent(e.ident, e.filter, e.flags, e.fflags, e.data) for e in entries)


def _setsockopt(given: Given, result: object) -> tuple[Value, ...]:
    fd, level, option, value, size = given
    return (_int(fd), _int(level), _int(option), _int(_target(value)), _int(size))


def _read(given: Given, result: object) -> tuple[Value, ...]:
    fd, count = given
    return (_int(fd), Pointer(None) if result is None else cast(bytes, result), _int(count))


def _write(given: Given, result: object) -> tuple[Value, ...]:
    fd, data = given
    if isinstance(data, bytes):
        return (_int(fd), data, len(data))
    # Copy a view only as far as it was written or is printed: a large one takes many calls.
    view = cast(memoryview, data)
    written = result if isinstance(result, int) else 0
    return (_int(fd), bytes(view[: max(written, _MOST + 1)]), len(view))


def _fstat(given: Given, result: object) -> tuple[Value, ...]:
    fd = _int(given[0])
    return (fd, Pointer(None) if result is None else cast(os.stat_result, result))


def _getrusage(given: Given, result: object) -> tuple[Value, ...]:
    usage = cast("struct_rusage", result)
    user, system = (round(t * 1_000_000) for t in (usage.ru_utime, usage.ru_stime))
    return (_int(given[0]), Usage(user, system))


def _fd(handle: object) -> int:
    return cast(Callable[[], int], getattr(handle, "fileno"))()


def _name(given: Given, result: object) -> tuple[Value, ...]:
    """getpeername and getsockname. Python's buffer has the size of the family's addresses."""
    handle = given[0]
    room = {2: 16, 1: 110 if PLATFORM == "linux" else 106}.get(getattr(handle, "family", 0), 28)
    match result:
        case str() | bytes() | (str(), int()) | (str(), int(), int(), int()):
            used = _size(cast("SocketAddress", result), room)
            return (_fd(handle), Address(cast("SocketAddress", result)), Length(room, used))
        case _:  # It failed, or is of another family.
            return (_fd(handle), Pointer(None), Length(room, room))


def _size(address: SocketAddress, whole: int) -> int:
    """How many of the `whole` bytes of a struct sockaddr the address uses."""
    if not isinstance(address, (str, bytes)):
        return whole
    path = Address.path(address)
    return 2 + len(path) + (path[:1] not in (b"", b"\0"))


def _accept(given: Given, result: object) -> tuple[Value, ...]:
    address = cast("tuple[object, object]", result)[1] if result is not None else None
    fd, told, length = _name(given, address)
    return (fd, told, length, os.O_CLOEXEC)


def _socket(given: Given, result: object) -> tuple[Value, ...]:
    family, kind = (int(cast(int, number)) for number in given)
    names = {AF_INET: "AF_INET", AF_INET6: "AF_INET6", AF_UNIX: "AF_UNIX"}
    protocol: Value = 0 if family == AF_UNIX else Word("IPPROTO_IP", 0)
    return (Word(names.get(family, str(family)), family), kind | os.O_CLOEXEC, protocol)


def _connect(given: Given, result: object) -> tuple[Value, ...]:
    handle, address = given
    whole = 16
    if isinstance(address, tuple):
        members = cast("tuple[object, ...]", address)
        if ":" in str(members[0]):
            whole = 28
            members += (0,) * (4 - len(members))
        address = members
    told = cast("SocketAddress", address)
    return (_fd(handle), Address(told), _size(told, whole))


def _getsockopt(given: Given, result: object) -> tuple[Value, ...]:
    level, option = Word("SOL_SOCKET", SOL_SOCKET), Word("SO_ERROR", SO_ERROR)
    value = Pointer(None) if result is None else cast(int, result)
    return (_fd(given[0]), level, option, value, 4)


def _setblocking(given: Given, result: object) -> tuple[Value, ...]:
    return (_fd(given[0]), Word("FIONBIO", 0x5421 if PLATFORM == "linux" else 0x8004667E), 1)


# Python has no name for SIGEMT, none for SIGSTKFLT before 3.11, and only two for real-time signals.
_SIGNALS: Final = {7: "SIGEMT", 16: "SIGSTKFLT"} | {
    int(each): each.name for each in signal.Signals if each < 32
}


def _signal(given: Given, result: object) -> tuple[Value, ...]:
    number, handler = cast(int, given[0]), given[1]
    name = _SIGNALS.get(number, f"SIGRT_{number - 32}")
    new = signal.Handlers(handler).name if isinstance(handler, int) else "0x..."
    return (Word(name, int(number)), Unknown(f"{{sa_handler={new}, ...}}"), Unknown("..."))


def _pipe(given: Given, result: object) -> tuple[Value, ...]:
    ends = cast("Array[c_int]", given[0])
    told = Ends(*ends) if _int(result) == 0 else Pointer(addressof(ends))
    return (told, *map(_int, given[1:]))


Taking: TypeAlias = Callable[[Given, object], tuple[Value, ...]]

_TAKING: Final[Mapping[str, Taking]] = {
    **{name: _ints for name in ("epoll_create1", "kqueue", "fcntl", "close", "getpid")},
    "epoll_ctl": _epoll_ctl,
    "epoll_wait": _epoll_wait,
    "poll": _poll,
    "kevent": _kevent,
    "setsockopt": _setsockopt,
    "read": _read,
    "write": _write,
    "fstat": _fstat,
    "getpeername": _name,
    "getsockname": _name,
    "accept": _accept,
    "socket": _socket,
    "connect": _connect,
    "getsockopt": _getsockopt,
    "setblocking": _setblocking,
    "signal": _signal,
    "pipe": _pipe,
    "pipe2": _pipe,
    "getrusage": _getrusage,
}
"""For each function of the door that is a system call: a function that makes the C function's
arguments from what Python passed and what it got back (None if that was an exception)."""


# --- the arguments of the system calls -----------------------------------------------------------


def _ppoll(args: tuple[Value, ...], constants: tuple[Value, ...]) -> tuple[Value, ...]:
    fds, count, timeout = args
    limit: Value = None
    if isinstance(timeout, int) and timeout >= 0:
        limit = Timespec(timeout // 1000, timeout % 1000 * 1_000_000)
    return (fds, count, limit, *constants)


def _newfstatat(args: tuple[Value, ...], constants: tuple[Value, ...]) -> tuple[Value, ...]:
    fd, info = args
    return (fd, "", info, *constants)


def _statx_of(args: tuple[Value, ...], constants: tuple[Value, ...]) -> tuple[Value, ...]:
    fd, info = args
    return (fd, "", *constants, _STATX_BASIC_STATS, info)


def _appended(args: tuple[Value, ...], constants: tuple[Value, ...]) -> tuple[Value, ...]:
    return (*args, *constants)


_ARRANGED: Final = {"ppoll": _ppoll, "newfstatat": _newfstatat, "statx": _statx_of}
"""By the kernel's name: the calls to which the C library doesn't just append arguments."""


def calls(place: Where) -> Mapping[str, tuple[str, Taking]]:
    """For each function of the door that is a system call, with that C library and machine:
    strace's name for it, and a function that makes its arguments."""
    return {name: _call(name, asked(name, place)) for name in _TAKING}


def _call(function: str, kernels: Asked) -> tuple[str, Taking]:
    take = _TAKING[function]
    arrange, constants = _ARRANGED.get(kernels.name, _appended), kernels.constants

    def arranged(given: Given, result: object) -> tuple[Value, ...]:
        return arrange(take(given, result), constants)

    as_in_c = not constants and kernels.name not in _ARRANGED
    return (kernels.printed(function), take if as_in_c else arranged)


RETURNED: Final[Mapping[str, Callable[[object], int]]] = {
    "read": lambda data: len(cast(bytes, data)),
    "accept": lambda made: _fd(cast("tuple[object, object]", made)[0]),
    "socket": _fd,
    "getsockopt": lambda value: 0,
    "signal": lambda former: 0,
}
"""The result of the system call, if Python's function returns something else."""


_IS_CPYTHON: Final = sys.implementation.name == "cpython"


def asked_again(function: str, call: Call, place: Where) -> Call | None:
    """The system call that Python or that C library makes by itself after `call` of `function`."""
    if function == MAKES_A_SOCKET and call.result >= 0 and _IS_CPYTHON:
        # Nobody gets to see the answer; its buffer has the size of struct sockaddr_storage.
        args: tuple[Value, ...] = (call.result, Unknown("{...}"), Unknown("[128 => ...]"))
        return call._replace(name="getsockname", args=args, result=0)
    for rule in ASKED_AGAIN:
        if rule.holds(call.name, call.errno, place):
            kept = rule.asked.arguments - len(rule.asked.constants)
            args = (*call.args[:kept], *rule.asked.constants)
            return call._replace(name=rule.asked.name, args=args)
    return None


CALLS: Final = calls(HERE)
"""Those of this process."""
FSTAT: Final = CALLS["fstat"][0]
"""strace's name for fstat(2)."""
