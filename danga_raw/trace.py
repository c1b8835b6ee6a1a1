"""The audit: every system call that the package makes, as a record and as the line strace prints.

While a trace is on, each foreign function has an `errcheck`, which everybody who holds the function
feels, and the door's Python functions are replaced by ones that report. When it goes off, nothing is
left of either. So a trace costs nothing while it is off, and can begin and end in a running loop.

What can't be seen from here: clock_gettime, which the C library answers without the kernel (vdso(7));
that `os.read` or `os.write` was interrupted and made again (PEP 475); the address of a buffer that
Python made, which is printed as 0x...; a call out of which a signal's handler raised an exception;
and a `close` that a handle which is no socket does by itself. Lines are those of x86-64, where the
kernel has all these calls under the names of the C functions.
"""

from __future__ import annotations

import argparse
import atexit
import json
import os
import resource
import select
import sys
import time
from _thread import allocate_lock, get_ident
from collections import Counter
from collections.abc import Callable
from ctypes import get_errno, set_errno
from fcntl import F_DUPFD_CLOEXEC, fcntl
from importlib.machinery import SourceFileLoader
from types import CodeType, ModuleType, TracebackType
from typing import Final, Protocol, cast

from _ctypes import CFuncPtr
from danga_raw._libc import FOREIGN, libc
from danga_raw._strace import CALLS, Call, Given

# --- the seam -----------------------------------------------------------------------------------------


class Trace:
    """Records the calls of the package, of all its loops and threads, while it is on.

    `with Trace() as calls:` gathers them in a list; `Trace(sink)` hands each to `sink`, before the
    caller has its result. Several may be on at a time, and each gets every call.

    An exception of a sink takes its trace off and reaches the caller of the traced call, an OSError
    as the cause of a RuntimeError: the package would take it for the call's own failure. What a sink
    has the package call is not traced.
    """

    __slots__ = ("calls", "sink")

    def __init__(self, sink: Callable[[Call], object] | None = None) -> None:
        """Off at first. Raises `TypeError` for a sink that can't be called."""
        if sink is not None and not callable(sink):
            raise TypeError(f"a trace takes a callable or None, not {sink!r}")
        self.calls: list[Call] = []
        """The calls so far; stays empty where there is another sink."""
        self.sink: Final[Callable[[Call], object]] = self.calls.append if sink is None else sink
        """What each call is handed to."""

    @property
    def on(self) -> bool:
        """True between `start` and `stop`."""
        return self in _on

    def start(self) -> None:
        """Record from here on; does nothing if it is on."""
        global _on
        with _switching:
            if not _on:
                _observe()
            if self not in _on:
                _on = (*_on, self)

    def stop(self) -> None:
        """Record no longer; does nothing if it is off."""
        global _on
        with _switching:
            if self in _on:
                _on = tuple(trace for trace in _on if trace is not self)
                if not _on:
                    _leave_alone()

    def __enter__(self) -> list[Call]:
        self.start()
        return self.calls

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


class _Function(Protocol):
    def __call__(self, *given: object) -> object: ...


_on: tuple[Trace, ...] = ()
_switching: Final = allocate_lock()
_replaced: Final[dict[str, tuple[object, object]]] = {}
"""By name: what was in the door, and what is there now."""
_handing_over: Final[set[int]] = set()
"""The threads that are in a sink."""


def _observe() -> None:
    door: dict[str, object] = libc.__dict__
    for name in CALLS:
        # A function that this platform lacks is absent.
        if (real := door.get(name)) is not None:
            if isinstance(real, CFuncPtr):
                setattr(real, "errcheck", _errcheck(name))
            else:
                door[name] = _reporting(name, cast(_Function, real))
            _replaced[name] = (real, door[name])


def _leave_alone() -> None:
    door: dict[str, object] = libc.__dict__
    for name, (real, substitute) in _replaced.items():
        if isinstance(real, CFuncPtr):
            del real.errcheck
        elif door.get(name) is substitute:
            door[name] = real
    _replaced.clear()


def _errcheck(name: str) -> Callable[[int, object, Given], int]:
    def errcheck(result: int, function: object, given: Given) -> int:
        number = get_errno()
        try:
            _report(name, given, result, result, number if result < 0 else 0)
        finally:
            set_errno(number)
        return result

    return errcheck


def _reporting(name: str, real: _Function) -> _Function:
    # Another kernel's functions answer as C does, and may be no C functions for all that.
    as_c = name in FOREIGN

    def reporting(*given: object) -> object:
        try:
            result = real(*given)
        except OSError as error:
            _report(name, given, None, -1, error.errno or 0)
            raise
        number = get_errno()
        returned = len(result) if isinstance(result, bytes) else result
        if not isinstance(returned, int):
            returned = 0
        try:
            _report(name, given, result, returned, number if as_c and returned < 0 else 0)
        finally:
            set_errno(number)
        return result

    return reporting


def _report(name: str, given: Given, result: object, returned: int, number: int) -> None:
    thread = get_ident()
    if thread in _handing_over:
        return
    kernels_name, take = CALLS[name]
    call = Call(kernels_name, take(given, result), returned, number, time.time())
    failure: Exception | None = None
    _handing_over.add(thread)
    try:
        for trace in _on:
            try:
                trace.sink(call)
            except Exception as error:
                trace.stop()
                failure = failure or error
    finally:
        _handing_over.discard(thread)
    if isinstance(failure, OSError):
        raise RuntimeError(f"the sink of a trace failed: {failure}") from failure
    if failure is not None:
        raise failure


