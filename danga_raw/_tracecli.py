"""`python3 -m danga_raw trace`: run a Python program and print its system calls as strace does."""

from __future__ import annotations

import argparse
import atexit
import builtins
import json
import os
import resource
import select
import sys
import time
from _thread import allocate_lock
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from errno import EBADF
from fcntl import F_DUPFD_CLOEXEC, fcntl
from importlib.machinery import SourceFileLoader
from types import CodeType, ModuleType, TracebackType
from typing import Final

from danga_raw._strace import CALLS, FSTAT
from danga_raw.trace import Call, Trace

_PLAIN_FSTAT: Final = "fstat"
"""Under this name -e takes the call too where strace has it as newfstatat."""


def main(argv: Sequence[str]) -> None:
    """Run the program under a trace. Ends by SystemExit: 2, and one line on stderr, for a program or
    a file that can't be opened and for an unknown call; by the program's own exception otherwise."""
    parser = argparse.ArgumentParser(
        prog="danga_raw trace",
        usage="%(prog)s [-o FILE] [-c | --json] [-e NAME,NAME] [-t] PROGRAM [ARG ...]",
        description="Run a Python program and print the system calls that danga_raw makes in it, as"
        " strace does: those of the process itself, not of its children. Lines are written as the"
        " calls return; the table of -c when the interpreter ends, so not by os._exit or a deadly"
        " signal.",
    )
    parser.add_argument("-o", metavar="FILE", dest="output", help="write to FILE, not to stderr")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("-c", action="store_true", dest="table", help="only count calls and errors")
    form.add_argument("--json", action="store_true", help="one object a line")
    parser.add_argument(
        "-e",
        metavar="[trace=]NAME,NAME",
        dest="only",
        default="all",
        help="only these calls, or behind a ! all but these",
    )
    parser.add_argument(
        "-t",
        action="count",
        default=0,
        dest="stamp",
        help="the time at which a call returned; -tt with microseconds, -ttt since the epoch",
    )
    options, program = _split(argv)
    arguments = parser.parse_args(options)
    if not program:
        parser.error("a PROGRAM is needed")
    try:
        names = _selection(arguments.only)
        with open(program[0], "rb") as file:
            source = file.read()
        output = _Output(arguments.output)
    except OSError as error:
        parser.exit(2, f"danga_raw trace: {error.filename}: {error.strerror}\n")
    except ValueError as error:
        parser.exit(2, f"danga_raw trace: {error}\n")
    calls: Counter[str] = Counter()
    errors: Counter[str] = Counter()

    def count(call: Call) -> None:
        calls[call.name] += 1
        errors[call.name] += call.errno != 0

    def line(call: Call) -> None:
        output.write(call.line(_stamp(arguments.stamp, call.time)) + "\n")

    def as_json(call: Call) -> None:
        fields = {"name": call.name, "args": call.decoded, "result": call.result}
        output.write(json.dumps({**fields, "errno": call.error, "time": call.time}) + "\n")

    trace = _Printing(count if arguments.table else as_json if arguments.json else line, names)
    output.at_end = trace.stop

    def alone() -> None:
        # As strace does without -f. The lines of two processes in one text would belong to neither.
        trace.stop()
        calls.clear()

    os.register_at_fork(after_in_child=alone)
    # Registered before the program can do so, and so run after all that it registers.
    atexit.register(lambda: output.write(_table(calls, errors)))
    atexit.register(trace.drain)
    trace.start()
    _run_program(source, program)


