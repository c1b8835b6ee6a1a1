"""Run a command under strace, and parse the output into typed records.

`run_under_strace` returns every call that strace printed, as `Call` records with the raw line.
`own_calls` reduces them to what a scenario did: the calls on its own descriptors between its two
marks, with descriptors named in the order of their creation, so that two processes can be compared.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

NOTES = 1000
"""A scenario's notes are writes to this descriptor, which is never open."""

TRACED = (
    "epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait read write setsockopt close fcntl "
    "socketpair socket accept accept4 pipe pipe2 dup open openat"
).split()
"""The calls that a comparison needs: the loop's own, and those that create descriptors."""

_COMPARED = frozenset("epoll_ctl epoll_wait read write setsockopt close".split())
_BIRTHS = frozenset("socketpair socket accept accept4 pipe pipe2 dup".split())


class StraceError(Exception):
    """The trace is not as expected: a line can't be parsed, or a mark is missing."""


@dataclass(frozen=True)
class Call:
    """One system call, as strace printed it."""

    name: str
    args: tuple[str, ...]
    result: int | None
    """Its result; None if strace printed a question mark."""
    errno: str | None
    """The error's name, as "EAGAIN"."""
    injected: bool
    """True if strace itself made the call fail."""
    raw: str
    """The line that strace printed, without the process id."""

    @property
    def fd(self) -> int | None:
        """The first argument, if it is a number."""
        if self.args and re.fullmatch(r"-?\d+", self.args[0]):
            return int(self.args[0])
        return None

    @property
    def events(self) -> list[tuple[str, int]]:
        """The masks and descriptors of all events in the call, passed or returned."""
        return [
            (mask, int(data, 0) & 0xFFFFFFFF)
            for arg in self.args
            if arg.startswith(("{events=", "[{events="))
            for mask, data in re.findall(r"\{events=([^,]*), data=(0x[0-9a-f]+|0)\}", arg)
        ]

    @property
    def descriptors(self) -> list[int]:
        """The descriptors that the call created."""
        if self.result is None or self.result < 0:
            return []
        for arg in self.args:
            pair = re.fullmatch(r"\[(\d+), (\d+)\]", arg)
            if pair and self.name in ("socketpair", "pipe", "pipe2"):
                return [int(pair[1]), int(pair[2])]
        return [self.result]


_UNION = re.compile(r"\bdata=\{u32=\d+, u64=(\d+)\}")


def in_newest_words(line: str) -> str:
    """A line of an older strace as 7.2 would print it: up to 6.1, an event's data is a union."""
    return _UNION.sub(lambda union: f"data={int(union[1]):#x}".replace("=0x0", "=0"), line)


_PID = re.compile(r"(?:\[pid +(\d+)\] |(\d+) +)")
_UNFINISHED = re.compile(r"(.*?)\s*<unfinished \.\.\.>$")
_RESUMED = re.compile(r"<\.\.\. (\w+) resumed>,?\s*(.*)$")
_END = re.compile(r"\)\s+= (\?|0x[0-9a-f]+|-?\d+)(?: (E[A-Z0-9]+) \([^)]*\))?(.*)$")


def _end_of_args(line: str, start: int) -> tuple[list[str], int]:
    """The arguments from `start`, split at the commas of the outermost level, and their end."""
    args: list[str] = []
    depth = 0
    begin = at = start
    while at < len(line):
        char = line[at]
        if char == '"':
            at += 1
            while at < len(line) and line[at] != '"':
                at += 2 if line[at] == "\\" else 1
        elif line.startswith("/*", at):
            at = line.index("*/", at) + 1
        elif char in "([{":
            depth += 1
        elif char in ")]}" and depth:
            depth -= 1
        elif char == ")":
            if line[begin:at].strip():
                args.append(line[begin:at].strip())
            return args, at
        elif char == "," and not depth:
            args.append(line[begin:at].strip())
            begin = at + 1
        at += 1
    raise StraceError(f"arguments without an end: {line}")


def parse_line(line: str) -> Call | None:
    """The call of a complete line; None if it isn't a call (a signal, an exit)."""
    if line.startswith(("---", "+++")) or not line.strip():
        return None
    head = re.match(r"(\w+)\(", line)
    if not head:
        raise StraceError(f"not a call: {line}")
    args, closing = _end_of_args(line, head.end())
    end = _END.match(line, closing)
    if not end:
        raise StraceError(f"a call without a result: {line}")
    value = end[1]
    return Call(
        name=head[1],
        args=tuple(args),
        result=None if value == "?" else int(value, 0),
        errno=end[2],
        injected="(INJECTED)" in end[3],
        raw=line,
    )


def parse(lines: Iterable[str]) -> Iterator[Call]:
    """All calls of a trace, with interrupted lines joined where the calls ended."""
    open_lines: dict[str, str] = {}
    for text in lines:
        line = in_newest_words(text.rstrip("\n"))
        pid = ""
        prefix = _PID.match(line)
        if prefix:
            pid = prefix[1] or prefix[2]
            line = line[prefix.end() :]
        unfinished = _UNFINISHED.match(line)
        if unfinished:
            open_lines[pid] = unfinished[1]
            continue
        resumed = _RESUMED.match(line)
        if resumed:
            begun = open_lines.pop(pid, None)
            if begun is None:
                raise StraceError(f"resumed but never begun: {line}")
            rest = resumed[2]
            line = begun + ("" if rest.startswith(")") or begun.endswith("(") else " ") + rest
        call = parse_line(line)
        if call is not None:
            yield call


