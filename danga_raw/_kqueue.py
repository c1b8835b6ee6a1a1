"""kqueue(2): struct of each platform, constants, calls, and a poller."""

from __future__ import annotations

import ctypes
import os
from ctypes import byref, c_size_t
from errno import EBADF, EEXIST, EINTR, ENOENT, EPIPE
from fcntl import F_SETFD, FD_CLOEXEC
from functools import cache
from operator import methodcaller

from danga_raw._libc import check_fd, failure, libc, raise_failure
from danga_raw._log import warn
from danga_raw._poll import POLLERR, POLLHUP, POLLIN, POLLOUT
from danga_raw._poller import Poller
from danga_raw._structs import Fields, structure
from danga_raw._typing import cast

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Final

    from libc import Kevent as Kevent
    from libc import KQueueLibrary as KQueueLibrary

# <sys/event.h>: the same on every platform.
EV_ADD: Final = 0x0001
EV_DELETE: Final = 0x0002
EV_ENABLE: Final = 0x0004
EV_DISABLE: Final = 0x0008
EV_ONESHOT: Final = 0x0010
EV_ERROR: Final = 0x4000
EV_EOF: Final = 0x8000

MAX_EVENTS: Final = 1000
"""The maximum number of events of one wait, as in the original."""


class Abi:
    """What differs between the <sys/event.h> of the platforms."""

    def __init__(self, data: str, ext: Fields = (), netbsd: bool = False) -> None:
        filter, flags = ("uint32_t", "uint32_t") if netbsd else ("short", "unsigned short")
        self.fields: Fields = (
            ("ident", "uintptr_t"),
            ("filter", filter),
            ("flags", flags),
            ("fflags", "unsigned int"),
            ("data", data),
            ("udata", "void *"),
            *ext,
        )
        self.evfilt_read, self.evfilt_write = (0, 1) if netbsd else (-1, -2)
        self.counts_are_size_t = netbsd
        """Whether `nchanges` and `nevents` of kevent(2) are size_t and not int."""


_CLASSIC: Final = Abi("intptr_t")
_EXT: Final[Fields] = (("ext", "uint64_t[4]"),)

ABIS: Final[Mapping[str, Abi]] = {
    "darwin": _CLASSIC,
    "dragonfly": _CLASSIC,
    "libkqueue": _CLASSIC,
    "openbsd": Abi("int64_t"),
    "freebsd": Abi("int64_t", _EXT),  # since FreeBSD 12
    "netbsd": Abi("int64_t", _EXT, netbsd=True),  # since NetBSD 10, __kevent100
    "netbsd9": Abi("int64_t", netbsd=True),  # before, __kevent50
}
"""The kqueue ABIs by platform. A binding that only knew the classic one read beyond its events on
FreeBSD 12 and later (rb-kqueue, pull request 19)."""


def abi(platform: str) -> Abi:
    """The kqueue ABI of a platform. Raises `ValueError` that names the known ones."""
    try:
        return ABIS[platform]
    except KeyError:
        known = ", ".join(sorted(ABIS))
        raise ValueError(f"no kqueue layout for {platform!r}; known are {known}") from None


def kevent_type(platform: str) -> type[Kevent]:
    """struct kevent of `platform`, in the data model of the running program."""
    return cast("type[Kevent]", structure("kevent", abi(platform).fields))


def timespec_fields(platform: str, machine: str) -> Fields:
    """struct timespec: `tv_sec` has 64 bits on every kqueue platform except FreeBSD on i386; with
    libkqueue it is that of the host."""
    is_long = platform == "libkqueue" or (platform == "freebsd" and machine == "i386")
    return (("tv_sec", "long" if is_long else "int64_t"), ("tv_nsec", "long"))


def system_platform() -> str | None:
    """The name of this system's kqueue ABI; None if it has no kqueue."""
    if not hasattr(libc, "kevent"):
        return None
    if getattr(libc.kevent, "__name__", "") == "__kevent50":
        return "netbsd9"
    return libc.platform if libc.platform in ABIS else None


_END: Final = POLLERR | POLLHUP
_UNREAD: Final = 1 << 16
"""An extra bit of a mask: the read filter has data."""


