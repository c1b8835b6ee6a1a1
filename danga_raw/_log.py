"""The logger "danga_raw", which prints warnings to standard error if logging is not configured.

Reporting an error never causes another: nothing here raises, except what a signal's handler raises.
What can't be logged is printed, and what can't be printed is lost. Nothing is logged from within a
log handler, which may itself write to a socket of this package.
"""

from __future__ import annotations

import sys
from _collections_abc import Callable

from danga_raw._interrupt import by_handler


def warn(message: str, *args: object) -> None:
    """Log a warning. `logging` is imported only now: it costs more than this whole package, and
    most programs never need it."""
    if not _log("warning", message, args):
        print_error(f"{formatted(message, args)}\n")


def complain(error: OSError, message: str, *args: object) -> None:
    """Warn of a call that failed, with the error as the last argument. Reraises what a signal's
    handler raised."""
    if by_handler(error):
        del error  # no cycle
        raise
    warn(message, *args, error)


def debug(message: str, *args: object) -> None:
    """Log for debugging, if `logging` is imported; otherwise nobody can have enabled that."""
    if "logging" in sys.modules:
        _log("debug", message, args)


def log_exception(obj: object, error: Exception) -> None:
    """Log an exception with the object whose handler raised it. For a loop's `on_exception`: an
    error in a handler then only ends its connection."""
    info = (type(error), error, error.__traceback__)
    if not _log("error", "in a handler of %s", (described(obj),), exc_info=info):
        print_error(f"in a handler of {described(obj)}: {error!r}\n")


def _log(level: str, message: str, args: tuple[object, ...], **more: object) -> bool:
    """False if it could not be logged. Logs nothing if this thread is already in a log handler,
    which is found by the stack, because an exception could leave a flag set."""
    frame = sys._getframe(1).f_back  # pyright: ignore[reportPrivateUsage]  # documented
    while frame is not None and frame.f_code is not _log.__code__:
        frame = frame.f_back
    if frame is not None:
        return True
    try:
        # Does not wait for another thread that is importing it.
        if "logging" not in sys.modules:
            __import__("logging")
        logger = sys.modules["logging"].getLogger("danga_raw")
        getattr(logger, level)(message, *args, **more)
    except Exception:
        return False
    return True


def print_error(text: str) -> None:
    """Write to standard error, which may be closed, full or missing."""
    try:
        sys.stderr.write(text)
    except Exception:
        pass


def formatted(message: str, args: tuple[object, ...]) -> str:
    """`message % args`, or both unformatted if that fails."""
    try:
        return message % args if args else message
    except Exception:
        return f"{message} {args!r}"


def described(obj: object, describe: Callable[[], object] | None = None) -> str:
    """The result of `describe`, or `str(obj)`; the name of the class if that raises."""
    try:
        return "the loop" if obj is None else str(describe() if describe else obj)
    except Exception:
        return type(obj).__name__
