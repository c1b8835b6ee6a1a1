"""Wakes a waiting loop: a pipe whose read end the loop watches, and to which others write.

The same mechanism serves all platforms, other threads and signals, as in libev, libuv and asyncio.
A program that never wakes a loop does not import this module.
"""

from __future__ import annotations

import signal
from ctypes import c_int
from fcntl import F_SETFD, F_SETFL, FD_CLOEXEC
from os import O_CLOEXEC, O_NONBLOCK
from signal import valid_signals

from danga_raw._handle import close_fds
from danga_raw._interrupt import alone, by_handler
from danga_raw._libc import failure, libc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import Final

    from danga_raw.types import Callback

_on_signals: Final[list[Waker]] = []
"""The wakers that handle signals, the one that last added a signal at the end: it is woken."""

_theirs: Final = [-1]
"""The wakeup descriptor that was set before, if it is not one of ours."""


class Waker:
    """A pipe that ends the wait of one loop, and the signals that write to it."""

    __slots__ = ("_closed", "_closing", "_ends", "_handled", "_woken", "_writing")

    def __init__(self) -> None:
        """Makes no system call; `open` does."""
        self._ends = (c_int * 2)(-1, -1)
        """The read end and the write end. pipe(2) itself stores them here: none can be lost."""
        self._closed = False
        self._closing = filter((0).__le__, self._ends)  # Yields what the ends will be by then.
        self._woken = False
        self._writing: list[None] = []
        """One for each thread that is about to write. The ends stay open until the last of them,
        which then closes them."""
        self._handled: dict[int, Callback] = {}

    def open(self) -> None:
        """Make the pipe: pipe2(2), or pipe(2) and fcntl(2) on macOS, which has no pipe2. Raises
        `OSError` (EMFILE, ENFILE)."""
        if hasattr(libc, "pipe2"):
            if libc.pipe2(self._ends, O_CLOEXEC | O_NONBLOCK) < 0:
                raise failure("pipe2()")
            return
        if libc.pipe(self._ends) < 0:
            raise failure("pipe()")
        for fd in self._ends:
            libc.fcntl(fd, F_SETFD, FD_CLOEXEC)
            libc.fcntl(fd, F_SETFL, O_NONBLOCK)

    def fileno(self) -> int:
        """The descriptor that the loop watches for reading."""
        return self._ends[0]

    def wake(self) -> None:
        """End the wait, from any thread or signal handler: write(2), unless that has been done
        since the loop last looked."""
        if self._woken:
            return
        self._writing += (None,)
        try:
            if not self._closed:
                self._woken = True
                libc.write(self._ends[1], b"\0")
        except BaseException as error:
            self._woken = False
            # If the pipe is full the loop wakes anyway.
            if by_handler(error):
                raise
        finally:
            del self._writing[-1:]
            if self._closed:
                self._close_ends()

    def drain(self) -> None:
        """Read what was written: read(2). A later `wake` ends the next wait."""
        try:
            libc.read(self._ends[0], 512)
        except BlockingIOError:
            pass
        finally:
            # Behind the read, which takes what other threads have written before it, too.
            self._woken = False

    def add_signal(self, number: int, callback: Callback) -> None:
        """Let a signal end the wait and call `callback`: rt_sigaction(2). From now on all signals
        of the process wake this loop and no other.

        Raises `ValueError` for a number that is not a signal, and outside the main thread;
        `OSError` (EINVAL) for a signal that can't be handled.
        """
        # The C library reserves some for its threads, and refuses them without a system call.
        if number not in tuple(valid_signals()):
            raise ValueError(f"a signal is a number, as signal.SIGTERM is, not {number!r}")
        former = self._handled.get(number)
        # Before the handler is set: after an exception in between, nobody would remove it.
        self._handled |= {number: callback}
        try:
            libc.signal(number, self._caught)
        except (OSError, TypeError, ValueError) as error:
            if isinstance(error, OSError) and by_handler(error):
                raise
            if former is None:
                del self._handled[number]
            else:
                self._handled[number] = former
            named = isinstance(error, OSError) and failure(f"rt_sigaction({number})", error.errno)
            raise named or error from None
        wakeup = signal.set_wakeup_fd(self._ends[1], warn_on_full_buffer=False)
        if wakeup not in [each._ends[1] for each in (self, *_on_signals)]:
            _theirs[0] = wakeup
        _on_signals[:] = [*(each for each in _on_signals if each is not self), self]

    def _caught(self, number: int, frame: FrameType | None) -> None:
        callback = self._handled.get(number)
        # None if it was removed, but a handler that replaced this one still calls it.
        if callback is not None:
            callback()

    def remove_signal(self, number: int) -> bool:
        """Restore the default action of a signal (for SIGINT, Python's), unless somebody else has
        set a handler since. False if there is none."""
        if number not in self._handled:
            return False
        if signal.getsignal(number) == self._caught:
            usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            libc.signal(number, usual)
        if [*self._handled] == [number]:
            self._leave_signals()
        self._handled.pop(number, None)  # Last: if interrupted, all this can be done again.
        return True

    def _leave_signals(self) -> None:
        _on_signals[:] = [each for each in _on_signals if each is not self]
        successor = _on_signals[-1]._ends[1] if _on_signals else _theirs[0]
        try:
            now = signal.set_wakeup_fd(successor, warn_on_full_buffer=False)
        except OSError as error:  # The owner of the former one has closed it.
            if by_handler(error):
                raise
            now = signal.set_wakeup_fd(-1)
        if now != self._ends[1]:  # Somebody else has set another one since.
            signal.set_wakeup_fd(now, warn_on_full_buffer=False)

    def close(self) -> None:
        """Stop handling signals, and close(2) both ends, once. If there are signals, this only
        works in the main thread, and does nothing in others. Later calls of `wake` do nothing. A
        thread that is about to write closes the ends afterwards: their numbers could otherwise be
        reused before it.
        """
        for number in tuple(self._handled):
            try:
                self.remove_signal(number)
            except ValueError:
                return  # Not the main thread. Python continues to write signals to the pipe.
        self._closed = True
        self._close_ends()

    def _close_ends(self) -> None:
        with alone:
            if not self._writing:
                close_fds(self._closing)