def _split(argv: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """Our options, and the program with its arguments, which are none of ours."""
    at = 0
    while at < len(argv) and argv[at].startswith("-"):
        if argv[at] == "--":
            return argv[:at], argv[at + 1 :]
        at += 2 if argv[at] in ("-o", "-e") else 1
    return argv[:at], argv[at:]


class _Printing(Trace):
    """A trace whose sink raises nothing of its own and has the package make no call. So what is
    raised meanwhile, and what is called, is the program's, whose signals are handled at any time."""

    def __init__(self, sink: Callable[[Call], object], names: frozenset[str]) -> None:
        super().__init__(sink)
        self._names = names
        self._waiting: deque[Call] = deque()
        self._lock = allocate_lock()

    def hand_over(self, call: Call) -> None:
        if call.name in self._names:
            self._waiting.append(call)
            self.drain()

    def drain(self) -> None:
        """Print what waits, unless another thread, or who was interrupted, is at it."""
        while self._waiting:
            # Unpacked, so that no handler of a signal comes between the call and its result.
            (mine,) = map(self._lock.acquire, (False,))
            if not mine:
                return
            try:
                while self._waiting:
                    self.sink(self._waiting[0])
                    del self._waiting[0]
            finally:
                self._lock.release()


class _Output:
    """Where the text goes: at once and by itself, so that nothing is lost however the program ends,
    and on a descriptor out of the way, so that the program's have the numbers they would anyway.

    A program may close all descriptors, as daemons do, and the number may be its own later. So it is
    looked at before each use, and the file is opened again, if there is one. When nothing can be
    written any more that is said once, and the program goes on.
    """

    def __init__(self, path: str | None) -> None:
        """Raises `OSError` for a file that can't be opened, `ValueError` for a command."""
        if path is not None and path.startswith(("|", "!")):
            raise ValueError(f"-o takes a file, not a command: {path!r}")
        self.path = path
        self.at_end: Callable[[], object] = lambda: None
        """Called when nothing can be written any more."""
        self._folder = os.getcwd()
        self._fd = -1
        try:
            self._open(os.O_TRUNC)
        except OSError as error:
            if path is not None:
                raise OSError(error.errno, error.strerror, path) from None
            # There is no standard error, which is no reason not to run the program.

    def _open(self, more: int = 0) -> None:
        opened = 2
        if self.path is not None:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | more
            opened = os.open(os.path.join(self._folder, self.path), flags, 0o666)
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        high = 1023 if limit == resource.RLIM_INFINITY else min(limit - 1, 1023)
        try:
            self._fd = fcntl(opened, F_DUPFD_CLOEXEC, high)
        except OSError:  # There the program has its own.
            self._fd = fcntl(opened, F_DUPFD_CLOEXEC, 3)
        if self.path is not None:
            os.close(opened)
        self._file = os.fstat(self._fd)

    def write(self, text: str) -> None:
        data = text.encode("utf-8", "surrogateescape")
        while data and self._fd >= 0:
            try:
                if not self._is_ours():
                    self._open()
                # Unpacked, so that no handler of a signal comes between the call and its result.
                (written,) = map(os.write, (self._fd,), (data,))
                data = data[written:]
            except BlockingIOError:
                # The program may have made a terminal non-blocking that it shares with us.
                select.select((), (self._fd,), ())
            except OSError as error:
                if error.errno is None:
                    raise  # A signal's handler did, with a TimeoutError for instance.
                self._give_up(error)

    def _is_ours(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._fd), self._file)
        except OSError as error:
            if error.errno != EBADF:
                raise
            return False

    def _give_up(self, error: OSError) -> None:
        self._fd = -1
        self.at_end()
        if self.path is not None:
            with suppress(OSError):
                os.write(2, f"danga_raw trace: {self.path}: {error.strerror}\n".encode())


def _stamp(kind: int, seconds: float) -> str:
    """The time as strace's -t, -tt and -ttt have it."""
    whole, part = divmod(int(seconds * 1_000_000), 1_000_000)
    if kind == 0:
        return ""
    if kind > 2:
        return f"{whole}.{part:06} "
    clock = time.strftime("%H:%M:%S", time.localtime(whole))
    return f"{clock}.{part:06} " if kind == 2 else f"{clock} "


def _selection(expression: str) -> frozenset[str]:
    """The names of an -e. Raises `ValueError` for one that is no call of the package."""
    known = frozenset(name for name, _ in CALLS.values())
    _, equals, names = expression.partition("=")
    if equals and not expression.startswith(("trace=", "t=")):
        raise ValueError(f"invalid expression {expression!r}")
    wanted = names if equals else expression
    chosen = wanted.removeprefix("!")
    selected = known if chosen == "all" else frozenset(chosen.split(",")) - {"none"}
    if _PLAIN_FSTAT in selected:
        selected = selected - {_PLAIN_FSTAT} | {FSTAT}
    if unknown := selected - known:
        raise ValueError(f"invalid system call {min(unknown)!r}")
    return known - selected if wanted.startswith("!") else selected


def _table(calls: Counter[str], errors: Counter[str]) -> str:
    """Those columns of strace's -c that can be filled: the kernel's time is not seen here."""
    if not calls:
        return ""
    rows = [(number, errors[name], name) for name, number in calls.most_common()]
    rule = f"{'':->9} {'':->9} {'':->16}"
    total = (sum(calls.values()), sum(errors.values()), "total")
    lines = [f"{number:9} {failed or '':>9} {name}" for number, failed, name in [*rows, total]]
    title = f"{'calls':>9} {'errors':>9} syscall"
    return "\n".join([title, rule, *lines[:-1], rule, lines[-1], ""])


def _run_program(source: bytes, argv: Sequence[str]) -> None:
    """What `python PROGRAM ARG` does; exceptions go on to the interpreter, which ends by them in its
    own way."""
    # Since 3.9 the program knows its file by the whole path, also when it changes the directory.
    path = os.path.join(os.getcwd(), argv[0])
    main = ModuleType("__main__")
    main.__dict__.update(
        __annotations__={},
        __builtins__=builtins,
        __cached__=None,
        __file__=path,
        __loader__=SourceFileLoader("__main__", path),
    )
    sys.modules["__main__"] = main
    sys.argv = list(argv)
    if not getattr(sys.flags, "safe_path", sys.flags.isolated):
        sys.path[0] = os.path.dirname(os.path.realpath(path))
    try:
        code: CodeType = compile(source, path, "exec", dont_inherit=True)
        exec(code, main.__dict__)
    except SystemExit:
        raise
    except BaseException as error:
        _hide_us(error)
        raise


def _hide_us(error: BaseException) -> None:
    """Have the traceback printed without the frames above the program, which are none of its own."""
    theirs = error.__traceback__
    while theirs is not None and theirs.tb_frame.f_code.co_filename == __file__:
        theirs = theirs.tb_next
    shown = getattr(sys, "excepthook", None)

    def show(
        kind: type[BaseException], error: BaseException, traceback: TracebackType | None
    ) -> None:
        assert shown is not None
        shown(kind, error.with_traceback(theirs), theirs)

    if shown is not None:
        sys.excepthook = show
