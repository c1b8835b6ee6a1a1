"""The parts that wake, accept and connect, with each of their calls failing once.

The stories of `interrupted_parts` are told on the real kernel, but one of the calls behind the
package's door fails instead of being made, or after it was made if it can't be undone. An error
that leaves a step ends that step. The result must be one of the outcomes in `PART_ERRORS`, and the
story must end as it would without the failure.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, NamedTuple

from danga_raw._libc import libc
from tests.interrupted import complaints
from tests.interrupted_parts import PARTS, Connecting, Part

WENT_ON: Final = "went on"
"""Nobody was told: the call was repeated, or nothing had to be done."""
RAISED: Final = "raised"
"""An OSError with this errno reaches the caller."""
TOLD: Final = "told"
"""`event_connect` was called with it."""
WARNED: Final = "warned"
"""A line in the log or on standard error reports it, and everything goes on."""

Outcomes = dict[str, tuple[str, ...]]
"""errno -> the outcomes that it may have."""


def each_of(errors: str, *outcomes: str) -> Outcomes:
    return dict.fromkeys(errors.split(), outcomes)


PART_ERRORS: Final[dict[str, Outcomes]] = {
    # pipe2(2), ERRORS.
    "pipe2": each_of("EMFILE ENFILE ENOMEM", RAISED),
    # epoll_create1(2), epoll_ctl(2), epoll_wait(2), poll(2), fstat(2). For what was made before the
    # poller, there is a warning if its owner seems to have closed it. A listener that can't end its
    # watch tries again at the next event; one that can't start it, after a while.
    "epoll_create1": each_of("EINVAL EMFILE ENFILE ENOMEM", RAISED),
    "epoll_ctl ADD": each_of("ENOMEM ENOSPC", RAISED)
    | each_of("EBADF EINVAL EPERM", RAISED, WARNED),
    "epoll_ctl MOD": each_of("EBADF EINVAL ENOENT ENOMEM", RAISED, WENT_ON),
    "epoll_ctl DEL": each_of("EBADF EINVAL ENOENT ENOMEM", WARNED, WENT_ON),
    "epoll_wait": each_of("EBADF EFAULT EINVAL ENOMEM", RAISED) | each_of("EINTR", WENT_ON),
    "poll": each_of("EFAULT EINVAL ENOMEM", RAISED) | each_of("EINTR", WENT_ON),
    "fstat": each_of("ENOMEM", RAISED) | each_of("EBADF EOVERFLOW", RAISED, WARNED),
    # read(2) of a waker's pipe: nobody expects other errors than EAGAIN. For a connection, its
    # class has to deal with the error.
    "read": each_of("EAGAIN", WENT_ON) | each_of("EBADF EINVAL EIO ENOMEM", RAISED, WENT_ON),
    # write(2) that wakes a loop: its callback runs at the next event. For a connection: closes it.
    "write": each_of("EAGAIN EBADF EINVAL EIO ENOMEM EPIPE", WENT_ON),
    "close": each_of("EBADF EDQUOT EINTR EIO ENOSPC", WARNED),
    # rt_sigaction(2).
    "signal": each_of("EFAULT EINVAL", RAISED),
    # socket(2), connect(2), getsockopt(2). An unknown outcome is asked for again.
    "socket": each_of("EACCES EAFNOSUPPORT EINVAL EMFILE ENFILE ENOBUFS ENOMEM", RAISED),
    "connect": each_of(
        "EACCES EPERM EADDRINUSE EADDRNOTAVAIL EAFNOSUPPORT EAGAIN EBADF ECONNREFUSED EFAULT "
        "EISCONN ENETUNREACH ENOTSOCK EPROTOTYPE ETIMEDOUT",
        TOLD,
        WENT_ON,  # If the constructor raises, as it does in one of the stories.
    )
    | each_of("EINTR", WENT_ON, TOLD),  # The connect goes on all the same, to any outcome.
    "getsockopt": each_of("EBADF EFAULT EINVAL ENOPROTOOPT ENOTSOCK", RAISED),
    # accept4(2), ERRORS and "Error handling"; ioctl_tty(2).
    "accept": each_of(
        "EAGAIN EBADF ECONNABORTED EFAULT EINTR EINVAL EMFILE ENFILE ENOBUFS ENOMEM ENOTSOCK "
        "EOPNOTSUPP EPERM EPROTO ENETDOWN ENOPROTOOPT EHOSTDOWN ENONET EHOSTUNREACH ENETUNREACH",
        WENT_ON,
        WARNED,
    ),
    "setblocking": each_of("EBADF EFAULT EINVAL ENOTTY", RAISED),
}
"""Each call, each error that its manual page lists for it, and the outcomes it may have."""

_AS_C: Final = frozenset("epoll_create1 epoll_ctl epoll_wait poll pipe2 pipe fcntl".split())
_VERBS: Final = ("", "ADD", "DEL", "MOD")


class Door:
    """Counts the calls, and makes one of them fail."""

    def __init__(self, at: int, number: int) -> None:
        self.at = at
        self.number = number
        self.kinds: list[str] = []

    def behind(self, name: str, call: Callable[..., object]) -> Callable[..., object]:
        def called(*arguments: Any) -> object:
            kind = f"epoll_ctl {_VERBS[arguments[1]]}" if name == "epoll_ctl" else name
            self.kinds.append(kind)
            if len(self.kinds) != self.at + 1:
                return call(*arguments)
            if name == "close":
                with suppress(OSError):
                    call(*arguments)
            if name == "connect" and self.number == errno.EINTR:
                with suppress(BlockingIOError):  # Other errors are no interruption.
                    call(*arguments)
            if name in _AS_C:
                ctypes.set_errno(self.number)
                return -1
            raise OSError(self.number, os.strerror(self.number))

        return called

    @contextmanager
    def installed(self) -> Iterator[None]:
        door = vars(libc)
        before = dict(door)
        for name in {kind.partition(" ")[0] for kind in PART_ERRORS}:
            door[name] = self.behind(name, door[name])
        try:
            yield
        finally:
            door.update(before)


class Run(NamedTuple):
    """A story whose `at`th call fails."""

    story: str
    backend: str
    at: int
    kind: str
    error: str


class Failed(NamedTuple):
    """The result of a run."""

    outcome: str
    wrong: list[str]


def tell(story: str, backend: str, door: Door) -> tuple[Part, list[BaseException], list[str]]:
    """Tell a story: it, the errors that its steps raised, and the package's warnings."""
    raised: list[BaseException] = []
    with complaints() as heard:
        part = PARTS[story](backend)
        part.injected = door.number
        with door.installed():
            while part.steps:
                try:
                    part.go_on()
                except OSError as error:
                    raised.append(error)
        part.ending()
        return part, raised, heard


