"""What wakes a loop that waits: a pipe whose read end the loop watches, and into which others write.

One mechanism serves all platforms, other threads and signals alike (libev, libuv and asyncio do the
same). A program that wakes no loop never imports this.
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
    from collections.abc import Callable
    from types import FrameType
    from typing import Final

_on_signals: Final[list[Waker]] = []
"""The wakers that handle signals, in the order in which they asked: a signal wakes the last."""

_theirs: Final = [-1]
"""The descriptor to which Python wrote signals before, if it was somebody else's."""


class Waker:
    """A pipe of which a byte ends the wait of one loop, and the signals that write into it."""

    __slots__ = ("_closed", "_closing", "_ends", "_handled", "_woken", "_writing")

    def __init__(self) -> None:
        """Makes no system call; `open` does."""
        self._ends = (c_int * 2)(-1, -1)
        """The read end and the write end; pipe(2) itself writes them here, so that none is lost."""
        self._closed = False
        self._closing = filter((0).__le__, self._ends)  # It gives what the ends are by then.
        self._woken = False
        self._writing: list[None] = []
        """One for each thread that is about to write. While there is one, the ends stay open, and the
        last of them closes them."""
        self._handled: set[int] = set()

    def open(self) -> None:
        """Make the pipe: pipe2(2), or pipe(2) and fcntl(2) on macOS, which has no other. Raises
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
        """End the wait, from any thread or signal's handler: write(2), unless that was done since
        the loop last looked."""
        if self._woken:
            return
        self._writing += (None,)
        try:
            if not self._closed:
                self._woken = True
                libc.write(self._ends[1], b"\0")
        except BaseException as error:
            self._woken = False
            # Where the pipe is full the loop wakes all the same.
            if by_handler(error):
                raise
        finally:
            del self._writing[-1:]
            if self._closed:
                self._close_ends()

    def drain(self) -> None:
        """Take out what was written: read(2). Who wakes from here on is heard by the next wait."""
        self._woken = False  # First, or an exception behind the read could leave it true for ever.
        try:
            libc.read(self._ends[0], 512)
        except BlockingIOError:
            pass
        finally:
            # Again: another thread may have woken it before the read, which took that byte too.
            self._woken = False

    def add_signal(self, number: int, handler: Callable[[int, FrameType | None], object]) -> None:
        """Have a signal end the wait and call `handler`: rt_sigaction(2). All signals of the process
        wake this loop from here on, and no other.

        Raises `ValueError` for a number that is no signal and out of the main thread, `OSError`
        (EINVAL) for a signal that can't be handled.
        """
        # The C library keeps some for its own threads, and refuses them without a system call.
        if number not in tuple(valid_signals()):
            raise ValueError(f"a signal is a number, as signal.SIGTERM is, not {number!r}")
        new = number not in self._handled
        # Before it is handled, or an exception in between could leave a handler that nobody removes.
        self._handled |= {number}
        try:
            libc.signal(number, handler)
        except (OSError, TypeError, ValueError) as error:
            if isinstance(error, OSError) and by_handler(error):
                raise
            if new:
                self._handled.discard(number)
            named = isinstance(error, OSError) and failure(f"rt_sigaction({number})", error.errno)
            raise named or error from None
        former = signal.set_wakeup_fd(self._ends[1], warn_on_full_buffer=False)
        if former not in [each._ends[1] for each in (self, *_on_signals)]:
            _theirs[0] = former
        _on_signals[:] = [*(each for each in _on_signals if each is not self), self]

    def remove_signal(self, number: int) -> bool:
        """Handle a signal as the system does, SIGINT as Python does; False if nobody has asked for it."""
        if number not in self._handled:
            return False
        usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        libc.signal(number, usual)
        if self._handled == {number}:
            self._leave_signals()
        self._handled.discard(number)  # At last: what was cut short can be done again.
        return True

    def _leave_signals(self) -> None:
        _on_signals[:] = [each for each in _on_signals if each is not self]
        successor = _on_signals[-1]._ends[1] if _on_signals else _theirs[0]
        try:
            now = signal.set_wakeup_fd(successor, warn_on_full_buffer=False)
        except OSError as error:  # Its owner has closed it.
            if by_handler(error):
                raise
            now = signal.set_wakeup_fd(-1)
        if now != self._ends[1]:  # It has become somebody else's meanwhile.
            signal.set_wakeup_fd(now, warn_on_full_buffer=False)

    def close(self) -> None:
        """Handle no signal any more, and close(2) both ends, once. Where signals are handled, only the
        main thread can, and nothing is done in another. Who still holds this writes no more. Where a
        thread is about to write it closes the ends when it has: the number could be another's by then.
        """
        for number in tuple(self._handled):
            try:
                self.remove_signal(number)
            except ValueError:
                return  # Not the main thread. Python goes on writing signals into the pipe.
        _on_signals[:] = [each for each in _on_signals if each is not self]
        self._closed = True
        self._close_ends()

    def _close_ends(self) -> None:
        with alone():
            if not self._writing:
                close_fds(self._closing)
