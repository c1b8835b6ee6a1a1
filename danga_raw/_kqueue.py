"""kqueue(2): its struct on every platform, its constants, its calls, and a poller over them."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable, Mapping, Sequence
from ctypes import Structure, byref, c_size_t
from errno import EBADF, EEXIST, EINTR, ENOENT, EPIPE
from fcntl import F_SETFD, FD_CLOEXEC
from functools import cache
from operator import methodcaller
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, cast

from danga_raw._interrupt import Once
from danga_raw._libc import check_fd, failure, libc
from danga_raw._log import warn
from danga_raw._poll import POLLERR, POLLHUP, POLLIN, POLLOUT
from danga_raw._structs import Fields, structure

if TYPE_CHECKING:
    # What byref gives has no public name.
    from _ctypes import _CArgObject as Reference  # pyright: ignore[reportPrivateUsage]
    from ctypes import Array

    from danga_raw.types import Batch

# <sys/event.h>: these are the same on every platform.
EV_ADD: Final = 0x0001
EV_DELETE: Final = 0x0002
EV_ENABLE: Final = 0x0004
EV_DISABLE: Final = 0x0008
EV_ONESHOT: Final = 0x0010
EV_ERROR: Final = 0x4000
EV_EOF: Final = 0x8000

MAX_EVENTS: Final = 1000
"""The most events that one wait takes, as in the original."""


class Abi(NamedTuple):
    """What one platform's <sys/event.h> declares differently from the others'."""

    fields: Fields
    """struct kevent."""
    evfilt_read: int
    evfilt_write: int
    counts_are_size_t: bool
    """True where `nchanges` and `nevents` of kevent(2) are size_t and not int."""


def _kevent_fields(filter: str, flags: str, data: str) -> Fields:
    return (
        ("ident", "uintptr_t"),
        ("filter", filter),
        ("flags", flags),
        ("fflags", "unsigned int"),
        ("data", data),
        ("udata", "void *"),
    )


_EXT: Final[Fields] = (("ext", "uint64_t[4]"),)
_CLASSIC: Final = Abi(_kevent_fields("short", "unsigned short", "intptr_t"), -1, -2, False)
_WIDE_DATA: Final = Abi(_kevent_fields("short", "unsigned short", "int64_t"), -1, -2, False)
_NETBSD: Final = Abi(_kevent_fields("uint32_t", "uint32_t", "int64_t"), 0, 1, True)

ABIS: Final[Mapping[str, Abi]] = {
    "darwin": _CLASSIC,
    "dragonfly": _CLASSIC,
    "libkqueue": _CLASSIC,
    "openbsd": _WIDE_DATA,
    "freebsd": _WIDE_DATA._replace(fields=_WIDE_DATA.fields + _EXT),  # since FreeBSD 12
    "netbsd": _NETBSD._replace(fields=_NETBSD.fields + _EXT),  # since NetBSD 10, __kevent100
    "netbsd9": _NETBSD,  # before, __kevent50
}
"""The kqueue ABIs by the name of their platform. A binding that knew only the classic one read past
its events from FreeBSD 12 on (rb-kqueue, pull request 19)."""


class Kevent(Structure):
    """What every platform's struct kevent has, in the order of EV_SET(2)'s arguments."""

    if TYPE_CHECKING:
        ident: int
        filter: int
        flags: int
        fflags: int
        data: int


def abi(platform: str) -> Abi:
    """The kqueue ABI of a platform. Raises `ValueError`, naming those that are known."""
    try:
        return ABIS[platform]
    except KeyError:
        known = ", ".join(sorted(ABIS))
        raise ValueError(f"no kqueue layout for {platform!r}; known are {known}") from None


def kevent_type(platform: str) -> type[Kevent]:
    """struct kevent as `platform` lays it out, under the data model of the running program.

    Raises `ValueError` for an unknown platform.
    """
    return cast(type[Kevent], structure("kevent", abi(platform).fields, base=Kevent))


def timespec_fields(platform: str, machine: str) -> Fields:
    """struct timespec: `tv_sec` has 64 bits on every kqueue platform but FreeBSD's i386; under
    libkqueue it is the host's."""
    is_long = platform == "libkqueue" or (platform == "freebsd" and machine == "i386")
    return (("tv_sec", "long" if is_long else "int64_t"), ("tv_nsec", "long"))


