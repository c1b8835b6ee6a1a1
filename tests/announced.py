"""Runs a program that announces each system call it makes by itself.

    announced.py PROGRAM [ARG ...]

Before every os.read, os.write, os.close and os.fstat of the program, and before a socket closes
itself or is asked for its addresses, there is a write(2) to a descriptor that is never open. A
trace of the process then tells those calls from the package's, which are not announced: it has
references of its own, and where it asks a socket it is known as the one that asks.
"""

import os
import runpy
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import ParamSpec, TypeVar

ANNOUNCEMENTS = 1001
"""Never open; a write to it says that the next call is the program's."""

P = ParamSpec("P")
R = TypeVar("R")

_write = os.write


def announcing(call: Callable[P, R]) -> Callable[P, R]:
    def announced(*args: P.args, **kwargs: P.kwargs) -> R:
        if not sys._getframe(1).f_globals["__name__"].startswith("danga_raw."):
            with suppress(OSError):
                _write(ANNOUNCEMENTS, b"theirs")
        return call(*args, **kwargs)

    return announced


def main() -> None:
    for name in ("read", "write", "close", "fstat"):
        setattr(os, name, announcing(getattr(os, name)))
    real_close = getattr(socket.socket, "_real_close")

    def close(self: socket.socket) -> None:
        # Of one that has no descriptor any more there is no call to announce.
        (announcing(real_close) if self.fileno() >= 0 else real_close)(self)

    setattr(socket.socket, "_real_close", close)
    for name in ("getpeername", "getsockname"):
        setattr(socket.socket, name, announcing(getattr(socket.socket, name)))
    del sys.argv[0]
    sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
