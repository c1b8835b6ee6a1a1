"""Timers: a heap of deadlines on the monotonic clock. Cancelled ones stay in it for a while."""

from __future__ import annotations

from collections import deque
from math import floor, inf, isfinite
from time import CLOCK_MONOTONIC

try:  # The module around it is a twentieth of what all of this package costs to import.
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
"""So many spent timers may be in the heap before somebody asks whether to clear them out."""

_CLOCK: Final = (CLOCK_MONOTONIC,)
"""The arguments of clock_gettime. Before 3.13 it is called with a tuple, and to make one each time
costs as much as the call."""


class Timer:
    """A callback that is due once; what `add_timer` and `AddTimer` return."""

    __slots__ = {
        "_timers": "The timers of its loop.",
        "callback": "What it calls; None once it has fired or was cancelled.",
    }

    __getstate__ = no_copy

    # add_timer fills them: an __init__ would cost as much again as all else of a new one.
    _timers: Timers
    callback: Callback | None

    def cancel(self) -> None:
        """Never fire. Drops the callback at once; does nothing for a timer that fired already."""
        if self.callback is not None:
            self.callback = None
            timers = self._timers
            timers.spent = spent = timers.spent + 1
            if not spent % _FEW and spent * 2 > len(timers.heap):
                timers.clear_out()

    def __repr__(self) -> str:
        return f"<Timer {'spent' if self.callback is None else f'of {self.callback!r}'}>"


class Timers:
    """The timers of one loop, in order of deadline; equal ones in the order they were added."""

    def __init__(self) -> None:
        self.set_timeout(-1)
        self.heap: list[tuple[float, int, Timer]] = []
        self.due: deque[Timer] = deque()
        """What is still to be fired, of this pass or of one that an exception has cut short."""
        self.added: int = 0
        """How many there ever were."""
        self.checked: object = check_callback
        """The function of the method that was checked last: the next callback is mostly the same of
        another object. At first any that may be called."""
        self.spent: int = 0
        """Roughly how many of the heap have no callback any more."""

    def set_timeout(self, ms: int) -> None:
        """How long a wait may take for all else, in milliseconds; -1 for ever."""
        longest = float(ms if ms >= 0 else INT_MAX)
        self.timeout = ms
        self._longest = longest  # for any wait with a deadline, which a C int must hold too

    def run_due(self) -> int:
        """Fire what is due; how long the next wait may take, in milliseconds (-1: for ever).

        What is added in a pass waits for the next: one that adds itself again and again can't keep
        others from firing. The time is rounded up to a whole millisecond past the deadline, since a
        timer that is woken a little early waits in many short turns.
        """
        now = libc.clock_gettime(*_CLOCK)
        heap = self.heap
        if heap and not self.due:
            first = heap[0]
            wait = (first[0] - now) * 1000.0
            if wait > 0.0 and first[2].callback is not None:  # Most turns end here.
                # Cut before it is made whole: of seconds like 1e308 there are infinite milliseconds.
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
        """Fire what is due; what is first in the heap then."""
        heap, due = self.heap, self.due
        if not due:
            while heap and heap[0][0] <= now:
                # In both for a moment, where an exception may come between: it fires once.
                due += (heap[0][2],)
                heappop(heap)
        while due:
            timer = due[0]
            callback = timer.callback
            # Spent before it is called, and no call in between: it is neither lost nor called twice.
            timer.callback = None
            del due[0]
            if callback is not None:
                callback()
        if self.spent > _FEW and self.spent * 2 >= len(heap):
            self.clear_out()
        # No jump between the question and the pop, where a signal's handler could put another first.
        while heap and heap[0][2].callback is None:
            heappop(heap)
            self.spent -= 1
        return heap[0] if heap else None

    def clear_out(self) -> None:
        """Drop the spent ones from the heap. Once they are half of it, this costs less for each of
        them than a pop."""
        added = self.added
        kept = [entry for entry in self.heap if entry[2].callback is not None]
        kept.sort()  # A sorted list is a heap, and to sort one again costs half of a heapify.
        if added == self.added:  # No signal's handler has added one meanwhile.
            self.heap[:] = kept
            self.spent = 0

    def clear(self) -> None:
        """Forget all timers; none of them fires."""
        for timer in [entry[2] for entry in self.heap] + list(self.due):
            timer.callback = None
        self.heap.clear()
        self.due.clear()
        self.set_timeout(-1)
        self.checked = check_callback
        self.spent = 0


def add_timer(self: Loop, seconds: float, callback: Callback) -> Timer:
    """Call `callback()` once, `seconds` from now, on the monotonic clock, never early; a negative
    number is due at once, and before those due later. Raises `TypeError` for what can't be called and
    for no number, `ValueError` for one that is not finite. No system call: clock_gettime needs none."""
    # This is the method of Loop itself: one that called another of Timers would cost 500 instructions
    # more, of 7,000 a request where each puts off a timeout.
    timers = self._timers  # pyright: ignore[reportPrivateUsage]
    if getattr(callback, "__func__", callback) is not timers.checked:
        check_callback("a timer's callback", callback)
        timers.checked = getattr(callback, "__func__", check_callback)
    try:
        deadline = libc.clock_gettime(*_CLOCK) + seconds
    except OverflowError:  # an int that no float can hold
        deadline = inf
    except TypeError as error:
        # With its cause, which may be what a signal's handler raised.
        what = f"a timer takes seconds as an int or a float, not {seconds!r:.40}"
        raise TypeError(what) from error
    # The deadline is a float already, where the seconds mostly are an int.
    if not isfinite(deadline):
        raise ValueError(f"a timer takes a finite number of seconds, not {seconds!r:.40}")
    timer = Timer()
    timer._timers = timers  # pyright: ignore[reportPrivateUsage]  # of this room's own class
    timer.callback = callback
    # Counted before any call: a signal's handler could add one behind it.
    number = timers.added
    timers.added = number + 1
    heappush(timers.heap, (deadline, number, timer))
    return timer
