"""How a program reaches the simulated kernel: the package's door, and a library with kqueue."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from danga_raw import _waker
from danga_raw._connecting import begun
from danga_raw._libc import libc
from danga_raw._registry import Registry
from tests.simkernel.calls import Calls

if TYPE_CHECKING:
    from tests.simkernel.kernel import SimKernel

COMMON = ("poll", "setsockopt", "fcntl", "read", "write", "close", "fstat", "clock_gettime",
          "getrusage")  # fmt: skip
EPOLL = ("epoll_create1", "epoll_ctl", "epoll_wait")
KQUEUE = ("kqueue", "kevent")


class EntryPoints:
    """The kqueue calls of a kernel, as a C library exports them."""

    def __init__(self, kernel: SimKernel) -> None:
        self.kqueue = kernel.kqueue
        self.kevent = kernel.kevent
        self.fcntl = kernel.fcntl
        self.close = kernel.close


@contextmanager
def replaced(kernel: SimKernel) -> Iterator[None]:
    """Replace the door's attributes with the kernel's calls, and remove those that this kind of
    kernel lacks."""
    door: dict[str, Any] = vars(libc)
    before = dict(door)
    present = COMMON + (EPOLL if kernel.form == "linux" else KQUEUE)
    for name in EPOLL + KQUEUE:
        door.pop(name, None)
    for name in present:
        door[name] = getattr(kernel, name)
    door.pop("pipe2", None)
    door.update(Calls(kernel).all())
    if kernel.platform == "netbsd9":
        door["kevent"] = _named("__kevent50", kernel)
    if kernel.signals.chance:
        for name in set(present) | set(Calls(kernel).all()) - {"signal"}:
            door[name] = kernel.signals.behind(door[name])
    door["platform"] = "netbsd" if kernel.platform == "netbsd9" else kernel.platform
    made: list[Registry] = []
    init = Registry.__init__
    hearing = _waker._on_signals

    def noted(self: Registry, backend: str) -> None:
        init(self, backend)
        made.append(self)

    setattr(Registry, "__init__", noted)
    setattr(_waker, "signal", kernel.signals)
    setattr(_waker, "_on_signals", [])
    try:
        yield
    finally:
        setattr(Registry, "__init__", init)
        setattr(_waker, "signal", signal)
        setattr(_waker, "_on_signals", hearing)
        begun.clear()
        door.clear()
        door.update(before)
        for registry in made:
            # A loop that was not closed would otherwise, when it is garbage-collected, close these
            # numbers in the real kernel, where they belong to others.
            registry.poller = registry.waker = None


def _named(name: str, kernel: SimKernel) -> object:
    """`kevent`, under the symbol that tells the package whether the layout is old or new."""

    def kevent(*arguments: Any) -> int:
        return kernel.kevent(*arguments)

    kevent.__name__ = name
    return kevent
