"""Which of the lines that strace prints are the package's, and how the two are compared.

Four rules drop from strace's text what the package did not make, without looking at the other text:
calls made before the trace was on; calls that the program announced as its own (`announced.py`);
calls on descriptors that no loop watches; and calls that Python itself makes so that a signal wakes
a wait (`signal.set_wakeup_fd`). The rest must be the package's lines. Where strace's wording
differs, `in_its_words` translates it into the package's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from danga_raw._strace import Taking
from tests.announced import ANNOUNCEMENTS, PACKAGES
from tests.strace import in_newest_words

Calls = Mapping[str, tuple[str, Taking]]
"""The names that strace has for the functions of the door, as `danga_raw._strace.calls` gives."""


class Line(NamedTuple):
    """What the rules need to know of a call that a tracer reported."""

    at: int
    """Where it stands in the watcher's text."""
    text: str
    name: str
    """The kernel's name, as strace has it."""
    fd: int
    """The first argument, -1 if it is no descriptor."""
    result: int
    bad: bool = False
    """True if it failed with EBADF."""
    again: bool = False
    """True if it failed with EINTR."""
    adds: int = -1
    """The descriptor that an epoll_ctl tries to add."""
    corks: bool = False
    """True of a setsockopt of TCP_CORK."""
    looks: bool = False
    """True of a fstat of what is no regular file."""
    own: bool = False
    """True of a call that only the package makes without an announcement."""
    ends: tuple[int, ...] = ()
    """The two ends of a pipe that was made."""
    wakes: bool = False
    """True of what Python itself does to the descriptor that signals are to wake a wait by: it looks
    whether that blocks, and writes a signal's number."""


def packages(lines: Iterator[Line], calls: Calls) -> list[Line]:
    """The package's among `lines`, which begin where the trace is on."""
    names = {kernels: function for function, (kernels, _) in calls.items()}
    pollers: dict[int, int | None] = {}  # by number: where its creation stands, until it is used
    watched: set[int] = set()
    dead: set[int] = set()  # closed by the program, of which a loop need not know
    kept: list[Line] = []
    wakers: set[int] = set()  # the write ends of the package's pipes
    accepted = -1
    for line in lines:
        name, fd = line.name, line.fd
        function = names.get(name, name)
        if name == "getsockname" and fd == accepted:
            kept.append(line)  # Python sees to it that what it has accepted is a socket.
            accepted = -1
        elif name == "write" and fd == PACKAGES:
            kept.append(next(lines, line))
        elif line.own:
            if line.again and function == "accept":
                continue  # Python repeats it silently (PEP 475).
            kept.append(line)
            watched.update(line.ends)
            wakers.update(line.ends[1:])
            if function == "accept" and line.result >= 0:
                accepted = line.result
                watched.add(accepted)
        elif line.wakes and fd in wakers:
            continue
        elif name == "write" and fd == ANNOUNCEMENTS:
            theirs = next(lines, line)
            if theirs.name == "close" and theirs.result == 0:
                watched.discard(theirs.fd)
                dead.add(theirs.fd)
        elif function in ("epoll_create1", "poll", "getrusage"):
            kept.append(line)
            if function == "epoll_create1" and line.result >= 0:
                pollers[line.result] = len(kept) - 1
        elif function in ("epoll_ctl", "epoll_wait"):
            if fd in pollers:
                kept.append(line)
                pollers[fd] = None
            if line.adds >= 0 and line.result == 0:
                watched.add(line.adds)
        elif function == "fstat":
            # The poll backend checks that what it is to watch is no regular file.
            if line.looks:
                kept.append(line)
                watched.add(fd)
            elif line.bad and fd in dead:
                kept.append(line)
        elif function == "setsockopt":
            if (fd in watched or fd in dead) and line.corks:
                kept.append(line)
        elif name == "close" and fd in pollers:
            created = pollers.pop(fd)
            if created is None:
                kept.append(line)
            else:
                del kept[created]  # Lib/selectors.py makes one at its import, to see if it can.
        elif fd in watched or fd in dead and line.bad:
            # os.read and os.write silently repeat a call that was interrupted (PEP 475).
            if not (line.again and name in ("read", "write")):
                kept.append(line)
            if name == "close":
                watched.discard(fd)
                wakers.discard(fd)
    return kept


_CALL = re.compile(r"(\w+)\((-?\d+)?")
_RESULT = re.compile(r".* = (-?\d+)(?: (E[A-Z0-9]+) | |$)")
_ADDED = re.compile(r"epoll_ctl\(\d+, EPOLL_CTL_ADD, (\d+), ")
_MODE = re.compile(r"stx?_mode=(?:S_IFSOCK|S_IFIFO|S_IFCHR|0)")
_OWN = re.compile(
    r"(?:accept4?|socket|connect)\(|ioctl\(\d+, FIONBIO, |getsockopt\(\d+, SOL_SOCKET, SO_ERROR, "
    r"|pipe2\(.*, O_NONBLOCK\|O_CLOEXEC\)"
)
_ENDS = re.compile(r"pipe2\(\[(\d+), (\d+)\], ")
_WAKES = re.compile(
    r"(?:fstat|fstat64|newfstatat|statx)\(|fcntl(?:64)?\(\d+, F_GETFL\)"
    r'|write\(\d+, "(?!\\0")(?:\\"|[^"]+)", 1\)'
)
_TRACE_IS_ON = re.compile(r"fcntl(?:64)?\(\d+, F_DUPFD_CLOEXEC, \d+\)")