def run_under_strace(
    argv: Sequence[str],
    *,
    inject: Sequence[str] = (),
    trace: Sequence[str] = TRACED,
    strings: int = 120,
    env: Mapping[str, str] | None = None,
    timeout: float = 60,
) -> list[Call]:
    """Run `argv` under strace until it ends, and return its calls.

    `inject` are strace's own expressions ("epoll_wait:error=EINTR:when=2"), `strings` is how many
    bytes of a string are shown. Raises `StraceError` if the command fails or doesn't end.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "trace")
        command = ["strace", "-qq", "-o", str(out), "-s", str(strings)]
        # With the question mark, calls that this architecture lacks are not an error.
        command += ["-e", "trace=" + ",".join(f"?{name}" for name in trace)]
        for expression in inject:
            command += ["-e", f"inject={expression}"]
        said, ended = run_group([*command, *argv], env, timeout)
        lines = out.read_text(errors="replace").splitlines() if out.exists() else []
        if ended != 0:
            how = "did not end in time" if ended is None else f"ended with {ended}"
            tail = "\n".join(lines[-15:])
            raise StraceError(f"{' '.join(argv)} {how}\n{said}\nlast calls:\n{tail}")
        return list(parse(lines))


def run_group(
    command: Sequence[str], env: Mapping[str, str] | None, timeout: float
) -> tuple[str, int | None]:
    """Run strace and its command: their output, and the status, or None if they were killed."""
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=dict(env) if env is not None else None,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            said, _ = process.communicate(timeout=timeout)
            return said, process.returncode
        except BaseException as error:
            # Kill the process group: without the command in it, that would go on running.
            os.killpg(process.pid, signal.SIGKILL)
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            return process.communicate()[0], None


def between_marks(calls: Iterable[Call]) -> list[Call]:
    """The calls between the notes "begin" and "end", which every trace must have."""
    stretch: list[Call] | None = None
    for call in calls:
        text = note(call)
        if text == "begin":
            stretch = []
        elif text == "end" and stretch is not None:
            return stretch
        elif stretch is not None:
            stretch.append(call)
    raise StraceError("the trace does not hold both marks")


def note(call: Call) -> str | None:
    """The text of a note, None for any other call."""
    if call.name == "write" and call.fd == NOTES:
        return call.args[1][1:-1]
    return None


def own_calls(calls: Iterable[Call]) -> list[str]:
    """What the scenario and its event loop did, one call per line, without the process's numbers.

    Keeps the calls that are compared, on descriptors created between the marks. After a close, a
    number still means its last owner, so that calls on a dead one show. Drops the rest: what the
    interpreters read to load things, how they make sockets, and the options that they set, other
    than TCP_CORK.
    """
    names: dict[int, str] = {}
    lines: list[str] = []
    creating: dict[int, int] = {}
    # Numbers of the interpreter's files, even if a closed descriptor of the story had them before.
    borrowed: set[int] = set()
    count = 0

    def name(fd: int) -> str:
        return names.get(fd, str(fd))

    def renamed(arg: str) -> str:
        arg = re.sub(r"\bdata=(0x[0-9a-f]+|0)\b", lambda m: f"data={name(int(m[1], 0))}", arg)
        return "ADDRESS" if re.fullmatch(r"0x[0-9a-f]+", arg) else arg

    for call in between_marks(calls):
        text = note(call)
        if text is not None:
            lines.append(f"# {text}")
        elif call.name in ("epoll_create", "epoll_create1"):
            if call.result is not None and call.result >= 0:
                names[call.result] = "epoll"
                creating[call.result] = len(lines)
            flag = " close-on-exec" if "EPOLL_CLOEXEC" in call.args else ""
            lines.append(f"epoll_create{flag} = {_outcome(call)}")
        elif call.name == "fcntl":
            # The original sets the flag afterwards; either way it is part of the creation.
            if call.fd in creating and call.args[1:] == ("F_SETFD", "FD_CLOEXEC"):
                at = creating.pop(call.fd)
                lines[at] = lines[at].replace("epoll_create =", "epoll_create close-on-exec =")
        elif call.name in ("open", "openat"):
            if call.result is not None:
                borrowed.add(call.result)
        elif call.name == "close" and call.fd in borrowed:
            borrowed.discard(call.fd)
        elif call.name in _BIRTHS:
            for fd in call.descriptors:
                count += 1
                names[fd] = f"fd{count}"
        else:
            kind = "epoll_wait" if call.name == "epoll_pwait" else call.name
            if kind not in _COMPARED or call.fd not in names or call.fd in borrowed:
                continue
            if kind == "setsockopt" and call.args[2] != "TCP_CORK":
                continue
            args = list(call.args[:4] if kind == "epoll_wait" else call.args)
            args[0] = name(int(args[0]))
            if kind == "epoll_ctl":
                args[2] = name(int(args[2]))
            if kind in ("epoll_ctl", "epoll_wait"):
                args[1:] = [renamed(arg) for arg in args[1:]]
            elif kind == "read":
                args[1] = renamed(args[1])
            lines.append(f"{kind}({', '.join(args)}) = {_outcome(call)}")
    return lines


def _outcome(call: Call) -> str:
    if call.name in ("epoll_create", "epoll_create1") and not call.errno:
        return "epoll"
    injected = " (INJECTED)" if call.injected else ""
    return f"{call.result} {call.errno}{injected}" if call.errno else str(call.result)
