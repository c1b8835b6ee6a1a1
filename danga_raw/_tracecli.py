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
from collections import Counter
from collections.abc import Callable
from fcntl import F_DUPFD_CLOEXEC, fcntl
from importlib.machinery import SourceFileLoader
from types import CodeType, ModuleType, TracebackType

from danga_raw._strace import CALLS
from danga_raw.trace import Call, Trace


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
        text = str(error)
        if isinstance(error, OSError):
            text = f"{error.filename or 'standard error'}: {error.strerror}"
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
    """Those columns of strace's -c that can be filled: the kernel's time is not seen here."""
    if not calls:
        return ""
    rows = [(number, errors[name], name) for name, number in calls.most_common()]
    rule = f"{'':->9} {'':->9} {'':->16}"
    total = (sum(calls.values()), sum(errors.values()), "total")
    lines = [f"{number:9} {failed or '':>9} {name}" for number, failed, name in [*rows, total]]
    title = f"{'calls':>9} {'errors':>9} syscall"
    return "\n".join([title, rule, *lines[:-1], rule, lines[-1], ""])


def _run_program(program: str, source: bytes, argv: list[str]) -> int:
    """What `python PROGRAM ARG` does. Returns 1 after an exception; SystemExit and
    KeyboardInterrupt go on to the interpreter, which ends by them in its own way."""
    main = ModuleType("__main__")
    main.__dict__.update(
        __builtins__=builtins,
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
