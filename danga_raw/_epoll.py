"""epoll(7): struct, constants, calls, and a level-triggered poller."""

from __future__ import annotations

import os
import sys
from ctypes import byref, c_uint32, sizeof
from errno import EBADF, EINTR, ENOENT
from struct import Struct

from danga_raw._libc import INT_MAX, failure, libc, raise_failure
from danga_raw._poller import Poller
from danga_raw._structs import Fields, structure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Final

EPOLLIN: Final = 0x001
EPOLLOUT: Final = 0x004
EPOLLERR: Final = 0x008
EPOLLHUP: Final = 0x010

EPOLL_CTL_ADD: Final = 1
EPOLL_CTL_DEL: Final = 2
EPOLL_CTL_MOD: Final = 3

# The kernel defines EPOLL_CLOEXEC as O_CLOEXEC, which is 0x80000 but 0x400000 on sparc.
EPOLL_CLOEXEC: Final[int] = os.O_CLOEXEC

EPOLL_EVENT: Final[Fields] = (("events", "uint32_t"), ("data", "uint64_t"))
"""struct epoll_event of <sys/epoll.h>; `data` is a union, of which the poller uses `u64`."""


def packed(machine: str) -> bool:
    """Whether struct epoll_event is packed: only on x86-64 and x32, to match the layout of i386
    (EPOLL_PACKED in eventpoll.h). `machine` is the name from uname(2)."""
    return machine == "x86_64"


epoll_event: Final = structure("epoll_event", EPOLL_EVENT, pack=packed(os.uname().machine))

EVENT: Final = Struct("=IQ" if epoll_event.data.offset == 4 else "=I4xQ")
"""The same as a format: packing costs a third of making a ctypes struct and a reference to it."""

_STRIDE: Final = sizeof(epoll_event)
_MASK: Final = 0 if sys.byteorder == "little" else 3
"""The index of the lowest byte of the first mask."""

MAX_EVENTS: Final = 1000
"""The maximum number of events of one wait, as in the original."""

_READABLE: Final = bytearray((EPOLLIN,)) * MAX_EVENTS
"""The masks of events that are just readable."""

_NO_EVENT: Final = EVENT.pack(0, 0)
"""For EPOLL_CTL_DEL, which ignores it; Linux before 2.6.9 requires one (epoll_ctl(2))."""

_FOREVER: Final = 0xFFFFFFFF
"""The C int -1, unsigned: ctypes raises and clears an exception to convert a negative number."""


class Epoll(Poller):
    """One epoll descriptor. Event masks are those of poll(2), which has the same bits. The kernel
    always reports EPOLLERR and EPOLLHUP, asked for or not."""

    # On Python 3.10 reading a slot is 60 instructions faster, and each wait reads five.
    __slots__ = ("_arguments", "_buffer", "_events", "_fds", "_one", "_one_pair", "_timeout")

    def __init__(self) -> None:
        super().__init__()
        self._buffer = bytearray(_STRIDE * MAX_EVENTS)
        self._events = byref((epoll_event * MAX_EVENTS).from_buffer(self._buffer))
        # Events are decoded by column, without making an object per row. Every _STRIDE bytes there
        # is the lowest byte of a mask, which has no higher bits, and the low half of `data`, an fd.
        offset = epoll_event.data.offset // sizeof(c_uint32)
        low_half = 0 if sys.byteorder == "little" else 1
        words = memoryview(self._buffer).cast("I")
        self._fds = words[offset + low_half :: _STRIDE // sizeof(c_uint32)]
        self._one = [0]
        self._one_pair = [(0, 0)]
        # The arguments of the last wait, which are mostly those of the next.
        self._timeout: int | None = None
        self._arguments = (self._fd, self._events, MAX_EVENTS, 0)

    def open(self) -> None:
        """epoll_create1(2)."""
        self._timeout = None
        if not self._make(map(libc.epoll_create1, (EPOLL_CLOEXEC,))):
            raise_failure(f"epoll_create1({EPOLL_CLOEXEC:#x})")

    def register(self, fd: int, events: int) -> None:
        """epoll_ctl(EPOLL_CTL_ADD). EPERM means a regular file, ENOSPC that
        /proc/sys/fs/epoll/max_user_watches is reached."""
        # Inline: a call of check_fd would cost each connection 400 instructions.
        if not 0 <= fd <= INT_MAX:
            raise failure(f"epoll_ctl({self._fd}, EPOLL_CTL_ADD, fd {fd})", EBADF)
        if libc.epoll_ctl(self._fd, EPOLL_CTL_ADD, fd, EVENT.pack(events, fd)) < 0:
            self._raise_failure("ADD", fd)

    def holds(self, fd: int, events: int) -> bool:
        """epoll_ctl(EPOLL_CTL_MOD), which changes nothing."""
        if libc.epoll_ctl(self._fd, EPOLL_CTL_MOD, fd, EVENT.pack(events, fd)) < 0:
            self._raise_failure("MOD", fd, ENOENT, EBADF)
            return False
        return True

    def modify(self, fd: int, old: int, new: int) -> None:
        """epoll_ctl(EPOLL_CTL_MOD)."""
        if libc.epoll_ctl(self._fd, EPOLL_CTL_MOD, fd, EVENT.pack(new, fd)) < 0:
            self._raise_failure("MOD", fd)

    def unregister(self, fd: int, events: int) -> None:
        """epoll_ctl(EPOLL_CTL_DEL)."""
        if libc.epoll_ctl(self._fd, EPOLL_CTL_DEL, fd, _NO_EVENT) < 0:
            self._raise_failure("DEL", fd)

    def _raise_failure(self, op: str, fd: int, *ignored: int) -> None:
        raise_failure(f"epoll_ctl({self._fd}, EPOLL_CTL_{op}, fd {fd})", *ignored)

    def wait_bare(self, timeout_ms: int) -> Iterable[int] | None:
        """epoll_wait(2), for 1,000 events at most."""
        if timeout_ms != self._timeout:
            limit = timeout_ms if timeout_ms >= 0 else _FOREVER
            self._arguments = (self._fd, self._events, MAX_EVENTS, limit)
            self._timeout = timeout_ms
        count = libc.epoll_wait(*self._arguments)
        if count == 1:
            # The usual case of a server that isn't busy, at half the cost of the general one.
            fd, mask = self._fds[0], self._buffer[_MASK]
            if mask == EPOLLIN:
                # The same list each time: the loop that iterates over it has already taken the
                # number.
                one = self._one
                one[0] = fd
                return one
            self.pairs = one_pair = self._one_pair
            one_pair[0] = (fd, mask)
            return None
        if count > 0:
            # Copies, because a handler that runs the loop again overwrites the buffer.
            self.batch = fds = self._fds[:count].tolist()
            masks = self._buffer[_MASK : count * _STRIDE : _STRIDE]
            if masks == _READABLE[:count]:
                return fds
            self.pairs = zip(fds, masks)
            return None
        if count < 0:
            raise_failure(f"epoll_wait({self._fd})", EINTR)
        return ()
