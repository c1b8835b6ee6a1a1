"""pipe(2)."""

from __future__ import annotations

import stat
from errno import EBADF, EPIPE
from typing import TYPE_CHECKING

from tests.simkernel.files import POLLERR, POLLHUP, POLLIN, POLLOUT, Filter, OpenFile, error

if TYPE_CHECKING:
    from tests.simkernel.kernel import SimKernel

PIPE_BUF = 4096
"""A write of at most this size is atomic; pipe(7)."""

WRITE_FILTER_REFUSED = {
    "freebsd": EPIPE,
    "dragonfly": EPIPE,
    "openbsd": EPIPE,
    "netbsd": EBADF,
    "netbsd9": EBADF,
}
"""The error of adding a write filter to a pipe whose other end is gone: pipe_kqfilter() in each
kernel's sys_pipe.c. The filter is then not added."""


class PipeEnd(OpenFile):
    """One end of a pipe; both ends share the buffer."""

    mode = stat.S_IFIFO | 0o600

    def __init__(self, kernel: SimKernel, buffer: bytearray, capacity: int, writes: bool) -> None:
        super().__init__(kernel)
        self.buffer = buffer
        self.capacity = capacity
        self.writes = writes
        self.other: PipeEnd | None = None

    def __str__(self) -> str:
        return f"the {'write' if self.writes else 'read'} end of a pipe"

    @property
    def space(self) -> int:
        return self.capacity - len(self.buffer)

    def poll(self) -> int:
        if self.writes:
            # A write of PIPE_BUF bytes must not block once poll has reported room.
            room = POLLOUT if self.space >= PIPE_BUF else 0
            return room if self.other else room | POLLERR
        return (POLLIN if self.buffer else 0) | (0 if self.other else POLLHUP)

    def filter(self, write: bool) -> Filter:
        # The pipes of the BSDs have a buffer in each direction, so each end accepts both filters;
        # in NetBSD the backward buffer has no room.
        if self.other is None:
            return Filter(True, 0 if self.writes or write else len(self.buffer), eof=True)
        if write:
            space = self.space
            if not self.writes:
                space = 0 if self.kernel.rules == "netbsd" else self.capacity
            return Filter(space >= PIPE_BUF, space)
        unread = 0 if self.writes else len(self.buffer)
        return Filter(unread > 0, unread)

    def refused_filter(self, write: bool) -> int:
        if write and self.other is None:
            return WRITE_FILTER_REFUSED.get(self.kernel.platform, 0)
        return 0

    def read(self, count: int) -> bytes:
        if self.writes:
            raise error(EBADF)
        while count and not self.buffer:
            if self.other is None:
                return b""
            self.block(POLLIN)
        count = self.kernel.luck.cut(min(count, len(self.buffer)), "short read")
        data = bytes(self.buffer[:count])
        del self.buffer[:count]
        return data

    def write(self, data: memoryview) -> int:
        if not self.writes:
            raise error(EBADF)
        if not len(data):
            return 0
        while self.other and self.space < (len(data) if len(data) <= PIPE_BUF else 1):
            self.block(POLLOUT)
        if self.other is None:
            raise error(EPIPE)
        count = min(len(data), self.space)
        if count > PIPE_BUF:
            count = self.kernel.luck.cut(count, "short write")
        self.buffer += data[:count]
        self.other.stirred()
        return count

    def released(self) -> None:
        if self.other:
            self.other.other = None
            for note in self.other.filters:
                # FreeBSD puts a write filter on the other end, and clears its list (knlist_clear).
                note.once = note.write and self.kernel.platform == "freebsd"
            self.other.stirred()