class KQueue(Poller):
    """The filters of one kqueue descriptor, with the methods and event masks of the other pollers.

    A Socket has a read and a write filter, both added disabled and then enabled and disabled as
    needed. A kqueue reports nothing, not even a hang-up, while all filters of a descriptor are
    disabled. A descriptor only watched for POLLIN, like an other fd, only has a read filter.
    """

    def __init__(self, library: KQueueLibrary | None = None, platform: str | None = None) -> None:
        """`library` is any object with `kqueue` and `kevent`, and `platform` the name of its
        layout; by default, those of the C library. Raises `ValueError` for an unknown platform, and
        `OSError` if there is no kqueue."""
        super().__init__()
        name = platform if platform is not None else system_platform()
        if name is None:
            raise OSError(f"this system ({libc.platform}) has no kqueue")
        declared = abi(name)
        self._filters = (declared.evfilt_read, POLLIN), (declared.evfilt_write, POLLOUT)
        self._count: type[c_size_t | int] = c_size_t if declared.counts_are_size_t else int
        self._kevent_type = kevent_type(name)
        self._events = (self._kevent_type * MAX_EVENTS)()
        self._timespec = structure("timespec", timespec_fields(name, os.uname().machine))
        self._calls = cast("KQueueLibrary", libc) if library is None else library
        self._watched: dict[int, int] = {}
        """fd -> what it is watched for."""
        self._dropped: set[int] = set()
        """The fds that are watched for POLLOUT but have no write filter: the kernel has none if the
        other end is gone."""
        self._alone: set[int] = set()
        """The fds whose end was reported in the last batch by the write filter alone."""
        self._pid = 0
        """The process that opened it."""

    def open(self) -> None:
        """kqueue(2), and fcntl(F_SETFD, FD_CLOEXEC) if the library has it."""
        self._pid = libc.getpid()
        if not self._make(map(methodcaller("kqueue"), (self._calls,))):
            raise_failure("kqueue()")
        if fcntl := getattr(self._calls, "fcntl", None):
            fcntl(self._fd, F_SETFD, FD_CLOEXEC)

    def register(self, fd: int, events: int) -> None:
        """One kevent(2) that adds the filters and disables those not in the mask. EINVAL if
        there is no such filter. If it fails, the filters already added are removed."""
        check_fd(fd, "kevent")
        if fd in self._watched and self.holds(fd, self._watched[fd]):
            raise failure(f"kevent(EV_ADD, fd {fd})", EEXIST)
        self._forget(fd)  # The number may have been closed behind the loop's back.
        changes: list[tuple[int, int, int]] = []
        for filter, wanted in self._filters_for(events):
            changes.append((fd, filter, EV_ADD))
            if not events & wanted:
                # A separate change: libkqueue leaves a filter armed that is added and disabled at
                # once.
                changes.append((fd, filter, EV_DISABLE))
        try:
            if not self._apply(changes, EPIPE, EBADF):
                self._register_hung_up(fd, events)
        except OSError:
            self.unregister(fd, events)
            raise
        self._watched[fd] = events

    def _register_hung_up(self, fd: int, events: int) -> None:
        """`register` for a descriptor whose other end is gone: one call per change.

        macOS fails with EPIPE, but has added the filter and reports the event (mio, issue 582).
        FreeBSD, OpenBSD and DragonFly (EPIPE) and NetBSD (EBADF) have not added the write filter of
        a pipe. If the fd is not open, the read filter fails too.
        """
        for filter, wanted in self._filters_for(events):
            self._apply([(fd, filter, EV_ADD)], EPIPE, EBADF if wanted == POLLOUT else EPIPE)
        self.modify(fd, ~events, events)

    def _filters_for(self, events: int) -> tuple[tuple[int, int], ...]:
        return self._filters[:1] if events == POLLIN else self._filters

    def holds(self, fd: int, events: int) -> bool:
        """A kevent(2) that leaves the read filter as it is: closing removes the filters."""
        (read, _), _ = self._filters
        change = EV_ENABLE if events & POLLIN else EV_DISABLE
        return self._apply([(fd, read, change)], ENOENT, EBADF)

    def modify(self, fd: int, old: int, new: int) -> None:
        """A kevent(2) for each filter to be enabled or disabled."""
        for filter, wanted in self._filters:
            if not (old ^ new) & wanted:
                continue
            try:
                self._apply([(fd, filter, EV_ENABLE if new & wanted else EV_DISABLE)])
            except OSError as error:
                # A write filter may have been refused or dropped because the other end of a pipe is
                # gone. If the read filter is gone too, so is the descriptor.
                if error.errno != ENOENT or not self.holds(fd, new):
                    raise
                (self._dropped.add if new & wanted else self._dropped.discard)(fd)
        self._watched[fd] = new

    def unregister(self, fd: int, events: int) -> None:
        """A kevent(2) for each filter, because a failing change prevents those after it from being
        applied. A missing filter or a closed fd is not an error."""
        self._forget(fd)
        for filter, _ in self._filters_for(events):
            self._apply([(fd, filter, EV_DELETE)], ENOENT, EBADF)

    def _forget(self, fd: int) -> None:
        self._watched.pop(fd, None)
        self._dropped.discard(fd)

    def _apply(self, changes: list[tuple[int, int, int]], *ignored: int) -> bool:
        """One kevent(2) with changes (ident, filter, flags) that does not wait. False if it fails
        with an errno in `ignored`."""
        table = (self._kevent_type * len(changes))(*[self._kevent_type(*each) for each in changes])
        count = self._count
        if self._calls.kevent(self._fd, table, count(len(changes)), None, count(0), None) < 0:
            raise_failure(f"kevent({self._fd}, fd {changes[0][0]})", *ignored)
            return False
        return True

    def wait_bare(self, timeout_ms: int) -> None:
        """kevent(2), for at most 1,000 events; a descriptor may have two.

        A filter reports POLLIN or POLLOUT; EV_EOF adds POLLERR if it has an error, otherwise
        POLLHUP. These are held back while a descriptor that is watched for reading has data. Raises
        `OSError` also for an error reported about a fd; a fd that is gone is dropped with a
        warning.
        """
        if self._dropped:
            timeout_ms = 0
        limit = None
        if timeout_ms >= 0:
            seconds, ms = divmod(timeout_ms, 1000)
            limit = byref(self._timespec(seconds, ms * 1_000_000))
        none, room = self._count(0), self._count(MAX_EVENTS)
        count = self._calls.kevent(self._fd, None, none, self._events, room, limit)
        if count < 0:
            raise_failure(f"kevent({self._fd})", EINTR)
        found = dict.fromkeys(self._dropped, POLLOUT | POLLHUP)
        masks = dict(self._filters)
        for event in self._events[: max(count, 0)]:
            fd = event.ident
            if event.flags & EV_ERROR:
                if event.data not in (EBADF, ENOENT):
                    raise failure(f"kevent(fd {fd})", event.data)
                warn("kevent() found fd %d gone. removing.", fd)
                self._forget(fd)
                continue
            state = masks[event.filter]
            if state == POLLIN and event.data > 0:
                state |= _UNREAD
            if event.flags & EV_EOF:
                state |= POLLERR if event.fflags else POLLHUP
                if event.flags & EV_ONESHOT:  # FreeBSD drops the filter: the other end is gone.
                    self._dropped.add(fd)
            found[fd] = found.get(fd, 0) | state
        self._found(self._in_time(found))

    def _in_time(self, found: dict[int, int]) -> dict[int, int]:
        """Remove each end (hang-up or error) before which there may be data to read. The next batch
        reports it again.

        Events come in the order in which their filters fired. So one batch may have an end from the
        write filter and the next one data from the read filter, if the batch was full or the data
        came in between. An end reported by the write filter alone therefore counts from the second
        batch on, after the read filter has had its turn. Without a write filter, the read filter
        reports it.
        """
        ready: dict[int, int] = {}
        before, self._alone = self._alone, set()
        for fd, state in found.items():
            watched = self._watched.get(fd, POLLIN | POLLOUT)
            if state & _END and watched & POLLIN:
                if not state & POLLIN:
                    self._alone.add(fd)
                too_early = fd not in before or fd in self._dropped
                if state & _UNREAD or (fd in self._alone and too_early):
                    state &= ~_END
            # libkqueue, like epoll, may report the end of a descriptor that is switched off.
            if state := state & (watched | _END):
                ready[fd] = state
        return ready

    def close(self) -> None:
        """close(2), that of the library. Does nothing in a forked child, which does not inherit a
        kqueue: the number may belong to another descriptor."""
        if libc.getpid() == self._pid and (close := getattr(self._calls, "close", None)):
            for _ in map(close, self._closing):
                pass


@cache
def load_libkqueue(path: str) -> KQueueLibrary:
    """Load the userspace libkqueue at `path`, whose layout is "libkqueue", and try it on a pipe(2).

    Raises `OSError` if `path` is not a shared library with `kqueue` and `kevent`, or if the library
    can't enable both filters of a descriptor: 2.3.1 fails with EEXIST.
    """
    try:
        calls = cast("KQueueLibrary", ctypes.CDLL(path, use_errno=True))
        for name in "kqueue", "kevent":
            getattr(calls, name)
    except (OSError, AttributeError) as error:
        raise OSError(f"no libkqueue to be loaded: {error}") from None
    trial = KQueue(calls, "libkqueue")
    ends = os.pipe()
    try:
        trial.open()
        trial.register(ends[0], 0)
        trial.modify(ends[0], 0, POLLIN | POLLOUT)
    except OSError as error:
        raise OSError(
            f"no libkqueue to be used: {path} can't watch one descriptor both for reading and for "
            f"writing, as 2.7.0 can: {error}"
        ) from None
    finally:
        for end in ends:
            os.close(end)
        trial.close()
    return calls
