"""Shared by the programs of the random servers and their worlds: failures, and objects that check
themselves."""

from __future__ import annotations

from collections.abc import Callable
from errno import EIO
from random import Random
from typing import TYPE_CHECKING, Final

from danga_raw.loop import Loop
from danga_raw.timers import Timer
from tests.simkernel.files import POLLIN, POLLOUT
from tests.simkernel.handles import Handle

if TYPE_CHECKING:
    from tests.simkernel.world import World

MS: Final = 1_000_000
MASK: Final = POLLIN | POLLOUT
LATE: Final = 3 * MS
LATE_BY_TICKS: Final = 23 * MS
"""The same, on a kernel that waits in whole ticks."""
BYTES: Final = Random("bytes").randbytes(1 << 16)
"""All data sent is a piece of this."""


class Broken(AssertionError):
    """An invariant is violated."""


class Boom(Exception):
    """Raised by a handler at random."""


def close_anyhow(handle: Handle) -> None:
    """close(2), which frees the descriptor even if it fails."""
    try:
        handle.close()
    except OSError:
        pass


class TimerModel:
    """A timer as it should behave."""

    def __init__(
        self, world: World, loop: Loop, seconds: float, action: Callable[[], object]
    ) -> None:
        self.world = world
        self.loop = loop
        self.action = action
        self.cancelled = False
        self.fired = False
        self.number = world.timers_made = world.timers_made + 1
        self.deadline = world.kernel.clock_gettime(1) + seconds
        self.timer: Timer = loop.add_timer(seconds, self.fire)
        world.timers.add(self)

    def fire(self) -> None:
        """The loop's callback."""
        now = self.world.kernel.clock_gettime(1)
        late = self.world.kernel.clock.now_ns - self.deadline * 1e9
        self.world.require(not self.fired, "a timer fired twice")
        self.world.require(not self.cancelled, "a cancelled timer fired")
        self.world.require(self.deadline <= now, "a timer fired early")
        most = LATE_BY_TICKS if self.world.kernel.rules == "netbsd" else LATE
        self.world.require(len(self.world.loops) > 1 or late < most, "a timer fired late")
        last = self.world.last_timer.get(self.loop, (0.0, 0))
        self.world.require(last < (self.deadline, self.number), "timers fired out of order")
        self.world.last_timer[self.loop] = (self.deadline, self.number)
        self.fired = True
        self.world.timers.discard(self)
        self.action()

    def cancel(self) -> None:
        """`Timer.cancel`"""
        if not self.fired:
            self.cancelled = True
            self.world.timers.discard(self)
        self.timer.cancel()


class ServerHandle(Handle):
    """The server's side of a connection, which checks when the loop closes it."""

    world: World
    loop: Loop | None = None

    def close(self) -> None:
        """close(2)"""
        if self.loop is not None:
            self.world.closing(self.loop, self)
        super().close()
        if number := self.kernel.luck.failure("close", EIO):
            raise OSError(number, "injected")
