"""The clock of the simulated world, and its pending events.

Time stands still while a program computes; only a wait advances it. So a run is the same on every
machine, and an hour of simulated time costs nothing.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import TypeVar

from tests.simkernel.errors import SimError

T = TypeVar("T")

CALL_NS = 1_000
"""The duration of a wait that finds something at once: time must pass for a program that polls in a
loop."""


class Clock:
    """Monotonic nanoseconds, and a heap of the actions due at certain times."""

    def __init__(self, start_ns: int = 1_000_000_000_000) -> None:
        self.now_ns = start_ns
        self._heap: list[tuple[int, int, Callable[[], object]]] = []
        self._added = 0

    def after(self, delay_ns: int, action: Callable[[], object]) -> int:
        """Run `action` during a wait, `delay_ns` from now; returns the time at which it is due."""
        return self.at(self.now_ns + delay_ns, action)

    def at(self, when_ns: int, action: Callable[[], object]) -> int:
        """Run `action` at `when_ns`. Actions due at the same time run in the order of adding."""
        self._added += 1
        heapq.heappush(self._heap, (when_ns, self._added, action))
        return when_ns

    def run_due(self) -> None:
        """Run what is due by now."""
        while self._heap and self._heap[0][0] <= self.now_ns:
            heapq.heappop(self._heap)[2]()

    def wait(self, ready: Callable[[], T], timeout_ns: int | None, what: str) -> T:
        """Let time pass until `ready()` is true or the timeout is over; returns its last result.

        Waiting forever with nothing pending is a failure: the program has hung.
        """
        self.now_ns += CALL_NS
        deadline = None if timeout_ns is None else self.now_ns + timeout_ns
        while True:
            self.run_due()
            answer = ready()
            if answer or (deadline is not None and self.now_ns >= deadline):
                return answer
            coming = self._heap[0][0] if self._heap else None
            if coming is None and deadline is None:
                raise SimError(f"deadlock: {what} waits for ever, and nothing is going to happen")
            self.now_ns = min(t for t in (coming, deadline) if t is not None)
