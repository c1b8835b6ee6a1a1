"""The package's voice: the logger "danga_raw", which prints warnings to standard error where nothing
is configured."""

from __future__ import annotations

import sys


def warn(message: str, *args: object) -> None:
    """Log a warning. Imports `logging` only now: that is four times the package, and most programs
    never hear one."""
    from logging import getLogger

    getLogger("danga_raw").warning(message, *args)


def debug(message: str, *args: object) -> None:
    """Log for debugging; nobody can have asked for that without `logging`."""
    if "logging" in sys.modules:
        sys.modules["logging"].getLogger("danga_raw").debug(message, *args)
