"""Timers: a heap of deadlines on the monotonic clock. Cancelled timers stay in it for a while."""

from __future__ import annotations

from collections import deque
from math import floor, inf, isfinite
from time import CLOCK_MONOTONIC

try:  # Importing the Python module around it would cost a twentieth of importing this package.
    from _heapq import heappop as heappop
    from _heapq import heappush as heappush
except ImportError:
    from heapq import heappop as heappop
    from heapq import heappush as heappush

from danga_raw._libc import INT_MAX, libc
from danga_raw._mistakes import check_callback, no_copy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from danga_raw.types import Callback, Loop

_FEW: Final = 16
"""The number of spent timers in the heap below which clearing them out is not considered."""

_CLOCK: Final = (CLOCK_MONOTONIC,)
"""The arguments of clock_gettime. Before Python 3.13 they are passed as a tuple, and making one
each time costs as much as the call."""


class Timer:
    """A callback to be called once; returned by `add_timer` and `AddTimer`."""

    __slots__ = {
        "_timers": "The timers of its loop.",
        "callback": "What it calls; None once it has fired or been cancelled.",
    }

    __getstate__ = no_copy

    # Set by add_timer: an __init__ would double the cost of a new timer.
    _timers: Timers
    callback: Callback | None

    def cancel(self) -> None:
        """Never fire. Drops the callback at once; does nothing if the timer has already fired."""
        if self.callback is not None:
            self.callback = None
            timers = self._timers
            timers.spent = spent = timers.spent + 1
            if not spent % _FEW and spent * 2 > len(timers.heap):
                timers.clear_out()

    def __repr__(self) -> str:
        return f"<Timer {'spent' if self.callback is None else f'of {self.callback!r}'}>"


class Timers:
    """The timers of one loop, by deadline, and then in the order in which they were added."""

    def __init__(self) -> None:
        self.set_timeout(-1)
        self.heap: list[tuple[float, int, Timer]] = []
        self.due: deque[Timer] = deque()
        """Timers still to be fired, of this pass or of one that was ended by an exception."""
        self.added: int = 0
        """The number of timers ever added."""
        self.checked: object = check_callback
        """The function of the method that was checked last: the next callback is usually the same
        method of another object. Initially any callable."""
        self.spent: int = 0
        """Roughly how many timers in the heap no longer have a callback."""

    def set_timeout(self, ms: int) -> None:
        """Set the longest time to wait, in milliseconds; -1 is forever."""
        longest = float(ms if ms >= 0 else INT_MAX)
        self.timeout = ms
        self._longest = longest  # of a wait with a deadline, which must fit a C int too

    def run_due(self) -> int:
        """Fire what is due. Returns how long the next wait may take, in milliseconds (-1: forever).

        Timers added during a pass wait for the next, so that one that keeps adding itself can't
        keep others from firing. The time is rounded up to the millisecond after the deadline: a
        wait that ends slightly early would be followed by many short ones.
        """
        now = libc.clock_gettime(*_CLOCK)
        heap = self.heap
        if heap and not self.due:
            first = heap[0]
            wait = (first[0] - now) * 1000.0
            if wait > 0.0 and first[2].callback is not None:  # Most turns end here.
                # Compared before it is made an int: 1e308 seconds are an infinite number of ms.
                if wait < self._longest:
                    return floor(wait) + 1
                return int(self._longest)
        left = self._fire(now)
        if left is None:
            return self.timeout
        wait = (left[0] - libc.clock_gettime(*_CLOCK)) * 1000.0
        if wait < 0.0:
            return 0
        return floor(wait) + 1 if wait < self._longest else int(self._longest)

    def _fire(self, now: float) -> tuple[float, int, Timer] | None:
        """Fire what is due. Returns the first timer in the heap after that."""
        heap, due = self.heap, self.due
        if not due:
            while heap and heap[0][0] <= now:
                # Briefly in both, in case of an exception in between; it still fires only once.
                due += (heap[0][2],)
                heappop(heap)
        while due:
            timer = due[0]
            callback = timer.callback
            # Spent before it is called, with no call in between: neither lost nor called twice.
            timer.callback = None
            del due[0]
            if callback is not None:
                callback()
        if self.spent > _FEW and self.spent * 2 >= len(heap):
            self.clear_out()
        # No jump between the test and the pop, where a signal's handler could put another one
        # first.
        while heap and heap[0][2].callback is None:
            heappop(heap)
            self.spent -= 1
        return heap[0] if heap else None

    def clear_out(self) -> None:
        """Remove the spent timers from the heap. Once they are half of it, this costs less per
        timer than a pop."""
        added = self.added
        kept = [entry for entry in self.heap if entry[2].callback is not None]
        kept.sort()  # A sorted list is a heap, and sorting it again costs half of a heapify.
        if added == self.added:  # No signal's handler has just added one.
            self.heap[:] = kept
            self.spent = 0

    def clear(self) -> None:
        """Forget all timers, without firing them."""
        for timer in [entry[2] for entry in self.heap] + list(self.due):
            timer.callback = None
        self.heap.clear()
        self.due.clear()
        self.set_timeout(-1)
        self.checked = check_callback
        self.spent = 0


def add_timer(self: Loop, seconds: float, callback: Callback) -> Timer:
    """Call `callback()` once, `seconds` from now on the monotonic clock, never early. A negative
    number is due at once, before those due later. Raises `TypeError` if `callback` can't be called
    or `seconds` is not a number, `ValueError` if it is not finite. No system call: clock_gettime
    needs none."""
    # This is a method of Loop: one that called a method of Timers would cost 500 instructions more,
    # of the 7,000 of a request that renews a timeout.
    timers = self._timers  # pyright: ignore[reportPrivateUsage]
    if getattr(callback, "__func__", callback) is not timers.checked:
        check_callback("a timer's callback", callback)
        timers.checked = getattr(callback, "__func__", check_callback)
    try:
        deadline = libc.clock_gettime(*_CLOCK) + seconds
    except OverflowError:  # an int that no float can hold
        deadline = inf
    except TypeError as error:
        # With its cause, which may have been raised by a signal's handler.
        what = f"a timer takes seconds as an int or a float, not {seconds!r:.40}"
        raise TypeError(what) from error
    # Checks the deadline, which is a float, and not the seconds, which are mostly an int.
    if not isfinite(deadline):
        raise ValueError(f"a timer takes a finite number of seconds, not {seconds!r:.40}")
    timer = Timer()
    timer._timers = timers  # pyright: ignore[reportPrivateUsage]  # of this room's own class
    timer.callback = callback
    # Counted before any call, after which a signal's handler could add another.
    number = timers.added
    timers.added = number + 1
    heappush(timers.heap, (deadline, number, timer))
    return timer
