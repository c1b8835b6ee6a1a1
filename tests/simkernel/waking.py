"""What wakes the loops of a random world: callbacks, calls from outside, and signals."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from random import Random
from signal import SIGUSR1, SIGUSR2
from typing import TYPE_CHECKING, Final

from danga_raw.loop import Loop
from tests.simkernel.pipes import PipeEnd
from tests.simkernel.rules import MS, Boom, TimerModel

if TYPE_CHECKING:
    from tests.simkernel.world import World

AT_ONCE: Final = 1 * MS
AT_ONCE_OF_TWO: Final = 3000 * MS
"""The same, if another loop runs meanwhile."""


def nothing() -> None:
    """A callback that does nothing."""


class Soon:
    """A callback that must run once, in the next turn of its loop, in order."""

    def __init__(self, world: World, loop: Loop, action: Callable[[], object]) -> None:
        self.world = world
        self.loop = loop
        self.action = action
        self.since = world.kernel.clock.now_ns
        self.turn = world.in_callback and (world.turns, world.kernel.waits, world.within)
        """The turn in which it was added, if another callback added it."""
        self.prompt = True
        """False if the wake-up itself has failed."""
        world.soon[loop].append(self)

    def check(self) -> None:
        """Fail if the callback is late."""
        late = self.world.kernel.clock.now_ns - self.since
        alone = len(self.world.loops) == 1 and self.prompt
        most = AT_ONCE if alone else AT_ONCE_OF_TWO
        self.world.require(late < most, f"a callback is {late / MS} ms late")

    def run(self) -> None:
        """The loop's callback."""
        world = self.world
        world.in_handler(self.loop)
        world.require(
            self in world.soon[self.loop], "a callback ran that nobody had given, or twice"
        )
        world.require(world.soon[self.loop].pop(0) is self, "callbacks ran out of order")
        self.check()
        now = (world.turns, world.kernel.waits, world.within)
        next_turn = self.turn != now or world.ran_within
        world.require(next_turn, "a callback ran in the pass in which it was given")
        before, world.in_callback = world.in_callback, True
        try:
            self.action()
        finally:
            world.in_callback = before


def soon(world: World, loop: Loop, action: Callable[[], object] = nothing) -> None:
    """`call_soon`"""
    loop.call_soon(Soon(world, loop, action).run)


def wake(world: World, loop: Loop, action: Callable[[], object] = nothing) -> None:
    """`call_soon_threadsafe`. Raises `OSError` if there is nothing to wake the loop with."""
    given = Soon(world, loop, action)
    failed = world.wakes_failed
    try:
        loop.call_soon_threadsafe(given.run)
    except OSError:
        world.soon[loop].remove(given)
        raise
    given.prompt = world.wakes_failed == failed


class Outsider:
    """Another thread, which calls a loop from time to time, always during a wait."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.dice = Random(f"outsider {world.seed} {number}")
        self.left = self.dice.randint(1, 8)
        self.again()

    def again(self) -> None:
        """Schedule the next call."""
        self.world.kernel.clock.after(self.dice.randrange(10 * MS), self.call)

    def call(self) -> None:
        """Call one loop, once or several times."""
        loop = self.dice.choice(self.world.loops)
        for _ in range(self.dice.choice((1, 1, 3))):
            try:
                wake(self.world, loop, self.action(loop))
            except OSError as error:
                self.world.tolerate(error)
        self.left -= 1
        if self.left:
            self.again()

    def action(self, loop: Loop) -> Callable[[], object]:
        """The callback for the loop."""
        other = self.dice.choice(self.world.loops)
        return self.dice.choice(
            (
                nothing,
                partial(soon, self.world, loop),
                partial(TimerModel, self.world, loop, 0.0005, nothing),
                partial(self.pass_on, other),
                self.boom if self.world.wild else nothing,
            )
        )

    def pass_on(self, loop: Loop) -> None:
        """Give another loop something to do."""
        try:
            wake(self.world, loop)
        except OSError as error:
            self.world.tolerate(error)

    def boom(self) -> None:
        """Raise."""
        raise Boom


class Listening:
    """A loop that handles a signal, and sometimes stops handling it."""

    def __init__(self, world: World, loop: Loop, number: int) -> None:
        self.world = world
        self.loop = loop
        self.number = number
        self.dice = Random(f"signal {world.seed} {number}")
        self.on = False
        self.left = self.dice.randint(1, 6)
        world.listening.append(self)
        self.switch()

    def switch(self) -> None:
        """Begin to handle the signal, stop, or set the handler again; several times."""
        if self.on and self.dice.random() < 0.5:
            removed = self.loop.remove_signal_handler(self.number)
            self.world.require(removed, "a signal's handler was lost")
            self.on = False
            handled = self.number in self.world.kernel.signals.handlers
            self.world.require(not handled, "a signal is handled still")
        else:
            try:
                self.loop.add_signal_handler(self.number, self.heard)
                self.on = True
            except OSError as error:
                self.world.tolerate(error)
        self.left -= 1
        if self.left:
            TimerModel(self.world, self.loop, self.dice.randrange(100) / 10_000, self.switch)
        self.world.kernel.clock.after(self.dice.randrange(5 * MS), self.come)

    def come(self) -> None:
        """Send the signal, during a wait."""
        self.world.kernel.signals.come(self.number)

    def heard(self) -> None:
        """The loop's callback for each signal."""
        first = self.world.soon[self.loop][0] if self.world.soon[self.loop] else None
        self.world.require(
            first is not None and first.action == self.come_to, "a signal that did not come"
        )
        assert first is not None
        first.run()

    def come_to(self) -> None:
        """Note that the signal was handled."""


SIGNALS: Final = (SIGUSR1, SIGUSR2)


def unread(world: World, loop: Loop) -> int:
    """How many bytes are in the pipe that wakes a loop."""
    waker = loop._registry.waker
    if waker is None:
        return 0
    file = world.kernel.table.files[waker.fileno()]
    assert isinstance(file, PipeEnd)
    return len(file.buffer)
