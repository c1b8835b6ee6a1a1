"""Runs a program so that it announces each system call that it makes itself.

    announced.py PROGRAM [ARG ...]

Before every os.read, os.write, os.close and os.fstat of the program, and before it makes a socket
or a socket makes a call, there is a write(2) to a descriptor that is never open. That tells these
calls from the package's in a trace of the process. The package's are not announced: it has
references of its own, and if it calls a socket's method, the stack shows this. When the interpreter
ends it sets signal handlers too, so for these the package's calls are announced instead.
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
"""Never open; a write to it announces that the next call is the program's."""
PACKAGES = 1002
"""The same for a rt_sigaction of the package."""

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
    """True if the package called the function that calls this, directly or through a socket."""
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
        # A socket without a descriptor makes no call to announce. If it closes itself, that is not
        # the package's call, no matter who asked for it.
        if self.fileno() >= 0:
            announce()
        real_close(self)

    # The package assumes that a close defined in another module does more than close(2).
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
        # With a given descriptor, no socket is made.
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
