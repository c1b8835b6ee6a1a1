"""The package's calls as qemu's user mode reports them, `qemu-MACHINE -strace`.

qemu's text has its own form: pointers where strace prints what they point to, numbers where strace
prints names, no socket addresses and no file modes. So for each call the comparison covers its
name, its result or error, and each argument that both print as a number or as names of bits. A call
made through socketcall(2) is printed in capitals.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Collection, Iterator
from typing import NamedTuple

from danga_raw._clibrary import Where
from danga_raw._kernel import asked
from danga_raw._strace import calls
from tests.audit.lines import Line, packages
from tests.strace import parse_line

_LINE = re.compile(r"(?:\d+ )?([A-Za-z_]\w*)\((.*)\) = (-?\d+|0x[0-9a-f]+)(?: errno=(\d+) \(.*\))?")
_TRACE_IS_ON = re.compile(r"(?:\d+ )?fcntl(?:64)?\(\d+,F_DUPFD_CLOEXEC,\d+\) = (\d+)")

_FIONBIO = re.compile(r",(?:FIONBIO|0x8004667e),")
"""The number is powerpc's, for which qemu has no name."""

_ACCEPT4 = "18,"
"""SYS_ACCEPT4 (linux/net.h), the only call of socketcall(2) that qemu doesn't decode."""

_NAMES = {
    "NULL": 0,
    "EPOLL_CTL_ADD": 1,
    "EPOLL_CTL_DEL": 2,
    "EPOLL_CTL_MOD": 3,
    "EPOLL_CLOEXEC": 0o2000000,
    "SOL_TCP": 6,
    "TCP_CORK": 3,
    "RUSAGE_SELF": 0,
    "AT_STATX_SYNC_AS_STAT": 0,
    "AT_NO_AUTOMOUNT": 0x800,
    "AT_EMPTY_PATH": 0x1000,
    "STATX_BASIC_STATS": 0x7FF,
    "F_GETFD": 1,
    "O_NONBLOCK": 0o4000,
    "O_CLOEXEC": 0o2000000,
    "SOL_SOCKET": 1,
    "SO_ERROR": 4,
}
"""The values for which one of the two prints a name."""


class Told(NamedTuple):
    """A call, as far as both report it."""

    name: str
    """The kernel's name, after "socketcall" if it was made that way."""
    args: tuple[int | None, ...]
    """None for an argument that one of the two doesn't report."""
    result: int
    error: int
    """The errno, 0 if there was no error."""


INTERRUPTED = (512, 514, 516)
"""ERESTARTSYS and the like, the kernel's internal errors for a call interrupted by a signal."""


def _number(text: str) -> int | None:
    text = text.strip().replace("(nil)", "NULL")
    if re.fullmatch(r"-?\d+", text):
        return int(text)
    if re.fullmatch(r"0x[0-9a-f]{1,5}", text):
        return int(text, 16)
    names = text.split("|")
    return sum(_NAMES[name] for name in names) if all(name in _NAMES for name in names) else None


def as_told(line: str) -> Told | None:
    found = _LINE.match(line)
    if found is None:
        return None
    name = found[1]
    if name.isupper():
        name = f"socketcall {name.lower()}"
    elif name == "socketcall" and found[2].startswith(_ACCEPT4):
        return Told("socketcall accept4", (None,), int(found[3]), int(found[4] or 0))
    error = int(found[4] or 0)
    if error in INTERRUPTED:
        error = errno.EINTR
    args = tuple(map(_number, found[2].split(",")))
    return Told(name, args, int(found[3], 0), error)


NON_BLOCKING = 0o2004000
"""O_CLOEXEC|O_NONBLOCK, which identifies the package's pipe2."""


def qemus_lines(text: str, names: Collection[str], pipes: Iterator[str]) -> Iterator[Line]:
    """The calls of these names in qemu's text, from the point where the package's trace has its
    descriptor. The ends of a pipe come from `pipes`, the package's own lines, since qemu doesn't
    report them."""
    lines = enumerate(whole_lines(text))
    own = -1
    for _, line in lines:
        if on := _TRACE_IS_ON.match(line):
            own = int(on[1])
            break
    files = {own}
    for at, line in lines:
        told = as_told(line)
        if told is None:
            continue  # A signal, or the exit.
        name = told.name.removeprefix("socketcall ")
        fd = told.args[0] if told.args and told.args[0] is not None else -1
        if name in ("openat", "open") and told.result >= 0 and '"/dev/' not in line:
            files.add(told.result)
        elif name == "close" and fd in files and told.result == 0:
            files.discard(fd)
        if name not in names:
            continue
        makes_pipe = name == "pipe2" and told.args[1] == NON_BLOCKING and told.result == 0
        operation, target = (told.args + (None, None, None))[1:3]
        yield Line(
            at=at,
            text=line,
            name=name,
            fd=fd,
            result=told.result,
            bad=told.error == errno.EBADF,
            again=told.error == errno.EINTR,
            adds=target if name == "epoll_ctl" and operation == 1 and target is not None else -1,
            corks=(operation, target) == (6, 3),
            # `looks`: the interpreter calls fstat only on files that were opened.
            own=name in ("accept4", "socket", "connect")
            or name == "ioctl"
            and _FIONBIO.search(line) is not None
            or name == "getsockopt"
            and (operation, target) == (1, 4)
            or makes_pipe,
            ends=tuple(map(int, re.findall(r"\d+", next(pipes))[1:3])) if makes_pipe else (),
            looks=told.error == 0 and fd > 2 and fd not in files,
        )


def whole_lines(text: str) -> Iterator[str]:
    """The lines of qemu's text, joining a line that the report of a signal has split."""
    begun = ""
    for line in text.splitlines():
        if line.startswith("---"):
            continue
        if match := re.match(r"(.*\))(?: )?---", line):
            begun = match[1]  # The call that the signal interrupted; its rest follows.
            continue
        yield begun + line if begun and line.startswith(" = ") else line
        begun = ""


def compare(theirs: str, own: str, place: Where, *, ended: bool = False) -> int:
    """The number of equal calls. Fails at the first that the two report differently."""
    kernels = calls(place)
    functions = {name: function for function, (name, _) in kernels.items()}
    functions |= {"fcntl": "fcntl"}
    found = own.splitlines()
    pipes = (line for line in found if line.startswith("pipe2(["))
    expected = [line.text for line in packages(qemus_lines(theirs, functions, pipes), kernels)]
    for at, (ours, line) in enumerate(zip(found, expected)):
        call = parse_line(ours)
        told = as_told(line)
        assert call is not None and told is not None
        where = f"line {at} of {len(found)} and {len(expected)}: {ours!r}, {line!r}"
        through = asked(functions.get(call.name, call.name), place).name == "socketcall"
        name = f"socketcall {call.name}" if through else call.name
        number: int = getattr(errno, call.errno) if call.errno else 0
        assert (name, call.result, number) == (told.name, told.result, told.error), where
        args = tuple(map(_number, call.args))
        both = [(a, b) for a, b in zip(args, told.args) if a is not None and b is not None]
        assert all(a == b for a, b in both), where
        if name.startswith("epoll_"):
            assert len(both) >= len(args) - 2, where
    missing, surplus = expected[len(found) :], found[len(expected) :]
    assert not surplus, surplus
    made = [line for line in missing if not (ended and "close(" in line)]
    assert len(made) <= ended, missing
    return len(found)
