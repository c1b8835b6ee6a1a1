"""poll(2): struct, constants, call, and a poller with the methods of the others."""

from __future__ import annotations

from ctypes import byref, c_uint, c_ulong
from errno import EEXIST, EINTR, ENOENT, EPERM
from stat import S_ISDIR, S_ISREG
from struct import Struct

from danga_raw._epoll import Epoll
from danga_raw._interrupt import by_handler
from danga_raw._libc import PLATFORM, check_fd, failure, libc, raise_failure
from danga_raw._log import warn
from danga_raw._poller import Poller
from danga_raw._structs import Fields, structure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

POLLIN: Final = 0x01
POLLOUT: Final = 0x04
POLLERR: Final = 0x08
POLLHUP: Final = 0x10
POLLNVAL: Final = 0x20

POLLFD: Final[Fields] = (("fd", "int"), ("events", "short"), ("revents", "short"))
"""struct pollfd of <poll.h>."""

pollfd: Final = structure("pollfd", POLLFD)
_ROW: Final = Struct("ihxx")
"""The same as a format, with `revents` left empty."""

nfds_t: Final = c_ulong if PLATFORM == "linux" else c_uint


class Poll(Poller):
    """A table of struct pollfd, passed to poll(2) as a whole. The cost of a wait is linear in its
    size.

    poll accepts any number as a fd. To fail like epoll does, `register` refuses a fd that is not
    open, one that is already watched, and a file that can't be polled. A wait that finds a closed
    fd drops it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._events: dict[int, int] = {}  # fd -> what it is watched for
        self._files: dict[int, tuple[int, int]] = {}  # fd -> device and inode of what was opened
        self._asked: Epoll | None = None  # tells whether a file can be polled
        # After a change the next wait rebuilds the whole table, which costs no more than the wait
        # itself. A signal's handler could see a change of a single row half done.
        self._changed = True
        self._fds: list[int] = []  # the fd of each used row
        self._make_room(4)

    def open(self) -> None:
        """Makes no system call."""

    def register(self, fd: int, events: int) -> None:
        """fstat(2). EEXIST if the descriptor is still the one registered under this number, EPERM
        for a file that can't be polled."""
        file = self._file(fd)
        if fd in self._events and self._files.get(fd) == file:
            raise failure(f"poll(fd {fd})", EEXIST)
        self._files[fd] = file
        self._changed = True
        self._events[fd] = events

    def _file(self, fd: int) -> tuple[int, int]:
        """The device and inode of a descriptor: fstat(2). `OSError` if it can't be watched."""
        check_fd(fd, "poll")
        try:
            status = libc.fstat(fd)
        except OSError as error:
            if by_handler(error):
                raise
            raise failure(f"poll(fd {fd})", error.errno or 0) from None
        mode = status.st_mode
        if S_ISREG(mode) or S_ISDIR(mode):
            self._ask_epoll(fd)
        return status.st_dev, status.st_ino

    def _ask_epoll(self, fd: int) -> None:
        """Raise `OSError` (EPERM) for a regular file or a directory that can't be polled: most
        can't, /proc/self/mounts can. poll(2) accepts all, but epoll refuses those that can't:
        epoll_create1(2), once, and epoll_ctl(2). Without epoll, none is accepted."""
        if not hasattr(libc, "epoll_create1"):
            raise failure(f"poll(fd {fd})", EPERM)
        self._asked = self._asked or Epoll()
        self._asked.open()
        self._asked.register(fd, 0)
        self._asked.unregister(fd, 0)

    def holds(self, fd: int, events: int) -> bool:
        """fstat(2)."""
        try:
            return fd in self._events and self._files.get(fd) == self._file(fd)
        except OSError as error:
            if by_handler(error):
                raise
            return False

    def modify(self, fd: int, old: int, new: int) -> None:
        """Makes no system call."""
        if fd in self._events:
            self._changed = True
            self._events[fd] = new
        else:
            raise failure(f"poll(fd {fd})", ENOENT)

    def unregister(self, fd: int, events: int) -> None:
        """Makes no system call."""
        self._files.pop(fd, None)
        if fd in self._events:
            self._changed = True
            del self._events[fd]
        else:
            raise failure(f"poll(fd {fd})", ENOENT)

    def _make_table(self) -> None:
        while self._changed:
            events = self._events.copy()
            rows = b"".join(map(_ROW.pack, events, events.values()))
            if len(rows) > len(self._table[1]):
                self._make_room(2 * len(events))
            self._table[1][: len(rows)] = rows
            self._fds = list(events)
            if events == self._events:  # Otherwise a signal's handler came in between.
                self._changed = False

    def _make_room(self, rows: int) -> None:
        table = (pollfd * rows)()
        room = memoryview(table).cast("B")
        # Every fourth half-word is a `revents`. All three are set in one step: after an exception
        # in between, poll(2) would write to one table and another would be read.
        self._table = table, room, room.cast("h")[3::4]

    def wait_bare(self, timeout_ms: int) -> None:
        """poll(2)."""
        if self._changed:
            self._make_table()
        used = len(self._fds)
        table, _, revents = self._table
        count = libc.poll(byref(table), nfds_t(used), max(timeout_ms, -1))
        if count < 0:
            raise_failure(f"poll({used} fds)", EINTR)
        found = zip(self._fds, revents[:used].tolist() if count > 0 else ())
        ready = [(fd, state) for fd, state in found if state]
        for fd, state in ready:
            # A fd that was closed behind the loop's back would end every wait at once.
            if state & POLLNVAL and fd in self._events:
                self._changed = True
                del self._events[fd]
                warn("poll() found fd %d closed. removing.", fd)
        self._found({fd: state for fd, state in ready if not state & POLLNVAL})

    def close(self) -> None:
        """close(2) for the epoll of `_ask_epoll`, if there is one."""
        if self._asked is not None:
            self._asked.close()
