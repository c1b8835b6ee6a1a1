"""Descriptors and open files: numbers in a table, and what they stand for."""

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
    """What a kqueue filter sees of a file: `EVFILT_READ` or `EVFILT_WRITE`."""

    fires: bool
    data: int = 0
    eof: bool = False
    fflags: int = 0


class OpenFile:
    """An open file description: what `dup` shares, and what lives until the last of them closes."""

    mode = stat.S_IFREG | 0o600
    pollable = True
    """False for what epoll refuses with EPERM."""

    def __init__(self, kernel: SimKernel) -> None:
        self.kernel = kernel
        self.inode = next(kernel.inodes)
        self.descriptors = 0
        self.nonblocking = False
        self.watchers: set[tuple[Epoll, int]] = set()
        """The epolls, and the numbers under which they watch this file."""
        self.filters: list[Note] = []
        """The kqueue filters on this file, of any descriptor."""

    def poll(self) -> int:
        """The poll(2) mask of the moment."""
        raise NotImplementedError

    def fickle(self) -> bool:
        """Whether an event may come of it without cause."""
        return True

    def filter(self, write: bool) -> Filter:
        """What the kqueue filter sees at the moment."""
        raise NotImplementedError

    def refused_filter(self, write: bool) -> int:
        """The errno with which adding this kqueue filter fails now, and 0 where it doesn't."""
        return 0

    def stirred(self) -> None:
        """Something has happened to the file: the filters that fire now are queued in this order,
        behind those that fired before."""
        for note in self.filters:
            note.kqueue.activate(note)

    def read(self, count: int) -> bytes:
        """read(2). Raises `OSError`."""
        raise error(EINVAL)

    def write(self, data: memoryview) -> int:
        """write(2). Raises `OSError`."""
        raise error(EINVAL)

    def released(self) -> None:
        """The last descriptor is closed."""

    def block(self, event: int) -> None:
        """Wait for `event`, or raise EAGAIN where the file is non-blocking."""
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
    """The descriptor table of the process: the lowest free number is the next one."""

    def __init__(self, first: int, limit: int) -> None:
        self.first = first
        self.limit = limit
        self.files: dict[int, OpenFile] = {}
        self.closed: set[int] = set()
        """Numbers that were once open and are free now."""

    def free(self, count: int = 1) -> int:
        """The number that the next file gets. Raises `OSError` (EMFILE) unless `count` are free."""
        fd = self.first
        while fd in self.files:
            fd += 1
        if fd >= self.limit or len(self.files) + count > self.limit - self.first:
            raise error(EMFILE)
        return fd

    def add(self, file: OpenFile) -> int:
        """A descriptor for `file`."""
        fd = self.free()
        self.files[fd] = file
        self.closed.discard(fd)
        file.descriptors += 1
        return fd

    def get(self, fd: int, strict: bool, call: str) -> OpenFile:
        """The file of `fd`. A closed number is EBADF, and where the kernel is strict a failure."""
        file = self.files.get(fd)
        if file is None:
            if strict:
                state = "closed" if fd in self.closed else "never open"
                raise SimError(f"{call}: descriptor {fd} is {state}")
            raise error(EBADF)
        return file

    def remove(self, fd: int) -> OpenFile:
        """Take `fd` out of the table."""
        file = self.files.pop(fd)
        self.closed.add(fd)
        file.descriptors -= 1
        return file
