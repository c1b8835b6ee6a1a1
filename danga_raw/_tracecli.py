"""`python3 -m danga_raw trace`: run a Python program and print its system calls as strace does."""

from __future__ import annotations

import _thread
import argparse
import atexit
import json
import os
import re
import select
import stat
import sys
import time
from _thread import get_ident, get_native_id
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from errno import EBADF
from fcntl import F_DUPFD_CLOEXEC, F_GETFL, LOCK_EX, LOCK_NB, fcntl, flock
from functools import partial
from typing import Final, cast

from danga_raw._program import prepare, working_folder
from danga_raw._strace import CALLS
from danga_raw.trace import Call, Trace

_TRIES: Final = 10
"""How often a line is started again because a signal's handler raised meanwhile."""

_FIRST_THREAD: Final = get_ident()

_other_threads: Final[Callable[[], int]] = getattr(_thread, "_count")
"""The number of threads that Python has started. `threading` knows it too, but a program without
threads would have to import it."""


def main(argv: Sequence[str], prog: str) -> None:
    """Run the program under a trace. Raises what the program raises, or SystemExit(2), after a
    message on stderr, if the program or a file can't be opened or a call is unknown."""
    parser = _parser(prog)
    options, program = _split(argv)
    arguments, unknown = parser.parse_known_args(options)
    if unknown:
        parser.error(f"unknown argument {unknown[0]!r}")
    if not program:
        parser.error("a PROGRAM is needed")
    if program == ["-m"]:
        parser.error("-m takes the name of a MODULE")
    if re.fullmatch(r"python[\d.]*", os.path.basename(program[0])):
        parser.error(f"leave {program[0]!r} out: PROGRAM is what it would run")
    try:
        names = _selection(arguments.only)
        run = prepare(program)
        output = _Output(arguments.output)
    except OSError as error:
        parser.exit(2, f"danga_raw trace: {error.filename}: {error.strerror}\n")
    except ValueError as error:
        parser.exit(2, f"danga_raw trace: {error}\n")
    counting = _Counting(names)
    form = _as_json if arguments.json else partial(_as_line, arguments.stamp)
    trace = counting if arguments.table else _Printing(form, names, output)
    output.at_end = trace.stop

    def alone() -> None:
        # As strace does without -f. A mixture of two processes' lines would describe neither.
        output.leave()
        trace.stop()

    def counted() -> None:
        output.write([counting.table()])

    def audit(event: str, given: tuple[object, ...]) -> None:
        # Nothing else reports an exec, which ends the interpreter without its exit handlers.
        if event == "os.exec":
            counted()
            output.hand_on(cast("Sequence[str]", given[1]))

    os.register_at_fork(after_in_child=alone)
    # Registered before anything that the program registers, and so run after all of that.
    atexit.register(counted)
    if arguments.table or arguments.output is not None:
        sys.addaudithook(audit)
    trace.start()
    run()


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"{prog} trace",
        usage="%(prog)s [-o FILE] [-c | --json] [-e NAME,NAME] [-t] PROGRAM [ARG ...]",
        description="Run a Python program and print the system calls that danga_raw makes in it, as"
        " strace does: those of the process itself, not of its children. Lines are written as the"
        " calls return; the table of -c when the interpreter exits or execs another program, so not"
        " after os._exit or a deadly signal.",
        epilog="PROGRAM is whatever python3 takes: a file, a folder or zip archive with a"
        " __main__.py, -m MODULE, or - for the standard input.",
        allow_abbrev=False,
    )
    parser.add_argument("-o", metavar="FILE", dest="output", help="write to FILE, not to stderr")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("-c", action="store_true", dest="table", help="only count calls and errors")
    form.add_argument("--json", action="store_true", help="one JSON object per line")
    parser.add_argument(
        "-e",
        metavar="[trace=]NAME,NAME",
        action="append",
        default=[],
        dest="only",
        help="only these calls, or after a ! all but these; another -e adds to the calls, or with a"
        " ! removes some",
    )
    parser.add_argument(
        "-t",
        action="count",
        default=0,
        dest="stamp",
        help="print when each call returned; -tt with microseconds, -ttt since the epoch",
    )
    return parser


