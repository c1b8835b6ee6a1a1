"""epoll(7), level-triggered. The struct of each machine is read and written byte by byte."""

from __future__ import annotations

import os
import struct
from errno import EEXIST, EINVAL, ENOENT
from typing import TYPE_CHECKING, NamedTuple

from tests.simkernel.errors import SimError
from tests.simkernel.files import (
    POLLERR,
    POLLHUP,
    POLLIN,
    POLLNVAL,
    POLLOUT,
    Filter,
    OpenFile,
    error,
)
from tests.simkernel.memory import memory

if TYPE_CHECKING:
    from tests.simkernel.kernel import SimKernel

ADD, DEL, MOD = 1, 2, 3
KNOWN = POLLIN | POLLOUT | POLLERR | POLLHUP | POLLNVAL
"""The kernel accepts EPOLLNVAL too, but never reports it."""


class Layout(NamedTuple):
    """struct epoll_event: its size, and the offset of `data`; `events` is at 0."""

    size: int
    data: int


LAYOUT = Layout(12, 4) if os.uname().machine in ("x86_64", "i386", "i686") else Layout(16, 8)
_MASK = struct.Struct("=I")
_DATA = struct.Struct("=Q")


class Entry:
    """The entry made by one epoll_ctl(EPOLL_CTL_ADD)."""

    def __init__(self, file: OpenFile, events: int, data: int) -> None:
        self.file = file
        self.events = events
        self.data = data


class Epoll(OpenFile):
    """An epoll instance. An entry belongs to an open file and a number, and lives as long as the
    file: it survives a close of the number while a dup is open."""

    mode = 0o600

    def __init__(self, kernel: SimKernel) -> None:
        super().__init__(kernel)
        self.entries: dict[tuple[int, OpenFile], Entry] = {}

    def __str__(self) -> str:
        return "an epoll"

    def poll(self) -> int:
        return POLLIN if self.ready() else 0

    def filter(self, write: bool) -> Filter:
        raise SimError("an epoll in a kqueue")

    def control(self, op: int, fd: int, file: OpenFile, pointer: object) -> None:
        """epoll_ctl(2) on an open and pollable `file`. Raises `OSError`."""
        if file is self:
            raise error(EINVAL)
        key = (fd, file)
        if op == DEL:
            if self.entries.pop(key, None) is None:
                raise error(ENOENT)
            file.watchers.discard((self, fd))
            return
        if op not in (ADD, MOD):
            raise SimError(f"epoll_ctl: unknown op {op}")
        view = memory(pointer, LAYOUT.size, "epoll_ctl: struct epoll_event")
        if len(view) != LAYOUT.size:
            raise SimError(
                f"epoll_ctl: struct epoll_event has {len(view)} bytes, not {LAYOUT.size}"
            )
        events = int(_MASK.unpack_from(view, 0)[0])
        data = int(_DATA.unpack_from(view, LAYOUT.data)[0])
        if events & ~KNOWN:
            raise SimError(f"epoll_ctl: unknown event bits {events & ~KNOWN:#x}")
        entry = self.entries.get(key)
        if op == ADD:
            if entry is not None:
                raise error(EEXIST)
            self.entries[key] = Entry(file, events, data)
            file.watchers.add((self, fd))
        elif entry is None:
            raise error(ENOENT)
        else:
            entry.events = events
            entry.data = data

    def forget(self, fd: int, file: OpenFile) -> None:
        """Drop the entry of an open file that is gone."""
        del self.entries[(fd, file)]

    def ready(self) -> list[tuple[int, int]]:
        """(data, mask) of each entry that has an event."""
        found = []
        for entry in self.entries.values():
            if mask := entry.file.poll() & (entry.events | POLLERR | POLLHUP):
                found.append((entry.data, mask))
        return found

    def wait(self, pointer: object, most: int, timeout_ms: int) -> int:
        """epoll_wait(2). Raises `OSError`."""
        if most <= 0:
            raise error(EINVAL)
        view = memory(pointer, most * LAYOUT.size, "epoll_wait: events")
        found = self.kernel.wait(self.ready, timeout_ms, "epoll_wait")
        if self.kernel.luck.noisy("spurious event"):
            entry = self.kernel.luck.random.choice(list(self.entries.values()) or [None])
            told = {data for data, _ in found}
            new = entry and entry.data not in told and entry.file.fickle()
            if entry and new and entry.events & (POLLIN | POLLOUT):
                found.append((entry.data, entry.events & (POLLIN | POLLOUT)))
        # Nothing is starved: events without room come first in the next batch, and reported ones
        # after all others.
        found = self.kernel.luck.shuffled(found[:most])
        told = {data for data, _ in found}
        for key, entry in list(self.entries.items()):
            if entry.data in told:
                self.entries[key] = self.entries.pop(key)
        for i, (data, mask) in enumerate(found):
            _MASK.pack_into(view, i * LAYOUT.size, mask)
            _DATA.pack_into(view, i * LAYOUT.size + LAYOUT.data, data)
        return len(found)

    def released(self) -> None:
        for fd, file in self.entries:
            file.watchers.discard((self, fd))
        self.entries.clear()


def as_epoll(file: OpenFile) -> Epoll:
    """`file`, if it is an epoll. Raises `OSError` (EINVAL)."""
    if not isinstance(file, Epoll):
        raise error(EINVAL)
    return file
