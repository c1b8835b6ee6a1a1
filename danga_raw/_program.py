"""Run a Python program as `python3` would, inside a Python that is already running."""

from __future__ import annotations

import builtins
import marshal
import os
import runpy
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from importlib.machinery import BuiltinImporter, SourceFileLoader, SourcelessFileLoader
from importlib.util import MAGIC_NUMBER
from pkgutil import get_importer
from types import CodeType, ModuleType, TracebackType
from typing import Final

_STDIN: Final = "<stdin>"
_MAIN: Final = "__main__"

_FLAGS: Final = 16
"""The size of a .pyc file's header, in bytes: the magic number, flags, and what identifies the
source (PEP 552)."""


def prepare(argv: Sequence[str]) -> Callable[[], None]:
    """A function that runs the program that `argv` names, in any of python3's ways: `-m MODULE`, a
    file of source or compiled code, a folder or zip archive with a `__main__.py`, or `-` for the
    standard input. Raises `OSError` if the file can't be read.

    The program has the process to itself: `__main__`, `sys.argv` and `sys.path[0]` are replaced and
    not restored. Its exceptions reach the interpreter, which ends as it would without us; the
    traceback shows no frames above the program's.
    """
    name, here = argv[0], working_folder()
    if name == "-m":
        return partial(_run, ["-m", *argv[2:]], here, partial(_run_module, argv[1], True))
    if name == "-":
        return partial(_run, argv, "", partial(_run_file, _standard_input(), _STDIN))
    # Since 3.9, __file__ is an absolute path, still right after the program has called chdir.
    path = os.path.join(here, name)
    if name and get_importer(path) is not None:
        return partial(_run, argv, path, partial(_run_module, _MAIN, False), is_package=True)
    with open(name, "rb") as file:
        source = file.read()
    return partial(_run, argv, _folder_of(path), partial(_run_file, source, path))


def working_folder() -> str:
    """The working directory; empty if it was removed."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return ""


def _folder_of(path: str) -> str:
    """The folder of the file itself, as `path` may be a symbolic link. A link in /dev/fd to a pipe
    leads to no path."""
    with suppress(OSError):
        path = os.path.join(os.path.dirname(path), os.readlink(path))
    with suppress(OSError):
        path = os.path.realpath(path, strict=True)
    return os.path.dirname(path)


def _standard_input() -> bytes:
    try:
        with open(0, "rb", closefd=False) as file:
            return file.read()
    except OSError:
        return b""  # If there is none, python3 runs an empty program.


def _run(
    argv: Sequence[str], folder: str, program: Callable[[], object], is_package: bool = False
) -> None:
    main = ModuleType(_MAIN)
    if sys.version_info < (3, 14):  # Later, a module's annotations are made when first needed.
        main.__dict__["__annotations__"] = {}
    main.__dict__.update(__builtins__=builtins, __loader__=BuiltinImporter)
    sys.modules[_MAIN] = main
    # The console script has imported it; runpy would warn if it were to be run again.
    sys.modules.pop("danga_raw.__main__", None)
    sys.argv = list(argv)
    # An isolated Python's path doesn't begin with the program's folder, unless that is the program.
    if not getattr(sys.flags, "safe_path", sys.flags.isolated):
        sys.path[0] = folder
    elif is_package:
        sys.path.insert(0, folder)
    try:
        program()
    except SystemExit:
        if sys.version_info >= (3, 14):
            _forget_file(main)
        raise
    except BaseException as error:
        _hide_us(error, main)
        raise
    _forget_file(main)


def _forget_file(main: ModuleType) -> None:
    """Like python3: a program that is a file, not a module, loses its `__file__` when it ends."""
    if main.__spec__ is None:
        for name in ("__file__", "__cached__"):
            main.__dict__.pop(name, None)


def _run_module(name: str, is_argument: bool) -> object:
    """Run a module by its name, or the `__main__` in the first folder of the path."""
    # The interpreter itself calls this for both. runpy's public functions would remove the
    # program's __main__ when it ends, while its threads and atexit functions still need it.
    run: Callable[[str, bool], object] = getattr(runpy, "_run_module_as_main")
    return run(name, is_argument)


def _run_file(source: bytes, path: str) -> None:
    """Run a program, given the bytes of its file, compiled or not."""
    compiled = path.endswith(".pyc") or source[:2] == MAGIC_NUMBER[:2]
    scope = sys.modules[_MAIN].__dict__
    scope["__file__"] = path
    if sys.version_info < (3, 15):
        scope["__cached__"] = None
    if path != _STDIN:
        loader = SourcelessFileLoader if compiled else SourceFileLoader
        scope["__loader__"] = loader(_MAIN, path)
    exec(_compiled(source) if compiled else compile(source, path, "exec", dont_inherit=True), scope)


def _compiled(data: bytes) -> CodeType:
    if data[:4] != MAGIC_NUMBER:
        raise RuntimeError("Bad magic number in .pyc file")
    code: object = marshal.loads(memoryview(data)[_FLAGS:])
    if not isinstance(code, CodeType):
        raise RuntimeError("Bad code object in .pyc file")
    return code


# --- the program's traceback ----------------------------------------------------------------------

_OURS: Final = frozenset(
    os.path.join(os.path.dirname(__file__), name)
    for name in ("_program.py", "_tracecli.py", "trace.py")
)
"""The files whose frames are above the program's, or between them when a call is traced."""


def _hide_us(error: BaseException, main: ModuleType) -> None:
    """Have the traceback printed with only the program's own frames."""
    theirs = _without_us(error.__traceback__)
    shown = getattr(sys, "excepthook", None)

    def show(
        kind: type[BaseException], error: BaseException, traceback: TracebackType | None
    ) -> None:
        assert shown is not None
        sys.last_traceback = theirs
        try:
            shown(kind, error.with_traceback(theirs), theirs)
        finally:
            _forget_file(main)

    if shown is not None:
        sys.excepthook = show


def _without_us(traceback: TracebackType | None) -> TracebackType | None:
    entries: list[TracebackType] = []
    while traceback is not None:
        entries.append(traceback)
        traceback = traceback.tb_next
    for entry in reversed(entries):
        frame = entry.tb_frame
        if frame.f_code.co_filename not in _OURS:
            traceback = TracebackType(traceback, frame, entry.tb_lasti, entry.tb_lineno)
    return traceback
