"""Descriptors that their owners close behind the package's back, and the reuse of their numbers."""

from __future__ import annotations

from collections.abc import Callable
from errno import EMFILE
from random import Random
from typing import TYPE_CHECKING, Final

from danga_raw.loop import Loop
from danga_raw.socket import Socket
from tests.simkernel.handles import Handle
from tests.simkernel.rules import BYTES, MS, TimerModel, close_anyhow

if TYPE_CHECKING:
    from tests.simkernel.world import World

HEARD: Final = 50 * MS
HEARD_OF_TWO: Final = 3000 * MS
"""The same, if another loop runs meanwhile."""


VAIN: Final = 40
"""This many events without data in a row can't be chance."""


class Heard(Socket[Handle]):
    """Reads what its other side sends, and never closes."""

    __slots__ = ("far", "gone", "got", "handle", "said", "since", "vain", "world")

    def __init__(self, world: World, handle: Handle, far: Handle, loop: Loop) -> None:
        self.world = world
        self.handle = handle
        self.far = far
        self.gone = False
        """True once its owner has closed the descriptor."""
        self.said = self.got = self.vain = 0
        self.since: int | None = None
        """When the pending event arrived; None if none is pending."""
        super().__init__(handle, loop)
        self.watch_read(True)

    def say(self) -> None:
        """Send it something."""
        if self.far.fileno() < 0 or self.closed:
            return
        try:
            self.said += self.far.send(BYTES[self.said : self.said + 20])
            self.since = self.since or self.world.kernel.clock.now_ns
        except OSError:
            pass

    def event_read(self) -> None:
        self.is_mine()
        if self.gone:
            self.close("its owner has closed it")
            return
        data = self.read(1000)
        self.vain = 0 if data else self.vain + 1
        self.world.require(self.vain < VAIN, "events come of what is another's")
        if data is None:
            self.close("end")
            return
        self.world.require(
            BYTES[self.got : self.got + len(data)] == data, "what came was another's"
        )
        self.got += len(data)
        if self.got == self.said:
            self.since = None

    def is_mine(self) -> None:
        """Called for each event, which must be its own."""
        self.world.in_handler(self.loop)
        self.world.require(not self.closed, "an event for who has lost the number")
        holder: object = self.loop.descriptor_map.get(-1 if self.fd is None else self.fd)
        self.world.require(holder is self, "an event for who has not the number")

    def event_hup(self) -> None:
        self.is_mine()
        self.world.require(self.gone or self.far.fileno() < 0, "a hang-up of another")
        self.close("hang-up")

    event_err = event_hup

    def dump_error(self, message: str) -> None:
        """Silent, because its owner closed it on purpose."""

    def check(self) -> None:
        """Called after each turn of its loop while it is open."""
        holder: object = self.loop.descriptor_map.get(-1 if self.fd is None else self.fd)
        self.world.require(holder is self, "who has lost the number takes it for its own")
        if self.gone:
            return
        table, world = self.world.kernel.table, self.world
        world.require(
            table.files.get(self.handle.fileno()) is self.handle.file,
            "a newcomer's descriptor was closed for another",
        )
        if self.since is not None:
            late = world.kernel.clock.now_ns - self.since
            most = HEARD if len(world.loops) == 1 else HEARD_OF_TWO
            world.require(late < most, "a newcomer is not heard")


class Owner:
    """Has a descriptor watched, and closes it silently; its number is reused."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.dice = Random(f"owner {world.seed} {number}")
        self.left = self.dice.randint(1, 5)
        self.present: Heard | None = None
        self.objects: list[Heard] = []
        self.kept: list[Handle] = []
        """Dups of closed descriptors that are still open elsewhere."""
        self.over = False
        self.later(self.begin)

    def later(self, action: Callable[[], object]) -> None:
        """Do `action` soon: from a loop's handler, or while a loop waits."""
        delay = self.dice.randrange(10 * MS)
        if self.dice.random() < 0.5:
            TimerModel(self.world, self.dice.choice(self.world.loops), delay / 1e9, action)
        else:
            self.world.kernel.clock.after(delay, lambda: self.world.errands.append(action))

    def begin(self) -> None:
        """Begin with a descriptor of any number."""
        self.wrap(None, self.dice.choice(self.world.loops))

    def wrap(self, number: int | None, loop: Loop) -> None:
        """Make a new pair, and have a loop watch one end of it, at this number."""
        kernel = self.world.kernel
        try:
            near, far = kernel.socketpair(tcp=self.dice.random() < 0.5)
        except OSError as failure:
            self.world.tolerate(failure)
            self.end()
            return
        near.setblocking(False)
        far.setblocking(False)
        if number is not None:
            near = self.move(near, number)
        try:
            self.present = Heard(self.world, near, far, loop)
        except OSError as failure:
            self.world.tolerate(failure)
            near.close()
            far.close()
            self.end()
            return
        self.objects.append(self.present)
        for _ in range(self.dice.randrange(4)):
            self.later(self.present.say)
        self.later(self.go)

    def move(self, near: Handle, number: int) -> Handle:
        """dup2(2) to a free number."""
        kernel = self.world.kernel
        if number in kernel.table.files:
            return near
        kernel.table.put(number, near.file)
        near.close()
        return Handle(kernel, number)

    def go(self) -> None:
        """Close it behind the package's back, and perhaps reuse the number."""
        heard = self.present
        if heard is None or heard.closed or heard.handle.fileno() < 0:
            self.end()
            return
        number = heard.handle.fileno()
        if self.dice.random() < 0.5:
            try:
                self.kept.append(heard.handle.dup())
            except OSError as failure:
                self.world.require(failure.errno == EMFILE, f"unexpected: {failure!r}")
        if self.dice.random() < 0.5:
            heard.say()
        heard.gone = True
        close_anyhow(heard.handle)
        if self.dice.random() < 0.3:
            heard.say()
        self.left -= 1
        if not self.left or self.dice.random() < 0.2:
            self.end()
        else:
            loop = heard.loop if self.dice.random() < 0.7 else self.dice.choice(self.world.loops)
            self.wrap(number, loop)

    def end(self) -> None:
        """Stop: close everything that is still open."""
        self.over = True
        for heard in self.objects:
            heard.far.close()
            if not heard.closed:
                # This must not remove the number's next owner.
                heard.close("at the end")
        for handle in self.kept:
            handle.close()