def runs(backends: tuple[str, ...] = ("epoll", "poll")) -> list[Run]:
    """Each call of each story with each of its errors."""
    found: list[Run] = []
    for story in PARTS:
        for backend in backends:
            tell(story, backend, Door(-1, 0))  # Some things are done only the first time.
            door = Door(-1, 0)
            tell(story, backend, door)
            for at, kind in enumerate(door.kinds):
                found += (Run(story, backend, at, kind, error) for error in PART_ERRORS[kind])
    return found


def failed(run: Run) -> Failed:
    """Tell a story with a call that fails."""
    door = Door(run.at, getattr(errno, run.error))
    part, raised, heard = tell(run.story, run.backend, door)
    name = os.strerror(door.number)
    wrong = part.wrong
    if door.kinds[run.at : run.at + 1] != [run.kind]:
        wrong.append(f"another call was hit: {door.kinds[run.at : run.at + 1]}")
    strangers = [error for error in raised if getattr(error, "errno", None) != door.number]
    if strangers or len(raised) > 1:
        wrong.append(f"raised {raised}")
    told = isinstance(part, Connecting) and any(error is not None for _, error in part.told)
    if raised:
        outcome = RAISED
    elif told and run.kind == "connect":
        outcome = TOLD
    elif any(name in line for line in heard):
        outcome = WARNED
    else:
        outcome = WENT_ON
    wrong += [line for line in heard if name not in line]
    if outcome not in PART_ERRORS[run.kind][run.error]:
        wrong.append(f"it {outcome}")
    return Failed(outcome, wrong)
