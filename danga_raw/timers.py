"""Timers: a heap of deadlines on the monotonic clock, with those cancelled dropped lazily."""

from __future__ import annotations

from collections import deque
from math import floor
from sys import float_info
from time import CLOCK_MONOTONIC

try:  # The module around it is a twentieth of what all of this package costs to import.
    from _heapq import heapify, heappop, heappush
except ImportError:
    from heapq import heapify, heappop, heappush

from danga_raw._libc import INT_MAX, libc
from danga_raw._mistakes import check_callback

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from danga_raw.types import Callback

_FEW: Final = 64
"""Up to here spent timers are not worth clearing out."""

_MOST: Final = float_info.max
"""The most seconds: what is beyond is infinite, or an int that no float can hold."""

_LONGEST: Final = float(INT_MAX)
"""The most milliseconds that a wait takes."""


class Timer:
    """A callback that is due once; what `add_timer` and `AddTimer` return."""

    __slots__ = {
        "_timers": "The timers of its loop.",
        "callback": "What it calls; None once it has fired or was cancelled.",
    }

    def __init__(self, timers: Timers, callback: Callback) -> None:
        self._timers = timers
        self.callback: Callback | None = callback

    def cancel(self) -> None:
        """Never fire. Drops the callback at once; does nothing for a timer that fired already."""
        if self.callback is not None:
            self.callback = None
            timers = self._timers
            timers.spent += 1
            if timers.spent > _FEW:
                timers.clear_out()

    def __repr__(self) -> str:
        return f"<Timer {'spent' if self.callback is None else f'of {self.callback!r}'}>"


class Timers:
    """The timers of one loop, in order of deadline; equal ones in the order they were added."""

    def __init__(self) -> None:
        self.heap: list[tuple[float, int, Timer]] = []
        self.due: deque[Timer] = deque()
        """What the present pass has still to fire, and what one left that an exception cut short."""
        self.timeout: int = -1
        """How long a wait may take for all else, in milliseconds; -1 for ever."""
        self._added = 0  # how many there ever were
        self.spent: int = 0
        """Roughly how many of the heap have no callback any more."""

    def add(self, seconds: float, callback: Callback) -> Timer:
        """A new timer, due `seconds` from now; raises as `Loop.add_timer` does."""
        check_callback("a timer's callback", callback)
        if not -_MOST <= seconds <= _MOST:
            raise ValueError(f"a timer takes a finite number of seconds, not {seconds!r:.40}")
        timer = Timer(self, callback)
        deadline = libc.clock_gettime(CLOCK_MONOTONIC) + seconds
        # Counted before any call: a signal's handler could add one behind it.
        number = self._added
        self._added = number + 1
        heappush(self.heap, (deadline, number, timer))
        return timer

    def run_due(self) -> int:
        """Fire what is due; how long the next wait may take, in milliseconds (-1: for ever).

        What is added in a pass waits for the next: one that adds itself again and again can't keep
        others from firing. The time is rounded up to a whole millisecond past the deadline, since a
        timer that is woken a little early waits in many short turns.
        """
        now = libc.clock_gettime(CLOCK_MONOTONIC)
        first = self.heap[0] if self.heap else None
        if first is None or first[0] <= now or first[2].callback is None or self.due:
            first = self._fire(now)
            if first is None:
                return self.timeout
            now = libc.clock_gettime(CLOCK_MONOTONIC)
            if first[0] < now:
                return 0
        # Cut before it is made whole: of seconds like 1e308 there are infinite milliseconds.
        wait = (first[0] - now) * 1000.0
        until = floor(wait) + 1 if wait < _LONGEST else INT_MAX
        timeout = self.timeout
        return until if timeout < 0 or until < timeout else timeout

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
        # The question falls through: behind a jump a signal's handler could put another first.
        while heap and heap[0][2].callback is None:
            heappop(heap)
            self.spent -= 1
        return heap[0] if heap else None

    def clear_out(self) -> None:
        """Give back the room of the spent ones, once they are the half of all."""
        if 2 * self.spent > len(self.heap):
            added = self._added
            kept = [entry for entry in self.heap if entry[2].callback is not None]
            heapify(kept)
            if added == self._added:  # No signal's handler has added one meanwhile.
                self.heap[:] = kept
                self.spent = 0

    def clear(self) -> None:
        """Forget all timers; none of them fires."""
        for timer in [entry[2] for entry in self.heap] + list(self.due):
            timer.callback = None
        self.heap.clear()
        self.due.clear()
        self.timeout = -1
        self.spent = 0
