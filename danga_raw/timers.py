"""Timers: a heap of deadlines on the monotonic clock, with those cancelled dropped lazily."""

from __future__ import annotations

from collections import deque
from math import floor, isfinite
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
            self._timers.spent_one()

    def __repr__(self) -> str:
        return f"<Timer {'spent' if self.callback is None else f'of {self.callback!r}'}>"


class Timers:
    """The timers of one loop, in order of deadline; equal ones in the order they were added."""

    def __init__(self) -> None:
        self.heap: list[tuple[float, int, Timer]] = []
        self.due: deque[Timer] = deque()
        """What the present pass has still to fire, and what one left that an exception cut short."""
        self.timeout = -1
        """How long a wait may take for all else, in milliseconds; -1 for ever."""
        self._added = 0  # how many there ever were
        self._spent = 0  # roughly how many of the heap have no callback any more

    def add(self, seconds: float, callback: Callback) -> Timer:
        """A new timer, due `seconds` from now; raises as `Loop.add_timer` does."""
        check_callback("a timer's callback", callback)
        try:
            finite = isfinite(seconds)
        except OverflowError:  # an int that no float can hold
            finite = False
        if not finite:
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

        What is due when a pass begins fires in that pass, and what is added in it waits for the
        next: one that adds itself again and again can't keep others from firing. A pass that an
        exception has cut short is finished by the next call. The time is rounded up to a whole
        millisecond past the deadline, since a timer that is woken a little early waits in many
        short turns.
        """
        heap = self.heap
        now = libc.clock_gettime(CLOCK_MONOTONIC)
        if self.due or heap and heap[0][0] <= now:
            self._fire(now)
            now = libc.clock_gettime(CLOCK_MONOTONIC)
        timeout = self.timeout
        while heap:
            deadline, _, timer = heap[0]
            if timer.callback is not None:
                # Cut before it is made whole: of seconds like 1e308 there are infinite milliseconds.
                wait = (deadline - now) * 1000.0
                until = floor(wait) + 1 if 0.0 <= wait < _LONGEST else INT_MAX if wait > 0.0 else 0
                return until if timeout < 0 or until < timeout else timeout
            heappop(heap)
            self._spent -= 1
        return timeout

    def _fire(self, now: float) -> None:
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

    def spent_one(self) -> None:
        """Note that a timer was cancelled; once the half of all were, give back their room."""
        self._spent += 1
        if self._spent > _FEW and 2 * self._spent > len(self.heap):
            added = self._added
            kept = [entry for entry in self.heap if entry[2].callback is not None]
            heapify(kept)
            if added == self._added:  # No signal's handler has added one meanwhile.
                self.heap[:] = kept
                self._spent = 0

    def clear(self) -> None:
        """Forget all timers; none of them fires."""
        for timer in [entry[2] for entry in self.heap] + list(self.due):
            timer.callback = None
        self.heap.clear()
        self.due.clear()
        self.timeout = -1
        self._spent = 0
