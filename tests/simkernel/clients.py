"""The clients of a random world, and pipes that are written to from outside."""

from __future__ import annotations

from errno import ECONNREFUSED
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Final

from tests.simkernel.files import error
from tests.simkernel.handles import Handle
from tests.simkernel.rules import BYTES, MS, Broken, close_anyhow
from tests.simkernel.sockets import SHUT_WR, Address, StreamSocket
from tests.simkernel.waking import wake

if TYPE_CHECKING:
    from tests.simkernel.servers import Connection
    from tests.simkernel.world import World

_PATIENCE: Final = 20_000 * MS
"""How long a client waits for activity. Nothing takes longer, unless it is lost."""


class Client:
    """The other end of a connection. It acts whenever the loop waits."""

    def __init__(self, conn: Connection) -> None:
        self.conn = conn
        script = conn.script
        start = script.randrange(1 << 14)
        self.sent = BYTES[start : start + script.randint(0, 600)]
        """Everything that it will send."""
        self.done = 0
        self.received = bytearray()
        self.handle: Handle | None = None
        self.shut = False
        self.over = False
        self.deadline = 0

    def connect(self) -> None:
        """Open the connection, to a listener or as a socket pair."""
        world = self.conn.world
        kernel = world.kernel
        self.lives()
        try:
            kind = self.conn.script.randrange(4)
            if kind == 3:
                self.await_server()
                return
            if kind == 0:
                self.handle = kernel.connect(self.conn.dice.choice(world.acceptors).handle)
                assert isinstance(self.handle.file, StreamSocket)
                assert self.handle.file.peer is not None
                world.to_accept[self.handle.file.peer] = self.conn
            else:
                self.handle, far = kernel.socketpair(tcp=kind == 1)
                if world.owners:
                    # During a wait, no number in the poller may be reused.
                    world.errands.append(partial(self.conn.open, far))
                else:
                    self.conn.open(far)
        except OSError as failure:
            world.tolerate(failure)
            self.over = self.handle is None
            return
        self.handle.setblocking(False)
        self.next_tick()

    def await_server(self) -> None:
        """Have the server connect to this client, or to an address without one."""
        world = self.conn.world
        dice = self.conn.dice
        address: Address = world.kernel.port() if dice.random() < 0.6 else f"/c{self.conn.number}"
        world.kernel.elsewhere[address] = self.accept
        if world.wild and (luck := dice.random()) < 0.3:
            if luck < 0.1 and not isinstance(address, str):
                world.kernel.elsewhere[address] = None
            else:
                del world.kernel.elsewhere[address]
        connect = partial(self.conn.connect, address)
        if world.wakes:
            wake(world, dice.choice(world.loops), connect)
        else:
            world.errands.append(connect)

    def accept(self, file: StreamSocket) -> None:
        """The outcome of the server's connect. Raises `OSError`."""
        kernel = self.conn.world.kernel
        if self.over:
            raise error(ECONNREFUSED)
        try:
            self.handle = Handle(kernel, kernel.open(file))
        except OSError:
            raise error(ECONNREFUSED) from None
        self.handle.setblocking(False)
        self.lives()
        self.next_tick()

    def missed(self) -> None:
        """Called when the server has given up, perhaps before it was connected."""
        self.over = self.over or self.handle is None

    def lives(self) -> None:
        """Called when something was received or sent."""
        self.deadline = self.conn.world.kernel.clock.now_ns + _PATIENCE

    def next_tick(self) -> None:
        self.conn.world.kernel.clock.after(self.conn.dice.randrange(50_000, 3 * MS), self.tick)

    def tick(self) -> None:
        """Send a little, read a little, and sometimes close."""
        world = self.conn.world
        assert self.handle is not None
        dice = self.conn.dice
        if world.wild and dice.random() < 0.04:
            if dice.random() < 0.5:
                self.send_last(dice.randrange(1, 300))
            self.go(dice.random() < 0.5)
            return
        try:
            if self.done < len(self.sent):
                self.done += self.handle.send(
                    self.sent[self.done : self.done + dice.randrange(1, 300)]
                )
                self.lives()
            elif not self.shut:
                self.shut = True
                self.handle.shutdown(SHUT_WR)
        except BlockingIOError:
            pass
        except OSError:
            world.require(world.wild, f"connection {self.conn.number} could not send")
        try:
            if not self.read(dice.choice((10, 200, 5000, 50000))):
                self.go()
                return
        except BlockingIOError:
            pass
        except OSError:
            world.require(world.wild, f"connection {self.conn.number} could not read")
            self.go()
            return
        if world.kernel.clock.now_ns > self.deadline:
            raise Broken(
                f"connection {self.conn.number} waits in vain, with {len(self.received)} bytes of "
                f"{len(self.conn.out)} received and {self.conn.consumed} of {len(self.sent)} read"
            )
        self.next_tick()

    def send_last(self, count: int) -> None:
        """Send and close, so that the server finds data and the end at once."""
        assert self.handle is not None
        try:
            self.done += self.handle.send(self.sent[self.done : self.done + count])
        except OSError:
            pass

    def read(self, count: int) -> bytes:
        assert self.handle is not None
        data = self.handle.recv(count)
        at = len(self.received)
        self.received += data
        self.lives()
        if self.conn.out[at : len(self.received)] != data:
            raise Broken(f"connection {self.conn.number} received what was not written at {at}")
        return data

    def go(self, reset: bool = False) -> None:
        """Close."""
        assert self.handle is not None
        self.over = True
        if reset:
            self.handle.reset()
        else:
            self.handle.close()


class Tap:
    """A pipe whose read end is an other fd of a loop."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.dice = Random(f"tap {world.seed} {number}")
        self.loop = self.dice.choice(world.loops)
        self.read_end, self.write_end = world.kernel.pipe()
        self.read_end.setblocking(False)
        self.write_end.setblocking(False)
        self.left = self.dice.randint(1, 300)
        self.sent = 0
        self.received = 0
        self.watched = True
        try:
            self.loop.add_other_fds({self.read_end.fileno(): self.event})
        except OSError:
            self.read_end.close()
            self.write_end.close()
            raise
        self.tick()

    def tick(self) -> None:
        """Write a little; at the end, close."""
        count = min(self.left, self.dice.randint(1, 50))
        if count == 0:
            self.write_end.close()
            return
        self.write_end.send(BYTES[self.sent : self.sent + count])
        self.sent += count
        self.left -= count
        self.world.kernel.clock.after(self.dice.randrange(MS), self.tick)

    def event(self, state: int) -> None:
        """The loop's callback."""
        self.world.require(self.watched, "an other fd that was taken off got an event")
        self.world.in_handler(self.loop)
        try:
            data = self.read_end.recv(self.dice.randint(1, 60))
        except BlockingIOError:
            return
        self.world.require(
            BYTES[self.received : self.received + len(data)] == data, "a pipe's bytes are mixed up"
        )
        self.received += len(data)
        if not data:
            self.world.require(self.received == self.sent, "a pipe's bytes are lost")
            self.watched = False
            fd = self.read_end.fileno()
            self.loop.other_fds = {k: v for k, v in self.loop.other_fds.items() if k != fd}
            close_anyhow(self.read_end)
