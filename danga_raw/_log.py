"""The logger "danga_raw", which prints warnings to standard error where nothing is configured.

To tell of a fault never causes another: nothing here raises but what a signal's handler does. What
can't be logged is printed, and what can't be printed is lost. A log handler that writes to a socket
of this package, the telling of which would log again, is not told of that.
"""

from __future__ import annotations

import sys
from _collections_abc import Callable

from danga_raw._interrupt import by_handler


def warn(message: str, *args: object) -> None:
    """Log a warning. Imports `logging` only now: it costs more than all of the package, and most
    programs never warn."""
    if not _log("warning", message, args):
        print_error(f"{formatted(message, args)}\n")


def complain(error: OSError, message: str, *args: object) -> None:
    """Warn of a call that failed, with the error as the last argument; what a signal's handler raised
    goes on."""
    if by_handler(error):
        del error  # no cycle
        raise
    warn(message, *args, error)


def debug(message: str, *args: object) -> None:
    """Log for debugging, which nobody can have asked for without having imported `logging`."""
    if "logging" in sys.modules:
        _log("debug", message, args)


def log_exception(obj: object, error: Exception) -> None:
    """Log an exception and the object whose handler raised it, and go on: ready to be a loop's
    `on_exception`, so that one connection's fault is that connection's end alone."""
    info = (type(error), error, error.__traceback__)
    if not _log("error", "in a handler of %s", (described(obj),), exc_info=info):
        print_error(f"in a handler of {described(obj)}: {error!r}\n")


def _log(level: str, message: str, args: tuple[object, ...], **more: object) -> bool:
    """False if it could not be logged. Nothing is where this thread is in a log handler already; the
    stack tells so, as a flag could be left behind by an exception."""
    frame = sys._getframe(1).f_back  # pyright: ignore[reportPrivateUsage]  # documented
    while frame is not None and frame.f_code is not _log.__code__:
        frame = frame.f_back
    if frame is not None:
        return True
    try:
        # Where another thread is just importing it, this one doesn't wait.
        if "logging" not in sys.modules:
            __import__("logging")
        logger = sys.modules["logging"].getLogger("danga_raw")
        getattr(logger, level)(message, *args, **more)
    except Exception:
        return False
    return True


def print_error(text: str) -> None:
    """Write to standard error, which may be closed, full, or not there at all."""
    try:
        sys.stderr.write(text)
    except Exception:
        pass


def formatted(message: str, args: tuple[object, ...]) -> str:
    """`message % args`; both as they are where they don't fit."""
    try:
        return message % args if args else message
    except Exception:
        return f"{message} {args!r}"


def described(obj: object, describe: Callable[[], object] | None = None) -> str:
    """What `describe` says of an object, or `str`; the name of its class where that raises."""
    try:
        return "the loop" if obj is None else str(describe() if describe else obj)
    except Exception:
        return type(obj).__name__
