"""poll(2): its struct, its constants, its call, and a poller with the verbs of the others."""

from __future__ import annotations

from ctypes import byref, c_short, c_uint, c_ulong, memmove, sizeof
from errno import EEXIST, EINTR, ENOENT, EPERM
from os import strerror
from stat import S_ISDIR, S_ISREG

from danga_raw._epoll import Epoll
from danga_raw._interrupt import by_handler
from danga_raw._libc import PLATFORM, check_fd, failure, libc
from danga_raw._log import warn
from danga_raw._structs import Fields, structure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from ctypes import Array, Structure
    from typing import Final

    from danga_raw.types import Batch

POLLIN: Final = 0x01
POLLOUT: Final = 0x04
POLLERR: Final = 0x08
POLLHUP: Final = 0x10
POLLNVAL: Final = 0x20

POLLFD: Final[Fields] = (("fd", "int"), ("events", "short"), ("revents", "short"))
"""struct pollfd of <poll.h>."""

pollfd: Final = structure("pollfd", POLLFD)

nfds_t: Final = c_ulong if PLATFORM == "linux" else c_uint


class Poll:
    """A table of struct pollfd, handed whole to poll(2) at each wait, whose cost is linear in it.

    poll itself takes any number for a fd. So that a program fails as it does on epoll, `register`
    refuses a dead fd, one that is there, and a file that can't be polled; a wait that finds a dead
    fd drops it.
    """

    __slots__ = (
        "_asked",
        "_changed",
        "_events",
        "_fds",
        "_files",
        "_revents",
        "_slot",
        "_table",
        "_torn",
        "batch",
    )

    bare = False

    def __init__(self) -> None:
        """Makes no system call."""
        self.batch: Batch = []
        self._events: dict[int, int] = {}  # fd -> what it is watched for
        # The same as a table, but for what has changed since the last wait. Only a wait changes the
        # table: a signal's handler that closes a socket could meet another change half done.
        self._changed: dict[int, int] = {}  # its keys, in order
        self._torn = False  # True if an exception has cut a change of the table short
        self._asked: Epoll | None = None  # what is asked whether a file can be polled
        self._files: dict[int, tuple[int, int]] = {}  # fd -> device and inode of what was opened
        self._slot: dict[int, int] = {}  # fd -> where it stands in the table
        self._fds: list[int] = []  # the fd of each used slot
        self._table: Array[Structure]
        self._make_table(4)

    def open(self) -> None:
        """Makes no system call."""

    def register(self, fd: int, events: int) -> None:
        """Watch `fd` for `events`: fstat(2), no call of poll's own.

        Raises `OSError`: EBADF for a dead fd, EEXIST for one that is watched already (a number whose
        descriptor was closed and opened again is not), EPERM for a file that can't be polled.
        """
        file = self._file(fd)
        if fd in self._events and self._files.get(fd) == file:
            raise _refusal(EEXIST, fd)
        self._changed[fd] = 0
        self._files[fd] = file
        self._events[fd] = events

    def _file(self, fd: int) -> tuple[int, int]:
        """What is open under a number: fstat(2). Raises `OSError` for what can't be watched."""
        check_fd(fd, "poll")
        try:
            status = libc.fstat(fd)
        except OSError as error:
            if by_handler(error):
                raise
            raise _refusal(error.errno or 0, fd) from None
        mode = status.st_mode
        if (S_ISREG(mode) or S_ISDIR(mode)) and not self._takes(fd):
            raise _refusal(EPERM, fd)
        return status.st_dev, status.st_ino

    def _takes(self, fd: int) -> bool:
        """Whether a regular file or a directory can be polled: most can't, and /proc/self/mounts can.
        poll(2) takes all, but the kernel tells by an epoll: epoll_create1(2), once, and
        epoll_ctl(2). Where there is none, none is taken."""
        if not hasattr(libc, "epoll_create1"):
            return False
        self._asked = self._asked or Epoll()
        try:
            self._asked.open()
            self._asked.register(fd, 0)
            self._asked.unregister(fd, 0)
        except OSError as error:
            if by_handler(error):
                raise
            return False
        return True

    def holds(self, fd: int, events: int) -> bool:
        """False if the descriptor that was watched under this number was closed since: fstat(2)."""
        try:
            return fd in self._events and self._files.get(fd) == self._file(fd)
        except OSError as error:
            if by_handler(error):
                raise
            return False

    def modify(self, fd: int, old: int, new: int) -> None:
        """Watch `fd` for `new`, no longer for `old`. Makes no system call.

        Raises `OSError` (ENOENT) for a fd that is not watched.
        """
        self._changed[fd] = 0
        if fd in self._events:
            self._events[fd] = new
        else:
            raise _refusal(ENOENT, fd)

    def unregister(self, fd: int, events: int) -> None:
        """Watch `fd` no longer. Makes no system call; raises as `modify` does."""
        self._changed[fd] = 0
        self._files.pop(fd, None)
        try:
            del self._events[fd]
        except KeyError:
            raise _refusal(ENOENT, fd) from None

    def _update_table(self) -> None:
        if self._torn:
            self._slot.clear()
            self._fds.clear()
            self._make_table(len(self._table))
            self._changed |= self._events
        self._torn = True
        while self._changed:
            changed, self._changed = self._changed, {}
            for fd in changed:
                slot = self._slot.get(fd)
                events = self._events.get(fd)
                if events is None:
                    if slot is not None:
                        self._remove_slot(slot)
                elif slot is None:
                    self._add_slot(fd, events)
                else:
                    self._table[slot].events = events
        self._torn = False

    def _add_slot(self, fd: int, events: int) -> None:
        slot = len(self._fds)
        if slot == len(self._table):
            self._make_table(2 * slot)
        self._table[slot] = pollfd(fd, events, 0)
        self._slot[fd] = slot
        self._fds.append(fd)

    def _remove_slot(self, slot: int) -> None:
        del self._slot[self._fds[slot]]
        last = self._fds.pop()
        if slot < len(self._fds):
            self._table[slot] = self._table[len(self._fds)]
            self._fds[slot] = last
            self._slot[last] = slot

    def _make_table(self, slots: int) -> None:
        """A table of `slots`, with what stands in the present one."""
        table: Array[Structure] = (pollfd * slots)()
        halves = memoryview(table).cast("B").cast("h")
        stride = sizeof(pollfd) // sizeof(c_short)
        revents = halves[pollfd.revents.offset // sizeof(c_short) :: stride]
        if self._fds:
            memmove(table, self._table, sizeof(self._table))
        self._table, self._revents = table, revents

    def wait(self, timeout_ms: int) -> Iterable[tuple[int, int]]:
        """The (fd, event mask) of each ready descriptor: poll(2).

        Blocks for at most `timeout_ms` milliseconds, for ever where it is negative. A signal ends
        the wait with nothing ready. Raises `OSError` (EINVAL, ENOMEM).
        """
        if self._changed or self._torn:
            self._update_table()
        used = len(self._fds)
        count = libc.poll(byref(self._table), nfds_t(used), max(timeout_ms, -1))
        if count < 0:
            error = failure(f"poll({used} fds)")
            if error.errno != EINTR:
                raise error
        if count <= 0:
            return ()
        found = zip(self._fds, self._revents[:used].tolist())
        ready = [(fd, state) for fd, state in found if state]
        # A fd that was closed behind the loop's back would make every wait return at once.
        for dead in [fd for fd, state in ready if state & POLLNVAL]:
            # A signal's handler may have unregistered it.
            self._changed[dead] = 0
            if self._events.pop(dead, None) is not None:
                warn("poll() found fd %d closed. removing.", dead)
        alive = [(fd, state) for fd, state in ready if not state & POLLNVAL]
        self.batch = alive
        return alive

    def fileno(self) -> int:
        """-1: poll has no descriptor of its own."""
        return -1

    def close(self) -> None:
        """Makes no system call, but where a file was to be watched: close(2) for the epoll that was
        asked."""
        if self._asked is not None:
            self._asked.close()


def _refusal(number: int, fd: int) -> OSError:
    return OSError(number, f"poll(fd {fd}): {strerror(number)}")
