"""The logger "danga_raw", which prints warnings to standard error where nothing is configured."""

from __future__ import annotations

import sys


def warn(message: str, *args: object) -> None:
    """Log a warning. Imports `logging` only now: it costs more than all of the package, and most
    programs never warn."""
    try:
        from logging import getLogger
    except (ImportError, OSError):
        # The descriptor table may be full, which is what there is to warn of.
        sys.stderr.write(f"{message % args}\n")
    else:
        getLogger("danga_raw").warning(message, *args)


def debug(message: str, *args: object) -> None:
    """Log for debugging, which nobody can have asked for without having imported `logging`."""
    if "logging" in sys.modules:
        sys.modules["logging"].getLogger("danga_raw").debug(message, *args)
