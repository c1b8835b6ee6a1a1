"""Running a Python program as `python3` itself runs it, within a Python that runs already."""

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
"""Bytes in front of what marshal wrote: the magic number, flags, and what tells the source's state
(PEP 552)."""


def prepare(argv: Sequence[str]) -> Callable[[], None]:
    """What runs the program that `argv` names in one of the ways that python3 has: `-m MODULE`, a
    file of source or of compiled code, a folder or a zip archive with a `__main__.py` in it, or `-`
    for the standard input. Raises `OSError` for a file that can't be read.

    The program has the process to itself: `__main__`, `sys.argv` and `sys.path[0]` are replaced for
    good. Its exceptions go on to the interpreter, which ends by them in its own way and is shown no
    frame from above the program.
    """
    name, here = argv[0], working_folder()
    if name == "-m":
        return partial(_run, ["-m", *argv[2:]], here, partial(_run_module, argv[1], True))
    if name == "-":
        return partial(_run, argv, "", partial(_run_file, _standard_input(), _STDIN))
    # Since 3.9 the program knows its file by the whole path, also when it changes the directory.
    path = os.path.join(here, name)
    if name and get_importer(path) is not None:
        return partial(_run, argv, path, partial(_run_module, _MAIN, False), is_package=True)
    with open(name, "rb") as file:
        source = file.read()
    return partial(_run, argv, _folder_of(path), partial(_run_file, source, path))


def working_folder() -> str:
    """Nothing where it was removed."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return ""


def _folder_of(path: str) -> str:
    """Where the file really is, that `path` may be a link to. What a link to a pipe leads to, of
    those in /dev/fd, has no path itself."""
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
        return b""  # As python3 takes it where there is none.


def _run(
    argv: Sequence[str], folder: str, program: Callable[[], object], is_package: bool = False
) -> None:
    main = ModuleType(_MAIN)
    if sys.version_info < (3, 14):  # From there on a module's annotations are made when asked for.
        main.__dict__["__annotations__"] = {}
    main.__dict__.update(__builtins__=builtins, __loader__=BuiltinImporter)
    sys.modules[_MAIN] = main
    # A script that has imported ours by name: runpy would warn of one that is to be run again.
    sys.modules.pop("danga_raw.__main__", None)
    sys.argv = list(argv)
    # The path of an isolated Python begins with no folder of a program's but one that is a package.
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
    """What was run from a file, not as a module, doesn't know its file any more when it is over."""
    if main.__spec__ is None:
        for name in ("__file__", "__cached__"):
            main.__dict__.pop(name, None)


def _run_module(name: str, is_argument: bool) -> object:
    """A module by its name, or the `__main__` that is in the first folder of the path."""
    # What the interpreter itself calls for both; runpy's public functions give the program a
    # __main__ that is taken away again when it ends, from under its threads and atexit functions.
    run: Callable[[str, bool], object] = getattr(runpy, "_run_module_as_main")
    return run(name, is_argument)


def _run_file(source: bytes, path: str) -> None:
    """A program as the bytes of its file, compiled or not."""
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


# --- its traceback --------------------------------------------------------------------------------

_OURS: Final = frozenset(
    os.path.join(os.path.dirname(__file__), name)
    for name in ("_program.py", "_tracecli.py", "trace.py")
)
"""The files whose frames stand above the program's, or among them where a call is traced."""


def _hide_us(error: BaseException, main: ModuleType) -> None:
    """Have the traceback printed without the frames that are none of the program's."""
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
