"""Timers: a heap of deadlines on the monotonic clock, with those cancelled dropped lazily."""

from __future__ import annotations

import math
from heapq import heapify, heappop, heappush
from time import CLOCK_MONOTONIC

from danga_raw._libc import INT_MAX, libc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

_FEW: Final = 64
"""Up to here spent timers are not worth clearing out."""


class Timer:
    """A callback that is due once; what `add_timer` and `AddTimer` return."""

    __slots__ = ("_timers", "callback")

    def __init__(self, timers: Timers, callback: Callable[[], object]) -> None:
        self._timers = timers
        self.callback: Callable[[], object] | None = callback

    def cancel(self) -> None:
        """Never fire. Drops the callback at once; does nothing for a timer that fired already."""
        if self.callback is not None:
            self.callback = None
            self._timers.spent_one()


class Timers:
    """The timers of one loop, in order of deadline; equal ones in the order they were added."""

    __slots__ = ("_spent", "added", "heap")

    def __init__(self) -> None:
        self.heap: list[tuple[float, int, Timer]] = []
        self._spent = 0  # how many of the heap have no callback any more
        self.added: int = 0
        """How many timers there ever were, and so the number of the next."""

    def add(self, seconds: float, callback: Callable[[], object]) -> Timer:
        """A new timer, due `seconds` from now. Calls clock_gettime(CLOCK_MONOTONIC).

        Raises `TypeError` for a callback that can't be called, `ValueError` for a number of seconds
        that is not finite.
        """
        if not callable(callback):
            raise TypeError(f"a timer takes a callable, not {callback!r}")
        if not math.isfinite(seconds):
            raise ValueError(f"a timer takes a finite number of seconds, not {seconds!r}")
        timer = Timer(self, callback)
        deadline = libc.clock_gettime(CLOCK_MONOTONIC) + seconds
        # Counted before any call: a signal's handler could add one behind it.
        number = self.added
        self.added = number + 1
        heappush(self.heap, (deadline, number, timer))
        return timer

    def run_due(self, number: int) -> int:
        """Fire what is due of the timers before the `number`th; the ms to the next one (a C int), or -1.

        Those that a callback adds wait for another call, or one that always adds itself again would
        keep the loop from everything else. The time is rounded up to a whole millisecond past the
        deadline, since a timer that is woken a little early waits in many short turns.
        Calls clock_gettime(CLOCK_MONOTONIC).
        """
        heap = self.heap
        now = libc.clock_gettime(CLOCK_MONOTONIC)
        fired = False
        while heap:
            deadline, added, timer = heap[0]
            callback = timer.callback
            if callback is None:
                heappop(heap)
                self._spent -= 1
            elif deadline <= now and added < number:
                # Spent before it is called and popped after, so that neither an exception nor a
                # signal's handler in between can lose a timer or have it fire twice.
                timer.callback = None
                self._spent += 1
                fired = True
                callback()
            else:
                if fired:
                    now = libc.clock_gettime(CLOCK_MONOTONIC)
                # Cut before it is made whole: of seconds like 1e308 there are infinite milliseconds.
                return max(int(min((deadline - now) * 1000, INT_MAX - 1)) + 1, 0)
        return -1

    def spent_one(self) -> None:
        """Note that a timer was cancelled; once the half of all were, give back their room."""
        self._spent += 1
        if self._spent > _FEW and 2 * self._spent > len(self.heap):
            added = self.added
            kept = [entry for entry in self.heap if entry[2].callback is not None]
            heapify(kept)
            if added == self.added:  # No signal's handler has added one meanwhile.
                self.heap[:] = kept
                self._spent = 0

    def clear(self) -> None:
        """Forget all timers; none of them fires."""
        for _, _, timer in self.heap:
            timer.callback = None
        self.heap.clear()
        self._spent = 0
