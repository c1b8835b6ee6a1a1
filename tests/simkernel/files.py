"""Descriptors and open files: the numbers in a table, and the files that they refer to."""

from __future__ import annotations

import os
import stat
from errno import EAGAIN, EBADF, EINVAL, EMFILE
from typing import TYPE_CHECKING, NamedTuple

from tests.simkernel.errors import SimError

if TYPE_CHECKING:
    from tests.simkernel.epoll import Epoll
    from tests.simkernel.kernel import SimKernel
    from tests.simkernel.kqueue import Note

POLLIN = 0x01
POLLOUT = 0x04
POLLERR = 0x08
POLLHUP = 0x10
POLLNVAL = 0x20


def error(number: int) -> OSError:
    """The `OSError` (of the right subclass) for an errno."""
    return OSError(number, os.strerror(number))


class Filter(NamedTuple):
    """The state of a file as the kqueue filter `EVFILT_READ` or `EVFILT_WRITE` sees it."""

    fires: bool
    data: int = 0
    eof: bool = False
    fflags: int = 0


class OpenFile:
    """An open file description, which dups share, and which lives until the last of them closes."""

    mode = stat.S_IFREG | 0o600
    pollable = True
    """False if epoll refuses the file with EPERM."""

    def __init__(self, kernel: SimKernel) -> None:
        self.kernel = kernel
        self.inode = next(kernel.inodes)
        self.descriptors = 0
        self.nonblocking = False
        self.watchers: set[tuple[Epoll, int]] = set()
        """The epolls, and the numbers under which they watch this file."""
        self.filters: list[Note] = []
        """The kqueue filters on this file, through any descriptor."""

    def poll(self) -> int:
        """The current poll(2) mask."""
        raise NotImplementedError

    def fickle(self) -> bool:
        """True if it may report a spurious event."""
        return True

    def filter(self, write: bool) -> Filter:
        """The current state for the kqueue filter."""
        raise NotImplementedError

    def refused_filter(self, write: bool) -> int:
        """The errno with which adding this kqueue filter fails now, 0 if it doesn't fail."""
        return 0

    def stirred(self) -> None:
        """Called when the file has changed: the filters that fire now are queued in this order,
        after those that fired before."""
        for note in self.filters:
            note.kqueue.activate(note)

    def read(self, count: int) -> bytes:
        """read(2). Raises `OSError`."""
        raise error(EINVAL)

    def write(self, data: memoryview) -> int:
        """write(2). Raises `OSError`."""
        raise error(EINVAL)

    def released(self) -> None:
        """Called when the last descriptor is closed."""

    def block(self, event: int) -> None:
        """Wait for `event`, or raise EAGAIN if the file is non-blocking."""
        if self.nonblocking:
            raise error(EAGAIN)
        self.kernel.clock.wait(
            lambda: self.poll() & (event | POLLERR | POLLHUP), None, f"a blocking call on {self}"
        )


class RegularFile(OpenFile):
    """An empty file on a disk: always ready, refused by epoll."""

    pollable = False

    def poll(self) -> int:
        return POLLIN | POLLOUT

    def filter(self, write: bool) -> Filter:
        return Filter(write)

    def read(self, count: int) -> bytes:
        return b""

    def write(self, data: memoryview) -> int:
        return len(data)


class Table:
    """The descriptor table of the process: the lowest free number is used next."""

    def __init__(self, first: int, limit: int) -> None:
        self.first = first
        self.limit = limit
        self.files: dict[int, OpenFile] = {}
        self.closed: set[int] = set()
        """Numbers that have been open and are free now."""

    def free(self, count: int = 1) -> int:
        """The next file's number. Raises `OSError` (EMFILE) unless `count` numbers are free."""
        fd = self.first
        while fd in self.files:
            fd += 1
        if fd >= self.limit or len(self.files) + count > self.limit - self.first:
            raise error(EMFILE)
        return fd

    def add(self, file: OpenFile) -> int:
        """Make a descriptor for `file`."""
        fd = self.free()
        self.put(fd, file)
        return fd

    def put(self, fd: int, file: OpenFile) -> None:
        """Make a descriptor for `file`, with a given free number."""
        self.files[fd] = file
        self.closed.discard(fd)
        file.descriptors += 1

    def get(self, fd: int, strict: bool, call: str) -> OpenFile:
        """The file of `fd`. A closed number raises EBADF, or fails the test if `strict`."""
        file = self.files.get(fd)
        if file is None:
            if strict:
                state = "closed" if fd in self.closed else "never open"
                raise SimError(f"{call}: descriptor {fd} is {state}")
            raise error(EBADF)
        return file

    def remove(self, fd: int) -> OpenFile:
        """Remove `fd` from the table."""
        file = self.files.pop(fd)
        self.closed.add(fd)
        file.descriptors -= 1
        return file