class KQueueLibrary(Protocol):
    """What a kqueue poller stands on: the C library, libkqueue, or another kernel's entry points.

    Both calls answer as C does: -1 for an error, with its number in `ctypes.get_errno()`. Where the
    library has `fcntl` too, its kqueue is closed on exec, and where it has `close`, that closes it:
    in this process the number may be another descriptor's.
    """

    def kqueue(self) -> int: ...
    def kevent(
        self,
        kq: int,
        changelist: Array[Kevent] | None,
        nchanges: int | c_size_t,
        eventlist: Array[Kevent] | None,
        nevents: int | c_size_t,
        timeout: Reference | None,
        /,
    ) -> int: ...


def system_platform() -> str | None:
    """The name of this system's kqueue ABI; None where it has no kqueue."""
    if not hasattr(libc, "kevent"):
        return None
    if getattr(libc.kevent, "__name__", "") == "__kevent50":
        return "netbsd9"
    return libc.platform if libc.platform in ABIS else None


_END: Final = POLLERR | POLLHUP
_UNREAD: Final = 1 << 16
"""Beside the bits of an event mask: the read filter has data."""

Change = tuple[int, int, int]
"""(ident, filter, flags) of one entry of a change list."""


class KQueue:
    """The filters of one kqueue descriptor, with the verbs and event masks of the other pollers.

    A Socket has a read and a write filter, both added disabled and then switched on and off; a
    kqueue reports nothing, not even a hang-up, for a descriptor whose filters are all disabled.
    """

    __slots__ = (
        "_abi",
        "_alone",
        "_calls",
        "_descriptor",
        "_dropped",
        "_events",
        "_filters",
        "_kevent_type",
        "_kq",
        "_pid",
        "_timespec",
        "_watched",
        "batch",
    )

    bare = False

    def __init__(self, library: KQueueLibrary | None = None, platform: str | None = None) -> None:
        """Makes no system call; `open` does.

        `library` is any object with `kqueue` and `kevent`, and `platform` the name of its layout;
        without them, the C library's own. Raises `ValueError` for a platform that isn't known, and
        `OSError` where there is no kqueue.
        """
        name = platform if platform is not None else system_platform()
        if name is None:
            raise OSError(f"this system ({libc.platform}) has no kqueue")
        self._abi = abi(name)
        self._filters = (self._abi.evfilt_read, POLLIN), (self._abi.evfilt_write, POLLOUT)
        self._kevent_type = kevent_type(name)
        self._events = (self._kevent_type * MAX_EVENTS)()
        self._timespec = structure("timespec", timespec_fields(name, os.uname().machine))
        self._calls = cast(KQueueLibrary, libc) if library is None else library
        self._watched: dict[int, int] = {}
        """fd -> what it is watched for."""
        self._dropped: set[int] = set()
        """The fds that are watched for POLLOUT without a write filter: nobody is left to write to."""
        self._alone: set[int] = set()
        """The fds of whose end, in the last batch, the write filter alone spoke."""
        self.batch: Batch = []
        self._descriptor = Once()
        self._kq = -1
        self._pid = 0
        """Whose kqueue it is."""

    def open(self) -> None:
        """kqueue(2), where that isn't done, and fcntl(F_SETFD, FD_CLOEXEC) where the library has it.
        Raises `OSError` (EMFILE, ENFILE, ENOMEM)."""
        self._pid = libc.getpid()
        self._kq = self._descriptor.make(map(methodcaller("kqueue"), (self._calls,)))
        if self._kq < 0:
            raise failure("kqueue()")
        if fcntl := getattr(self._calls, "fcntl", None):
            fcntl(self._kq, F_SETFD, FD_CLOEXEC)

    def register(self, fd: int, events: int) -> None:
        """Watch `fd`: one kevent(2).

        For POLLIN alone (an other fd) it gets the read filter alone. Any other mask (a Socket's)
        gives it both filters, disabled where the mask does not have POLLIN or POLLOUT.

        Raises `OSError`: EBADF for a dead fd, EEXIST for one that is watched already, EINVAL for
        one that the filters don't take. What was added by then is taken back.
        """
        check_fd(fd, "kevent")
        if fd in self._watched and self.holds(fd, self._watched[fd]):
            raise OSError(EEXIST, f"kevent(EV_ADD, fd {fd}): {os.strerror(EEXIST)}")
        self._forget(fd)  # Its number may have been closed behind the loop's back.
        changes: list[Change] = []
        for filter, wanted in self._filters:
            if events == POLLIN != wanted:
                continue
            changes.append((fd, filter, EV_ADD))
            if not events & wanted:
                # A change of its own: libkqueue leaves the filter armed when it is added and
                # disabled in one.
                changes.append((fd, filter, EV_DISABLE))
        try:
            if not self._apply(changes, EPIPE, EBADF):
                self._register_hung_up(fd, events)
        except OSError:
            self.unregister(fd, events)
            raise
        self._watched[fd] = events

    def _register_hung_up(self, fd: int, events: int) -> None:
        """The same for what has no other end any more, each change by itself.

        macOS says so (EPIPE), has added the filter all the same, and reports the event (mio, issue
        582). FreeBSD, OpenBSD and DragonFly (EPIPE) and NetBSD (EBADF) have not added the write
        filter of a pipe. A dead fd is known by its read filter.
        """
        (read, _), (write, _) = self._filters
        self._apply([(fd, read, EV_ADD)], EPIPE)
        if events != POLLIN:
            self._apply([(fd, write, EV_ADD)], EPIPE, EBADF)
        self.modify(fd, ~events, events)

    def holds(self, fd: int, events: int) -> bool:
        """False if the descriptor that was watched for `events` was closed since, which takes its
        filters along: a kevent(2) that switches the read filter as it is."""
        change = EV_ENABLE if events & POLLIN else EV_DISABLE
        return self._apply([(fd, self._abi.evfilt_read, change)], ENOENT, EBADF)

    def modify(self, fd: int, old: int, new: int) -> None:
        """Switch the filters on or off in which `new` differs from `old`: a kevent(2) for each.

        Raises `OSError`: EBADF, ENOENT for a fd that is not watched.
        """
        for filter, wanted in self._filters:
            if not (old ^ new) & wanted:
                continue
            try:
                self._apply([(fd, filter, EV_ENABLE if new & wanted else EV_DISABLE)])
            except OSError as error:
                # A write filter may be refused, or dropped, since the other end of a pipe is gone.
                # Where the read filter is gone too, so is the descriptor that had the number.
                if error.errno != ENOENT or not self.holds(fd, new):
                    raise
                (self._dropped.add if new & wanted else self._dropped.discard)(fd)
        self._watched[fd] = new

    def unregister(self, fd: int, events: int) -> None:
        """Watch `fd` no longer: a kevent(2) for each filter.

        A filter that isn't there, or a fd that is closed, is as good as unregistered.
        """
        self._forget(fd)
        for filter, wanted in self._filters:
            if events != POLLIN or events == wanted:
                # One call each, as a change that fails keeps those behind it from being applied.
                self._apply([(fd, filter, EV_DELETE)], ENOENT, EBADF)

    def _forget(self, fd: int) -> None:
        self._watched.pop(fd, None)
        self._dropped.discard(fd)

    def _apply(self, changes: Sequence[Change], *ignored: int) -> bool:
        """One kevent(2) that changes and does not wait; False where it fails by an errno in
        `ignored`."""
        table = (self._kevent_type * len(changes))(*[self._kevent_type(*c) for c in changes])
        kevent = self._calls.kevent
        if kevent(self._kq, table, self._count(len(changes)), None, self._count(0), None) < 0:
            error = failure(f"kevent({self._kq}, fd {changes[0][0]})")
            if error.errno not in ignored:
                raise error
            return False
        return True

    def _count(self, n: int) -> int | c_size_t:
        return c_size_t(n) if self._abi.counts_are_size_t else n

    def wait(self, timeout_ms: int) -> Iterable[tuple[int, int]]:
        """The (fd, event mask) of each descriptor with filters that fired, 1,000 at most: kevent(2).

        A filter fires with POLLIN or POLLOUT; EV_EOF adds POLLERR if it comes with an error, else
        POLLHUP. These wait while there is data for who watches for reading. Blocks for at most
        `timeout_ms` milliseconds, for ever where it is negative. A signal ends the wait with
        nothing ready. Raises `OSError`, also for an error that is reported about a fd; one that is
        merely gone is dropped with a warning.
        """
        if self._dropped:
            timeout_ms = 0
        limit = None
        if timeout_ms >= 0:
            seconds, ms = divmod(timeout_ms, 1000)
            limit = byref(self._timespec(seconds, ms * 1_000_000))
        count = self._calls.kevent(
            self._kq, None, self._count(0), self._events, self._count(MAX_EVENTS), limit
        )
        if count < 0:
            error = failure(f"kevent({self._kq})")
            if error.errno != EINTR:
                raise error
        found = dict.fromkeys(self._dropped, POLLOUT | POLLHUP)
        for event in self._events[: max(count, 0)]:
            fd = event.ident
            if event.flags & EV_ERROR:
                if event.data not in (EBADF, ENOENT):
                    raise OSError(event.data, f"kevent(fd {fd}): {os.strerror(event.data)}")
                warn("kevent() found fd %d gone. removing.", fd)
                self._forget(fd)
                continue
            state = POLLIN if event.filter == self._abi.evfilt_read else POLLOUT
            if state == POLLIN and event.data > 0:
                state |= _UNREAD
            if event.flags & EV_EOF:
                state |= POLLERR if event.fflags else POLLHUP
                if event.flags & EV_ONESHOT:  # FreeBSD drops what has nobody to write to.
                    self._dropped.add(fd)
            found[fd] = found.get(fd, 0) | state
        self.batch = ready = self._in_time(found)
        return ready

    def _in_time(self, found: dict[int, int]) -> list[tuple[int, int]]:
        """What was found, but for each end before which there is something to be read. It is said
        again in the next batch.

        Filters come in the order in which they fired. One that fires while another thread of the
        kernel waits, or for which a full batch has no room, is in the next. So what the write
        filter says alone of an end counts from the second time on: the read filter has had its
        turn. Where there is no write filter any more, the read filter will tell the end.
        """
        ready: list[tuple[int, int]] = []
        before, self._alone = self._alone, set()
        for fd, state in found.items():
            watched = self._watched.get(fd, POLLIN | POLLOUT)
            if state & _END and watched & POLLIN:
                if not state & POLLIN:
                    self._alone.add(fd)
                too_early = fd not in before or fd in self._dropped
                if state & _UNREAD or (fd in self._alone and too_early):
                    state &= ~_END
            # libkqueue may tell the end of what is switched off, as epoll does.
            if state := state & (watched | _END):
                ready.append((fd, state))
        return ready

    def fileno(self) -> int:
        """The kqueue descriptor."""
        return self._kq

    def close(self) -> None:
        """close(2), the library's own, once. In a forked child there is nothing to close: fork(2)
        leaves a kqueue behind, and by now the number may be another's."""
        if libc.getpid() == self._pid and (close := getattr(self._calls, "close", None)):
            self._descriptor.close(close)


@cache
def load_libkqueue(path: str) -> KQueueLibrary:
    """The userspace libkqueue at `path`, whose layout is "libkqueue"; tried out on a pipe(2).

    Raises `OSError` for a path that is no shared library with `kqueue` and `kevent` in it, and for
    a library that can't switch on both filters of a descriptor: 2.3.1 answers EEXIST.
    """
    try:
        library = ctypes.CDLL(path, use_errno=True)
    except OSError as error:
        raise OSError(f"no libkqueue to be loaded: {error}") from None
    if not (hasattr(library, "kqueue") and hasattr(library, "kevent")):
        raise OSError(f"no libkqueue to be loaded: {path}: it has no kqueue and kevent")
    calls = cast(KQueueLibrary, library)
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
