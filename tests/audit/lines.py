"""Which of strace's lines are the package's, and how these are compared with the package's own.

Four rules drop from strace's text the calls that the package didn't make, without looking at the
other text: calls before the trace was on; calls that the program announced as its own
(`announced.py`); calls on descriptors that no loop watches; and calls that Python itself makes so
that a signal wakes a wait (`signal.set_wakeup_fd`). The rest must be the package's lines. Where
strace's wording differs, `in_its_words` translates it into the package's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from danga_raw._strace import Taking
from tests.announced import ANNOUNCEMENTS, PACKAGES
from tests.strace import in_newest_words

Calls = Mapping[str, tuple[str, Taking]]
"""strace's names for the functions of the door, from `danga_raw._strace.calls`."""


class Line(NamedTuple):
    """A call that a tracer reported, as far as the rules need it."""

    at: int
    """Its position in the tracer's text."""
    text: str
    name: str
    """The kernel's name, as strace prints it."""
    fd: int
    """The first argument, -1 if it isn't a descriptor."""
    result: int
    bad: bool = False
    """True if it failed with EBADF."""
    again: bool = False
    """True if it failed with EINTR."""
    adds: int = -1
    """The descriptor that an epoll_ctl tries to add."""
    corks: bool = False
    """True for a setsockopt of TCP_CORK."""
    looks: bool = False
    """True for an fstat of anything but a regular file."""
    own: bool = False
    """True for a call that only the package makes without an announcement."""
    ends: tuple[int, ...] = ()
    """The two ends of a new pipe."""
    wakes: bool = False
    """True for Python's own calls on the descriptor by which signals wake a wait: it checks whether
    that blocks, and writes the signal's number."""


def packages(lines: Iterator[Line], calls: Calls) -> list[Line]:
    """The package's lines among `lines`, which begin when the trace is on."""
    names = {kernels: function for function, (kernels, _) in calls.items()}
    pollers: dict[int, int | None] = {}  # by number: the index of its creation, until it is used
    watched: set[int] = set()
    dead: set[int] = set()  # closed by the program, perhaps unknown to the loop
    kept: list[Line] = []
    wakers: set[int] = set()  # the write ends of the package's pipes
    accepted = -1
    for line in lines:
        name, fd = line.name, line.fd
        function = names.get(name, name)
        if name == "getsockname" and fd == accepted:
            kept.append(line)  # Python checks that what it has accepted is a socket.
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
            # The poll backend checks that a descriptor to watch isn't a regular file.
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
                del kept[created]  # Lib/selectors.py tries to make one when it is imported.
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
    """The calls in strace's text, from the point where the package's trace has its descriptor."""
    lines = enumerate(text.splitlines())
    for _, line in lines:
        if _TRACE_IS_ON.match(line):
            break
    for at, line in lines:
        match = _CALL.match(line)
        if match is None or line.endswith("= ?"):
            continue  # A signal, the exit, or a call that the exit cut off.
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
    """The package's calls in strace's text: their positions and lines."""
    return [(line.at, line.text) for line in packages(straces_lines(text), calls)]


def in_its_words(line: str) -> str:
    """Translate strace's wording. strace reports which calls it made fail, the kernel's internal
    error of an interrupted poll(2), how much of its timeout was left, and which fields statx(2)
    filled; the program sees an error, EINTR, and no more. And an older strace uses other words than
    the newest."""
    line = in_newest_words(line.removesuffix(" (INJECTED)"))
    for told, known in _UNTOLD:
        line = told.sub(known, line)
    if line.startswith(_SHORTER):
        line = re.sub(r" +=", " =", line)  # The column depends on the whole text.
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
    """Remove an address of a Python buffer, the only thing that may differ, and the column after
    it."""
    if _UNKNOWN.match(line) or line.startswith(_SHORTER):
        line = re.sub(r" +=", " =", _UNKNOWN.sub(r"\1ADDRESS", line))
    return line


def wordless(line: str) -> str:
    """Remove the text of an error, which is the C library's: strace may use another one than the
    program."""
    return _SAID.sub(r"\1", addressless(line))


def compare(
    kind: str, theirs: str, own: str, calls: Calls, *, ended: bool = False, words: bool = True
) -> list[str]:
    """Return the package's lines, or fail at the first one that differs. A program that was `ended`
    may have been ended between a call and its line; otherwise the interpreter closes the sockets
    that are still open after the package's last call. Without `words` the texts of errors aren't
    compared."""
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