# --- the command line ---------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `trace`, which mean what they mean to strace."""
    parser.description = (
        "Run a Python program and print the system calls that danga_raw makes in it, as strace"
        " does: those of the process itself, not of its children. Lines are written as the calls"
        " return; the table of -c when the interpreter ends, so not by os._exit or a deadly signal."
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
    parser.add_argument("-t", action="store_true", dest="stamp", help="the time a call returned")
    parser.add_argument("program", metavar="PROGRAM")
    parser.add_argument("arguments", metavar="ARG", nargs=argparse.REMAINDER)


def run(arguments: argparse.Namespace) -> int:
    """Run the program under a trace, to the end of the interpreter. 2 and one line on stderr for a
    program or a file that can't be opened and for an unknown call; 1 after an exception."""
    program: str = arguments.program
    where: str | None = arguments.output
    try:
        names = _selection(arguments.only)
        with open(program, "rb") as file:
            source = file.read()
        write = _writer(where)
    except (OSError, ValueError) as error:
        text = f"{error.filename or 'standard error'}: {error.strerror}" if isinstance(error, OSError) else str(error)
        print(f"danga_raw trace: {text}", file=sys.stderr)
        return 2
    trace = Trace(_sink(arguments, names, write))
    # As strace does without -f. The lines of two processes in one text would belong to neither.
    os.register_at_fork(after_in_child=trace.stop)
    trace.start()
    return _run_program(program, source, [program, *arguments.arguments])


def _selection(expression: str) -> frozenset[str]:
    """The names of an -e. Raises `ValueError` for one that is no call of the package."""
    known = frozenset(name for name, _ in CALLS.values())
    _, equals, names = expression.partition("=")
    if equals and not expression.startswith(("trace=", "t=")):
        raise ValueError(f"invalid expression {expression!r}")
    wanted = names if equals else expression
    chosen = wanted.removeprefix("!")
    selected = known if chosen == "all" else frozenset(chosen.split(","))
    if unknown := selected - known:
        raise ValueError(f"invalid system call {min(unknown)!r}")
    return known - selected if wanted.startswith("!") else selected


def _writer(path: str | None) -> Callable[[str], None]:
    """Writes a text at once and by itself, so that nothing is lost however the program ends, and on
    a descriptor out of the way, so that the program's have the numbers they would have anyway."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
    opened = 2 if path is None else os.open(path, flags, 0o666)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    high = 1023 if limit == resource.RLIM_INFINITY else min(limit - 1, 1023)
    fd = fcntl(opened, F_DUPFD_CLOEXEC, high)
    if path is not None:
        os.close(opened)

    def write(text: str) -> None:
        data = text.encode("utf-8", "surrogateescape")
        while data:
            try:
                data = data[os.write(fd, data) :]
            except BlockingIOError:
                # The program may have made a terminal non-blocking that it shares with us.
                select.select((), (fd,), ())

    return write


def _sink(
    arguments: argparse.Namespace, names: frozenset[str], write: Callable[[str], None]
) -> Callable[[Call], None]:
    calls: Counter[str] = Counter()
    errors: Counter[str] = Counter()

    def count(call: Call) -> None:
        if call.name in names:
            calls[call.name] += 1
            errors[call.name] += call.errno != 0

    def line(call: Call) -> None:
        if call.name in names:
            stamp = time.strftime("%H:%M:%S ", time.localtime(call.time)) if arguments.stamp else ""
            write(call.line(stamp) + "\n")

    def as_json(call: Call) -> None:
        if call.name in names:
            fields = {"name": call.name, "args": call.decoded, "result": call.result}
            write(json.dumps({**fields, "errno": call.error, "time": call.time}) + "\n")

    if arguments.table:
        # Registered before the program can do so, and so run after all that it registers.
        atexit.register(lambda: write(_table(calls, errors)))
        return count
    return as_json if arguments.json else line


def _table(calls: Counter[str], errors: Counter[str]) -> str:
    """Those columns of strace's -c that can be filled: what time the kernel took is not seen here."""
    if not calls:
        return ""
    rows = [(number, errors[name], name) for name, number in calls.most_common()]
    rule = f"{'':->9} {'':->9} {'':->16}"
    total = (sum(calls.values()), sum(errors.values()), "total")
    lines = [f"{number:9} {failed or '':>9} {name}" for number, failed, name in [*rows, total]]
    return "\n".join([f"{'calls':>9} {'errors':>9} syscall", rule, *lines[:-1], rule, lines[-1], ""])


def _run_program(program: str, source: bytes, argv: list[str]) -> int:
    """What `python PROGRAM ARG` does. Returns 1 after an exception; SystemExit and KeyboardInterrupt
    go on to the interpreter, which ends by them in its own way."""
    main = ModuleType("__main__")
    main.__dict__.update(
        __builtins__=__builtins__,
        __cached__=None,
        __file__=program,
        __loader__=SourceFileLoader("__main__", program),
    )
    sys.modules["__main__"] = main
    sys.argv = argv
    if not getattr(sys.flags, "safe_path", sys.flags.isolated):
        sys.path[0] = os.path.dirname(os.path.realpath(program))
    try:
        code: CodeType = compile(source, program, "exec", dont_inherit=True)
        exec(code, main.__dict__)
    except SystemExit:
        raise
    except KeyboardInterrupt as error:
        shown = sys.excepthook
        theirs = _below_us(error.__traceback__)
        sys.excepthook = lambda kind, error, _: shown(kind, error.with_traceback(theirs), theirs)
        raise
    except BaseException as error:
        theirs = _below_us(error.__traceback__)
        sys.excepthook(type(error), error.with_traceback(theirs), theirs)
        return 1
    return 0


def _below_us(traceback: TracebackType | None) -> TracebackType | None:
    """The traceback without the frames of this file, which are none of the program's."""
    while traceback is not None and traceback.tb_frame.f_code.co_filename == __file__:
        traceback = traceback.tb_next
    return traceback
