"""Runs a program that announces each system call it makes by itself.

    announced.py PROGRAM [ARG ...]

Before every os.read, os.write, os.close and os.fstat of the program, and before a socket is made or
makes a call of its own, there is a write(2) to a descriptor that is never open. In a trace of the
process, these calls can be told from the package's, which are not announced: it keeps its own
references to the functions, and where it calls a socket's method it is recognized as the caller.
Python also handles signals itself when it exits, so for signals the package's calls are announced.
"""

import os
import runpy
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, ParamSpec, TypeVar

ANNOUNCEMENTS = 1001
"""Never open; a write to it says that the next call is the program's."""
PACKAGES = 1002
"""The same for a rt_sigaction of the package's."""

P = ParamSpec("P")
R = TypeVar("R")

_write = os.write


def announcing(call: Callable[P, R]) -> Callable[P, R]:
    def announced(*args: P.args, **kwargs: P.kwargs) -> R:
        if not by_the_package():
            announce()
        return call(*args, **kwargs)

    return announced


def announce() -> None:
    with suppress(OSError):
        _write(ANNOUNCEMENTS, b"theirs")


def by_the_package() -> bool:
    """True if the function that called this was called by the package, though by a socket."""
    between = (__file__, socket.__file__)
    frame = sys._getframe(1)
    while frame.f_code.co_filename in between and frame.f_back is not None:
        frame = frame.f_back
    name: str = frame.f_globals["__name__"]
    return name.startswith("danga_raw.")


def main() -> None:
    for name in ("read", "write", "close", "fstat"):
        setattr(os, name, announcing(getattr(os, name)))
    real_close = getattr(socket.socket, "_real_close")

    def close(self: socket.socket) -> None:
        # A closed one makes no call to announce. A socket that closes
        # itself is none of the package's, whoever has told it to.
        if self.fileno() >= 0:
            announce()
        real_close(self)

    # The package takes a close of another module for one that does more than close(2).
    close.__module__ = socket.__name__
    setattr(socket.socket, "_real_close", close)
    real_init = socket.socket.__init__

    def init(
        self: socket.socket,
        family: int = -1,
        type: int = -1,
        proto: int = -1,
        fileno: int | None = None,
    ) -> None:
        # Of a number that is there already no socket is made.
        (announcing(real_init) if fileno is None else real_init)(self, family, type, proto, fileno)

    setattr(socket.socket, "__init__", init)
    real_signal = signal.signal

    def handle(*args: Any) -> object:
        if by_the_package():
            with suppress(OSError):
                _write(PACKAGES, b"ours")
        return real_signal(*args)

    setattr(signal, "signal", handle)
    asked = ("getpeername", "getsockname", "setblocking", "settimeout", "connect", "connect_ex")
    for name in (*asked, "getsockopt", "_accept"):
        setattr(socket.socket, name, announcing(getattr(socket.socket, name)))
    del sys.argv[0]
    sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