def straces_lines(text: str) -> Iterator[Line]:
    """The calls of a trace of strace's from where the trace has its descriptor, and goes on."""
    lines = enumerate(text.splitlines())
    for _, line in lines:
        if _TRACE_IS_ON.match(line):
            break
    for at, line in lines:
        match = _CALL.match(line)
        if match is None or line.endswith("= ?"):
            continue  # A signal, an end, or a call that the end cut off.
        line = in_its_words(line)
        outcome, added = _RESULT.match(line), _ADDED.match(line)
        yield Line(
            at=at,
            text=line,
            name=match[1],
            fd=int(match[2] or -1),
            result=int(outcome[1]) if outcome else 0,
            bad=outcome is not None and outcome[2] == "EBADF",
            again=outcome is not None and outcome[2] == "EINTR",
            adds=int(added[1]) if added else -1,
            corks="TCP_CORK" in line,
            looks=_MODE.search(line) is not None,
            own=_OWN.match(line) is not None,
            ends=tuple(map(int, ends.groups())) if (ends := _ENDS.match(line)) else (),
            wakes=_WAKES.match(line) is not None,
        )


def packages_lines(text: str, calls: Calls) -> list[tuple[int, str]]:
    """The package's calls in a trace of strace's: where they stand, and their lines."""
    return [(line.at, line.text) for line in packages(straces_lines(text), calls)]


def in_its_words(line: str) -> str:
    """strace says who failed a call, what poll(2) answers inside when it is interrupted, how much of
    its time was left, and which fields statx(2) filled; the program sees an error, EINTR, and no
    more. And an older strace has other words than the newest."""
    line = in_newest_words(line.removesuffix(" (INJECTED)"))
    for told, known in _UNTOLD:
        line = told.sub(known, line)
    if line.startswith(_SHORTER):
        line = re.sub(r" +=", " =", line)  # The column is that of the whole text.
    return line


_SHORTER = ("rt_sigaction(", "getsockname(")
_UNTOLD = (
    (
        re.compile(r"= \? (?:ERESTART_RESTARTBLOCK|ERESTARTNOHAND) \([^)]*\)$"),
        "= -1 EINTR (Interrupted system call)",
    ),
    (
        re.compile(r"(rt_sigaction\([A-Z0-9_]+, \{sa_handler=(?:SIG_DFL|SIG_IGN)), .*, 8\)"),
        r"\1, ...}, ..., 8)",
    ),
    (
        re.compile(r"(rt_sigaction\([A-Z0-9_]+, \{sa_handler=)0x[0-9a-f]+, .*, 8\)"),
        r"\g<1>0x..., ...}, ..., 8)",
    ),
    (
        re.compile(r"(getsockname\(\d+, )\{.*\}, \[128 => \d+\]\)"),
        r"\1{...}, [128 => ...])",
    ),
    (re.compile(r", left \{tv_sec=\d+, tv_nsec=\d+\}"), ", left {tv_sec=..., tv_nsec=...}"),
    (
        re.compile(r"\{stx_mask=[^,]*, stx_attributes=[^,]*,"),
        "{stx_mask=..., stx_attributes=...,",
    ),
)


_UNKNOWN = re.compile(
    r"^((?:read|fstat|fstat64|newfstatat|statx|getpeername|getsockname|accept4)"
    r'\(\d+, (?:"", )?(?:AT_[A-Z_|]+, STATX_BASIC_STATS, )?)0x[0-9a-f.]+'
)
_SAID = re.compile(r"( = -1 E[A-Z0-9]+) \([^)]*\)$")


def addressless(line: str) -> str:
    """An address in a buffer that Python made: all that may differ, and the column behind it."""
    if _UNKNOWN.match(line) or line.startswith(_SHORTER):
        line = re.sub(r" +=", " =", _UNKNOWN.sub(r"\1ADDRESS", line))
    return line


def wordless(line: str) -> str:
    """Without the text of an error, which is the C library's: strace's and the program's may not be
    the same one."""
    return _SAID.sub(r"\1", addressless(line))


def compare(
    kind: str, theirs: str, own: str, calls: Calls, *, ended: bool = False, words: bool = True
) -> list[str]:
    """Fail at the first line in which the two differ; the package's lines. A program that was `ended`
    may have been so between a call and its line; if it wasn't, the interpreter closes the sockets
    that are open when the package has made its last call. Without `words` the texts of errors
    aren't compared."""
    plain = addressless if words else wordless
    expected = [plain(line) for _, line in packages_lines(theirs, calls)]
    found = [plain(line) for line in own.splitlines()]
    for number, (here, there) in enumerate(zip(found, expected)):
        assert here == there, f"{kind}: line {number} of {len(found)} and {len(expected)}"
    missing, surplus = expected[len(found) :], found[len(expected) :]
    assert not surplus, f"{kind}: {surplus}"
    made = [line for line in missing if not (ended and line.startswith("close("))]
    assert len(made) <= ended, f"{kind}: {missing}"
    return found