def _split(argv: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """Our options, and the program with its own arguments."""
    at = 0
    while at < len(argv) and argv[at].startswith("-") and argv[at] != "-":
        if argv[at] == "--":
            return argv[:at], argv[at + 1 :]
        # One dash may have several letters, and the last one's value may follow in the same word.
        taking = re.match("-([^-oem]*)([oem])(.*)", argv[at], re.DOTALL)
        if taking and taking[2] == "m":
            flags = [f"-{taking[1]}"] if taking[1] else []
            module = [taking[3]] if taking[3] else []
            return [*argv[:at], *flags], ["-m", *module, *argv[at + 1 :]]
        at += 2 if taking and not taking[3] else 1
    return argv[:at], argv[at:]


# --- what is done with a call ---------------------------------------------------------------------


class _Printing(Trace):
    """A trace in which each thread prints its own calls, one by one, before it goes on.

    There are no locks, so no thread waits for another, no signal's handler for the thread that it
    interrupted, and no child of a fork for a thread that it doesn't have: each line is one
    write(2), and the kernel keeps those apart. If a signal's handler of the program raises in here,
    the line is written all the same.
    """

    def __init__(
        self, form: Callable[[Call], bytes], names: frozenset[str], output: _Output
    ) -> None:
        super().__init__()
        self._form = form
        self._names = names
        self._output = output

    def hand_over(self, call: Call) -> None:
        if call.name not in self._names:
            return
        text: list[bytes] = []
        raised: BaseException | None = None
        tries = _TRIES
        while tries and (not text or text[0]):
            tries -= 1
            try:
                if not text:
                    text += map(self._form, (call,))
                self._output.write(text)
            except BaseException as error:
                raised = raised or error
        if raised is not None:
            raise raised


class _Counting(Trace):
    """A trace that counts calls, by thread, so that two threads never add to the same number."""

    def __init__(self, names: frozenset[str]) -> None:
        super().__init__()
        self._names = names
        # Unlike in a Counter, no signal's handler can run between reading a count and adding to it.
        self._counts: defaultdict[tuple[int, str], int] = defaultdict(int)
        self._failed: defaultdict[tuple[int, str], int] = defaultdict(int)

    def hand_over(self, call: Call) -> None:
        if call.name in self._names:
            key = (get_ident(), call.name)
            self._counts[key] += 1
            self._failed[key] += call.errno != 0

    def table(self) -> bytes:
        """The counts since the last table, in the columns of strace's -c but for those of the time
        in the kernel, which is unknown here."""
        calls, errors = _total(self._counts), _total(self._failed)
        if not calls:
            return b""
        rows = [(number, errors[name], name) for name, number in calls.most_common()]
        rule = f"{'':->9} {'':->9} {'':->16}"
        total = (sum(calls.values()), sum(errors.values()), "total")
        lines = [f"{number:9} {failed or '':>9} {name}" for number, failed, name in [*rows, total]]
        title = f"{'calls':>9} {'errors':>9} syscall"
        return "\n".join([title, rule, *lines[:-1], rule, lines[-1], ""]).encode()


def _total(counts: defaultdict[tuple[int, str], int]) -> Counter[str]:
    """The sums over all threads, by name. Resets the counts."""
    total: Counter[str] = Counter()
    for key in list(counts):
        total[key[1]] += counts.pop(key)
    return total


def _as_line(stamp: int, call: Call) -> bytes:
    thread = _thread_number()
    prefix = "" if thread is None else f"[pid {thread:5}] "
    return _encoded(call.line(prefix + _stamp(stamp, call.time)))


def _as_json(call: Call) -> bytes:
    fields = {"name": call.name, "args": call.decoded, "result": call.result}
    fields |= {"errno": call.error, "time": call.time}
    thread = _thread_number()
    return _encoded(json.dumps(fields if thread is None else {"pid": thread, **fields}))


def _encoded(line: str) -> bytes:
    return f"{line}\n".encode("utf-8", "surrogateescape")


def _thread_number() -> int | None:
    """The kernel's number of this thread, if the process has more than one."""
    # A thread that Python didn't start is not counted.
    return get_native_id() if _other_threads() or get_ident() != _FIRST_THREAD else None


def _stamp(kind: int, seconds: float) -> str:
    """The time as strace's -t, -tt and -ttt print it."""
    whole, part = divmod(int(seconds * 1_000_000), 1_000_000)
    if kind == 0:
        return ""
    if kind > 2:
        return f"{whole}.{part:06} "
    clock = time.strftime("%H:%M:%S", time.localtime(whole))
    return f"{clock}.{part:06} " if kind == 2 else f"{clock} "


def _selection(expressions: Sequence[str]) -> frozenset[str]:
    """The names that the -e options select. Raises `ValueError` for one that can't occur."""
    names = {alias: kernels for name, (kernels, _) in CALLS.items() for alias in (name, kernels)}
    known = frozenset(names.values())
    # strace obeys only the last -e. Whoever writes two means both.
    selected = known if not expressions or "!" in expressions[0][:7] else frozenset[str]()
    for expression in expressions:
        _, equals, wanted = expression.rpartition("=")
        if equals and not expression.startswith(("trace=", "t=")):
            raise ValueError(f"invalid expression {expression!r}; known is trace=NAME,NAME")
        chosen = wanted.removeprefix("!")
        words = names if chosen == "all" else set(chosen.split(",")) - {"none"}
        if unknown := sorted(set(words) - set(names)):
            listed = ", ".join(sorted(names))
            raise ValueError(f"invalid system call {unknown[0]!r}; known are {listed}")
        picked = frozenset(names[word] for word in words)
        selected = selected - picked if wanted.startswith("!") else selected | picked
    return selected


# --- the output -----------------------------------------------------------------------------------


class _Output:
    """The file that the text goes to. Nothing is buffered, so nothing is lost however the program
    ends, and the descriptor has a high number, so that the program's get their usual ones.

    The program may close all descriptors, as daemons do, and later use the number itself. So the
    descriptor is checked before each use, and the file is reopened, if there is one. When nothing
    can be written any more, that is reported once, and the program goes on.
    """

    def __init__(self, path: str | None) -> None:
        """Raises `OSError` if the file can't be opened, `ValueError` if it is a command."""
        if path is not None and path.startswith(("|", "!")):
            raise ValueError(f"-o takes a file, not a command: {path!r}")
        self.path = path
        self.at_end: Callable[[], object] = lambda: None
        """Called when nothing can be written any more."""
        self._folder = working_folder()
        # One number, or none when nothing more is written. A list, for the sake of `map`, which
        # takes the number just before it calls: no signal's handler can fork in between.
        self._fds = [-1]
        self._inheritable = False
        self._is_terminal = False
        try:
            self._open(at_first=True)
        except OSError as error:
            if path is not None:
                raise OSError(error.errno, error.strerror, path) from None
            # There is no standard error. The program can run all the same.
            self._fds.clear()

    def _open(self, at_first: bool = False) -> None:
        opened = 2 if self.path is None else self._open_file(self.path, at_first)
        limit = os.sysconf("SC_OPEN_MAX")
        high = 1023 if limit < 0 else min(limit - 1, 1023)
        try:
            fd = fcntl(opened, F_DUPFD_CLOEXEC, high)
        except OSError as error:
            if _by_handler(error):
                raise
            # The program has its own descriptors there.
            fd = fcntl(opened, F_DUPFD_CLOEXEC, 3)
        if self.path is not None:
            os.close(opened)
        self._file = os.fstat(fd)
        # One that the program has made non-blocking would take a part of a line without a wait.
        self._is_terminal = os.isatty(fd)
        if self._fds:
            self._fds[:] = [fd]

    def _open_file(self, path: str, at_first: bool) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        opened = os.open(os.path.join(self._folder, path), flags, 0o666)
        continued, alone = _is_continued(opened), _lock(opened)
        if at_first and alone and not continued and stat.S_ISREG(os.fstat(opened).st_mode):
            os.ftruncate(opened, 0)
        return opened

    def write(self, text: list[bytes]) -> None:
        """Write the one member of `text`, and leave there what has not been written."""
        if self._inheritable:  # The exec failed.
            self._inherit(False)
        full = self._is_terminal
        while text[0]:
            try:
                if full:
                    self._wait()
                if not self._is_ours():
                    self._open()
                for written in map(os.write, self._fds, text):
                    text[0] = text[0][written:]
            except BlockingIOError:
                full = True  # We share it with the program, which has made it non-blocking.
            except OSError as error:
                if _by_handler(error):
                    raise
                self._give_up(error)
            if not self._fds:
                text[0] = b""

    def _wait(self) -> None:
        """Wait until there is room, for a second at most."""
        room = select.poll()
        for fd in self._fds:
            room.register(fd, select.POLLOUT)
        room.poll(1000)

    def _is_ours(self) -> bool:
        try:
            found = [*map(os.fstat, self._fds)]
        except OSError as error:
            if error.errno != EBADF or _by_handler(error):
                raise
            return False
        return all(os.path.samestat(info, self._file) for info in found)

    def _give_up(self, error: OSError) -> None:
        if self._fds:  # Else this is a child that was forked while its parent was writing.
            self._fds.clear()
            self.at_end()
            if self.path is not None:
                with suppress(OSError):
                    os.write(2, f"danga_raw trace: {self.path}: {error.strerror}\n".encode())

    def leave(self) -> None:
        """Stop writing, in the child of a fork, even one by a handler amid a write."""
        if self._is_ours():
            for fd in self._fds:
                os.close(fd)
        self._fds.clear()

    def hand_on(self, command: Sequence[str | bytes | os.PathLike[str]]) -> None:
        """Before an exec of another trace into the same file: let it learn, by the open descriptor,
        that the file's lines are this process's. strace, too, follows a process through an exec."""
        path = self.path
        if path is None:
            return
        words = map(os.fsdecode, command)
        if any(word == path or (word[:1] == "-" and word.endswith(path)) for word in words):
            if not self._is_ours():  # Programs often close all descriptors before an exec.
                with suppress(OSError):
                    self._open()
            self._inherit(True)

    def _inherit(self, on: bool) -> None:
        if self._is_ours():
            for fd in self._fds:
                os.set_inheritable(fd, on)
        self._inheritable = on


def _by_handler(error: OSError) -> bool:
    """True if a signal's handler raised it; then it belongs to the program."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback is not None and traceback.tb_frame.f_code.co_filename != __file__


def _is_continued(opened: int) -> bool:
    """True if this process had the file open before an exec; closes that descriptor."""
    file = os.fstat(opened)
    for fd in _descriptors():
        with suppress(OSError):
            if (
                fd not in (0, 1, 2, opened)
                and os.path.samestat(os.fstat(fd), file)
                and os.get_inheritable(fd)
                and fcntl(fd, F_GETFL) & (os.O_ACCMODE | os.O_APPEND) == os.O_WRONLY | os.O_APPEND
            ):
                os.close(fd)
                return True
    return False


def _lock(opened: int) -> bool:
    """False if another running trace writes into the file: for example, the parent's, if a program
    starts its own command again. The lock only marks the file; nobody waits for it."""
    try:
        flock(opened, LOCK_EX | LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # Not every file system has locks.
    return True


def _descriptors() -> Sequence[int]:
    try:
        return [int(name) for name in os.listdir("/dev/fd")]
    except OSError:
        return range(1024)
