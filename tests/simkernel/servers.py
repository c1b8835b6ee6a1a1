"""The server side of a random world: objects that split their input into frames, and do something
at the end of each.

The seed and the number of the connection determine what they do, so that the first connections of a
world do the same whether or not others follow.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from errno import ETIMEDOUT
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Final, cast

from danga_raw import listener
from danga_raw.listener import Listener
from danga_raw.loop import Loop
from danga_raw.socket import Socket
from danga_raw.types import Block, DescriptorMapping, OtherFdMapping
from tests.simkernel.clients import Client
from tests.simkernel.files import POLLIN, POLLOUT, OpenFile
from tests.simkernel.handles import Handle
from tests.simkernel.pipes import PipeEnd
from tests.simkernel.rules import (
    BYTES,
    LATE_BY_TICKS,
    MASK,
    MS,
    Boom,
    Broken,
    ServerHandle,
    TimerModel,
    close_anyhow,
)
from tests.simkernel.sockets import NO_ROOM, Address, StreamSocket
from tests.simkernel.sockets import Listener as KernelListener
from tests.simkernel.waking import soon, wake

if TYPE_CHECKING:
    from socket import socket as PythonSocket

    from tests.simkernel.world import World


class Connection:
    """The state of one connection, which outlives the objects that are wrapped around it."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.number = number
        self.script = Random(f"script {world.seed} {number}")
        self.dice = Random(f"dice {world.seed} {number}")
        self.client = Client(self)
        self.handle: ServerHandle | None = None
        self.obj: Peer | None = None
        self.consumed = 0
        self.frame = self.script.randint(1, 40)
        self.in_frame = 0
        self.out = bytearray()
        """Every byte that was accepted for writing."""
        self.callables = 0
        """How many callables are queued."""
        self.want_write = False
        self.boom = False
        self.callable_raised = False
        """True if a queued callable has raised. Until the next event, the object may then watch for
        writability because of what was queued after it."""
        self.ended = False
        self.dial: Dial | None = None
        """The connect that made it, if the server connected."""

    # --- the server's side ------------------------------------------------------------------------

    def open(self, handle: Handle) -> None:
        """Called when the server's side exists."""
        handle.setblocking(False)
        self.handle = self.world.server_handle(self.world.kernel, handle.detach())
        self.wrap()

    @property
    def taken(self) -> int:
        """How many bytes the kernel has accepted."""
        assert self.handle is not None and isinstance(self.handle.file, StreamSocket)
        return self.handle.file.taken

    @property
    def hung_up(self) -> bool:
        """True if the client has closed, or has shut down its write side."""
        assert self.handle is not None and isinstance(self.handle.file, StreamSocket)
        return self.handle.file.shut_read

    @property
    def unread(self) -> int:
        """How many bytes the server can read from the kernel."""
        assert self.handle is not None and isinstance(self.handle.file, StreamSocket)
        return self.handle.file.arrived

    def wrap(self) -> None:
        """Make a new object for the handle, on any loop."""
        assert self.handle is not None
        del self.out[self.taken :]
        self.callables = 0
        self.want_write = False
        # A close in the queue of the previous object was lost with it.
        self.ended = False
        loop = self.dice.choice(self.world.loops)
        try:
            self.obj = Peer(self.handle, loop, self)
        except OSError as error:
            self.world.tolerate(error)
            self.obj = None
            self.handle.loop = None
            close_anyhow(self.handle)
            self.client.missed()
            return
        self.handle.loop = loop
        self.obj.watch_read(True)

    def feed(self, obj: Peer, data: bytes) -> None:
        """Handle `data` that the object has read: push some back; act at the end of each frame."""
        keep = len(data)
        if keep > 1 and not obj.read_push_back and self.dice.random() < 0.2:
            keep = self.dice.randrange(1, keep)
            middle = self.dice.randint(keep, len(data))
            for piece in data[keep:middle], data[middle:]:
                if piece:
                    obj.push_back_read(piece)
        sent = self.client.sent
        if data[:keep] != sent[self.consumed : self.consumed + keep]:
            raise Broken(f"connection {self.number} read what was not sent at {self.consumed}")
        self.consumed += keep
        self.in_frame += keep
        while self.in_frame >= self.frame and self.obj is not None:
            self.in_frame -= self.frame
            self.frame = self.script.randint(1, 40)
            name = self.script.choice(_WILD_ACTS if self.world.wild else _CALM_ACTS)
            number = self.script.randrange(1 << 14)
            getattr(self, name)(self.obj, number)

    def end(self, obj: Peer) -> None:
        """The client has closed, or there was an error: close once everything is written."""
        if self.dice.random() < 0.3:  # As a server that still wants to answer.
            obj.tcp_cork(not obj.corked)
        if self.world.wild and self.dice.random() < 0.5:
            obj.close("end")
        elif not self.ended:
            self.ended = True
            obj.watch_read(False)
            self._write_callable(obj, lambda: obj.close("done"))
        else:
            obj.watch_read(False)

    def _bytes(self, number: int) -> bytes:
        size = number % 97 if number % 5 else number % 3000
        return BYTES[number : number + size]

    def _write(self, obj: Peer, data: bytes | bytearray | memoryview) -> None:
        if not obj.closed:
            self.out += data
            obj.write(data)

    def _write_callable(self, obj: Peer, action: Callable[[], object]) -> None:
        if obj.closed:
            return
        before = len(self.out)

        def run() -> None:
            self.callables -= 1
            self.world.require(
                obj.closed or self.taken >= before,
                "a callable ran before what was queued before it",
            )
            action()

        self.callables += 1
        obj.write(run)

    def connect(self, address: Address) -> None:
        """Have the server connect to its client."""
        self.dial = Dial(self, address)
        self.dial.begin()

    # --- what it does at the end of a frame: the same at any time ---------------------------------

    def act_bytes(self, obj: Peer, number: int) -> None:
        self._write(obj, self._bytes(number))

    def act_bytearray(self, obj: Peer, number: int) -> None:
        self._write(obj, bytearray(self._bytes(number)))

    def act_view(self, obj: Peer, number: int) -> None:
        self._write(obj, memoryview(self._bytes(number)))

    def act_many(self, obj: Peer, number: int) -> None:
        for i in range(number % 6):
            self._write(obj, self._bytes(number >> i))

    def act_callable(self, obj: Peer, number: int) -> None:
        self._write(obj, self._bytes(number))
        self._write_callable(obj, lambda: obj.write(None))
        self._write(obj, self._bytes(number >> 1))

    def act_kick(self, obj: Peer, number: int) -> None:
        obj.write(None)

    def act_cork(self, obj: Peer, number: int) -> None:
        obj.tcp_cork(number % 2 == 1)

    def act_pause(self, obj: Peer, number: int) -> None:
        if not self.ended:
            obj.watch_read(False)
            self._read_again(obj, number % 9 / 1000)

    def _read_again(self, obj: Peer, seconds: float) -> None:
        """Read again after a pause; after another one if there is no memory for a new poller."""

        def read() -> None:
            try:
                obj.watch_read(not self.ended)
            except OSError as failure:
                self.world.tolerate(failure)
                self._read_again(obj, 0.001)

        TimerModel(self.world, obj.loop, seconds, read)

    def act_watch_write(self, obj: Peer, number: int) -> None:
        # Not stopped while something is queued: the package would obey, and not write the rest.
        if number % 2 or obj.write_buf:
            self.want_write = True
            obj.watch_write(True)
        else:
            self.want_write = False
            obj.watch_write(False)

    def act_timer(self, obj: Peer, number: int) -> None:
        timer = TimerModel(self.world, obj.loop, (number % 50 - 5) / 10_000, lambda: None)
        if number % 3 == 0:
            TimerModel(self.world, obj.loop, number % 70 / 10_000, timer.cancel)

    def act_writer(self, obj: Peer, number: int) -> None:
        fd = obj.fd
        assert fd is not None

        def writer(data: Block, count: int, offset: int) -> int:
            return self.world.kernel.write(fd, memoryview(data)[offset : offset + count])

        obj.set_writer_func(writer if number % 2 else None)

    def act_own_callback(self, obj: Peer, number: int) -> None:
        left = [number % 4]

        def callback(sockets: DescriptorMapping, others: OtherFdMapping) -> bool:
            self.world.require(not obj.closed, "a closed object's own callback was called")
            left[0] -= 1
            if left[0] < 0:
                obj.set_own_callback(None)
            return True

        obj.set_own_callback(callback)

    def act_steal(self, obj: Peer, number: int) -> None:
        if not self.world.wild and (obj.write_buf or obj.read_push_back or self.ended):
            return
        lost = obj.read_push_back
        stolen = obj.steal_socket()
        assert stolen is self.handle and self.handle is not None
        self.handle.loop = None
        self.obj = None
        if lost:
            # Pushed-back data is lost with the object.
            close_anyhow(self.handle)
            self.client.missed()
        else:
            self.wrap()

    def act_soon(self, obj: Peer, number: int) -> None:
        soon(self.world, obj.loop)
        if number % 3 == 0:
            soon(self.world, obj.loop, partial(soon, self.world, obj.loop))

    def act_raise(self, obj: Peer, number: int) -> None:
        self.boom = not self.world.closes_on_exception or self.world.wild

    # --- the same, for wild worlds only -----------------------------------------------------------

    def act_close(self, obj: Peer, number: int) -> None:
        if number % 3 == 0:
            obj.close("act")

    def act_close_other(self, obj: Peer, number: int) -> None:
        others = [c.obj for c in self.world.connections if c.obj]
        if number % 3 == 0 and others:
            others[number % len(others)].close("by another")

    def act_late_write(self, obj: Peer, number: int) -> None:
        TimerModel(
            self.world, obj.loop, number % 5 / 1000, lambda: self._write(obj, self._bytes(number))
        )

    def act_writing_callable(self, obj: Peer, number: int) -> None:
        self._write(obj, self._bytes(number))
        self._write_callable(obj, lambda: self._write(obj, self._bytes(number >> 1)))
        self._write(obj, self._bytes(number >> 2))

    def act_closing_callable(self, obj: Peer, number: int) -> None:
        if number % 3 == 0:
            self._write(obj, self._bytes(number))
            self._write_callable(obj, lambda: obj.close("callable"))

    def act_raising_callable(self, obj: Peer, number: int) -> None:
        def boom() -> None:
            self.callable_raised = True
            raise Boom

        self._write_callable(obj, boom)

    def act_run(self, obj: Peer, number: int) -> None:
        # A handler may run a loop, including its own.
        if number % 4 == 0:
            self.world.run_within(self.world.loops[number % len(self.world.loops)])

    def act_spawn(self, obj: Peer, number: int) -> None:
        self.world.spawn()

    def act_wake(self, obj: Peer, number: int) -> None:
        if self.world.wakes:
            try:
                wake(self.world, self.world.loops[number % len(self.world.loops)])
            except OSError as error:
                self.world.tolerate(error)

    def act_soon_more(self, obj: Peer, number: int) -> None:
        def boom() -> None:
            raise Boom

        def run() -> None:
            self.world.run_within(obj.loop)

        def write() -> None:
            self._write(obj, self._bytes(number))

        soon(self.world, obj.loop, (boom, run, write, obj.close)[number % 4])
        soon(self.world, obj.loop)


_CALM_ACTS: Final = (
    "act_bytes", "act_bytes", "act_bytes", "act_bytearray", "act_view", "act_many", "act_callable",
    "act_kick", "act_cork", "act_pause", "act_watch_write", "act_timer", "act_writer",
    "act_own_callback", "act_steal", "act_raise", "act_soon",
)  # fmt: skip
_WILD_ACTS: Final = (
    *_CALM_ACTS, "act_close", "act_close_other", "act_late_write", "act_writing_callable",
    "act_closing_callable", "act_raising_callable", "act_spawn", "act_run", "act_wake",
    "act_soon_more",
)  # fmt: skip


class Dial:
    """A connect in progress. Its outcome must be reported once, or not at all if the object is
    closed first."""

    def __init__(self, conn: Connection, address: Address) -> None:
        self.conn = conn
        self.world = conn.world
        self.address = address
        dice = conn.dice
        wild = self.world.wild
        self.loop = dice.choice(self.world.loops)
        self.timeout = dice.choice((None, None, 0.001, 0.01, 0.3)) if wild else None
        self.whim = dice.choice(_WHIMS) if wild and dice.random() < 0.3 else ""
        """What else the constructor does."""
        self.began = self.world.kernel.clock.now_ns
        self.file: StreamSocket | None = None
        self.pending = False
        self.failed = False
        self.settled_since: int | None = None

    def begin(self) -> None:
        """`Socket.connect`"""
        conn = self.conn
        self.began = self.world.kernel.clock.now_ns
        self.pending = True
        self.world.dials.append(self)
        try:
            Peer.connect(self.address, self.loop, conn, timeout=self.timeout)
        except (OSError, Boom) as error:
            if isinstance(error, OSError):
                self.world.tolerate(error)
            self.give_up()
            if (handle := conn.handle) is not None:
                self.world.require(handle.fileno() < 0, "a connect that raised has left its socket")
                handle.loop = None
                conn.obj = None
                # Its constructor may have closed it before it raised.
                if handle in self.world.to_close[self.loop]:
                    self.world.to_close[self.loop].remove(handle)
            return
        if conn.obj is not None and wild_whim(self):
            TimerModel(self.world, self.loop, conn.dice.randrange(50) / 10_000, self.disturb)

    def times_out(self, loop: Loop) -> bool:
        """True if it is in progress on this loop and has a timeout. False if it failed at once."""
        on = self.file is not None and not self.file.unconnected and self.conn.obj is not None
        return self.pending and self.timeout is not None and on and self.loop is loop

    def make(self, obj: Peer, handle: ServerHandle) -> None:
        """Called by the constructor once the object is registered."""
        conn = self.conn
        conn.handle = handle
        conn.obj = obj
        handle.loop = obj.loop
        assert isinstance(handle.file, StreamSocket)
        self.file = handle.file
        if conn.script.random() < 0.5:
            conn.act_bytes(obj, conn.script.randrange(1 << 14))
        obj.watch_read(True)
        if self.whim.startswith("write"):
            conn.act_late_write(obj, conn.dice.randrange(1 << 14))
        if "close" in self.whim:
            obj.close("by its constructor")
        if "raise" in self.whim:
            raise Boom

    def disturb(self) -> None:
        """Disturb the object while the connect is in progress."""
        obj = self.conn.obj
        if obj is None or not self.pending:
            return
        number = self.conn.dice.randrange(1 << 14)
        act = self.conn.dice.choice(
            ("act_bytes", "act_callable", "act_steal", "act_kick", "act_cork", "act_run")
        )
        if act == "act_steal":
            if self.file is None or self.file.unconnected:
                return  # It failed at once, which is not reported after a steal.
            self.pending = False
        getattr(self.conn, act)(obj, number)

    def give_up(self) -> None:
        """From now on nothing must be reported."""
        self.pending = False
        self.conn.client.missed()

    def told(self, error: OSError | None) -> None:
        """Called with the outcome."""
        world = self.world
        assert self.file is not None
        world.require(self.pending, "the outcome of a connect was told twice")
        self.pending = False
        now = world.kernel.clock.now_ns
        if error is None:
            world.require(self.file.outcome == 0, "told to be connected, and it is not")
            return
        self.failed = True
        self.conn.client.missed()
        number = error.errno
        if number in (self.file.outcome, self.file.failure):
            return
        world.require(number == ETIMEDOUT and self.timeout is not None, f"told {error!r}")
        assert self.timeout is not None
        late = now - self.began - self.timeout * 1e9
        world.require(late >= 0, "a connect timed out early")

    def check(self) -> None:
        """Called after a turn of its loop in which the object was not closed."""
        self.world.require(not self.failed, "a connect has failed, and its object is open")
        if not self.pending or self.file is None:
            return
        now = self.world.kernel.clock.now_ns
        # Another loop may run meanwhile.
        slack = 500 * MS if len(self.world.loops) == 1 else 3000 * MS
        if self.timeout is not None:
            late = now - self.began - self.timeout * 1e9
            self.world.require(late < slack, "a connect did not time out")
        if self.file.outcome is not None:
            self.settled_since = self.settled_since or now
            late = now - self.settled_since
            self.world.require(late < slack, "what came of a connect was not told")


def wild_whim(dial: Dial) -> bool:
    """True if something will disturb the connect while it is in progress."""
    return dial.world.wild and dial.conn.dice.random() < 0.5


_WHIMS: Final = ("write", "close", "raise", "raise at once", "close and raise")


class Peer(Socket[Handle]):
    """The server's object."""

    __slots__ = ("conn",)

    def __init__(self, handle: Handle, loop: Loop, conn: Connection) -> None:
        self.conn = conn
        if conn.dial is not None and conn.dial.whim == "raise at once":
            raise Boom
        super().__init__(handle, loop)
        if conn.dial is not None and conn.dial.file is None:
            assert isinstance(handle, ServerHandle)
            conn.dial.make(self, handle)

    def event_connect(self, error: OSError | None) -> None:
        conn = self.conn
        assert conn.dial is not None
        conn.world.entered(self, True)
        conn.dial.told(error)
        if error is None:
            conn.act_bytes(self, conn.script.randrange(1 << 14))
            conn.world.left(self)
            if conn.world.wild and conn.dice.random() < 0.1:
                raise Boom

    def event_read(self) -> None:
        world = self.conn.world
        world.entered(self)
        data = self.read(self.conn.dice.choice((1, 10, 100, 5000, 2_000_000)))
        if data:
            self.conn.feed(self, data)
        elif data is None and not self.closed:
            self.conn.end(self)
        world.left(self)
        if self.conn.boom:
            self.conn.boom = False
            raise Boom

    def event_write(self) -> None:
        self.conn.world.entered(self)
        self.conn.callable_raised = False
        self.write(None)
        self.conn.world.left(self)
        if self.conn.want_write and not self.closed and self.conn.dice.random() < 0.5:
            if not self.write_buf:
                self.conn.want_write = False
                self.watch_write(False)

    def event_err(self) -> None:
        self.conn.world.entered(self)
        self.not_too_early()
        self.close("err")

    def not_too_early(self) -> None:
        """The end must come after the data, as far as the kernel separates them: epoll reports both
        at once, and a loop inside a handler brings more data."""
        world = self.conn.world
        if world.backend == "kqueue" and not world.within and self.event_watch & POLLIN:
            world.require(not self.conn.unread, "the end was told before the data")

    def event_hup(self) -> None:
        self.conn.world.entered(self)
        self.conn.world.require(self.conn.hung_up, "a hang-up of another")
        self.not_too_early()
        # kqueue reports the end of the client's data as a hang-up. Only a wild client hangs up.
        if self.conn.world.wild:
            self.close("hup")

    def close(self, reason: str | None = None) -> None:
        """`Socket.close`, and tell the world."""
        if not self.closed:
            self.conn.world.will_close(self)
            if self.conn.dial is not None:
                self.conn.dial.give_up()
        super().close(reason)


class PipeUser(Socket[Handle]):
    """An object on one end of a pipe whose other end is closed, or will be. It turns its watch on
    and off until the end has been reported often enough."""

    __slots__ = ("dice", "ignored", "other", "turns", "world")

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.dice = dice = Random(f"pipe {world.seed} {number}")
        ends = list(world.kernel.pipe())
        for end in ends:
            end.setblocking(False)
        if dice.random() < 0.5:
            ends[1].send(bytes(dice.randint(1, 300)))
        dice.shuffle(ends)
        self.other = ends[1]
        if dice.random() < 0.4:
            self.other.close()
        else:
            world.kernel.clock.after(dice.randrange(20 * MS), self.other.close)
        try:
            super().__init__(ends[0], dice.choice(world.loops))
        except OSError:
            close_anyhow(ends[0])
            close_anyhow(self.other)
            raise
        self.ignored = 0
        """The number of timers since the end of the pipe was reported and ignored, from 1 on."""
        self.turns = 0
        """How often it has changed its watch since the other end was closed."""
        self.turn_over()

    @property
    def hung_up(self) -> bool:
        """True if the other end is closed."""
        return self.other.fileno() < 0

    @property
    def reads(self) -> bool:
        """True if this is the read end."""
        assert isinstance(self.sock, Handle) and isinstance(self.sock.file, PipeEnd)
        return not self.sock.file.writes

    def turn_over(self) -> None:
        """Change the watch now, and again soon."""
        if self.closed:
            return
        self.turns += self.hung_up
        # It gets the event in every other turn, and closes three times in ten.
        self.world.require(self.turns < 200, "a pipe has no end")
        if self.ignored:
            self.ignored += 1
            # Several waits in a row may be interrupted, or return a batch full of other events.
            self.world.require(self.ignored < 25, "the end of a pipe was told but once")
        else:
            self.watch_read(self.reads and self.dice.random() < 0.5)
            self.watch_write(self.dice.random() < 0.5)
        TimerModel(self.world, self.loop, self.dice.randrange(1, 50) / 10_000, self.turn_over)

    def event_read(self) -> None:
        self.world.in_handler(self.loop)
        self.read(self.dice.choice((1, 10, 1000)))

    def event_write(self) -> None:
        self.world.in_handler(self.loop)
        if not self.hung_up:
            self.watch_write(False)

    def event_hup(self) -> None:
        self.world.in_handler(self.loop)
        self.world.require(self.hung_up, "a hang-up of a pipe with both ends")
        if not self.ignored and self.event_watch & MASK == POLLOUT and self.dice.random() < 0.5:
            self.ignored = 1
            return
        self.ignored = 0
        self.watch_write(False)
        if self.world.backend == "kqueue" and self.reads and self.event_watch & POLLIN:
            assert isinstance(self.sock, Handle) and isinstance(self.sock.file, PipeEnd)
            self.world.require(not self.sock.file.buffer, "a pipe's end was told before the data")
        # epoll reports it again and again.
        if self.world.backend != "kqueue" or self.dice.random() < 0.3:
            self.close("hup")

    event_err = event_hup


class Door(Handle):
    """The handle of a listener, which counts how often in a row there was no room."""

    refusals = 0
    refused_at = 0

    def accept(self) -> tuple[Handle, Address]:
        """accept(2)"""
        now = self.kernel.clock.now_ns
        try:
            accepted = super().accept()
        except OSError as error:
            if error.errno in NO_ROOM:
                rested = now - self.refused_at > listener.PAUSE * 0.9e9
                self.refusals = 1 if rested else self.refusals + 1
                self.refused_at = now
            raise
        self.refusals = 0
        return accepted


class Acceptor(Listener):
    """A listener, which recognizes its clients by the open file of the other side."""

    __slots__ = ("handle", "rests_since", "unwatched", "world")

    def __init__(self, world: World, handle: Handle, loop: Loop) -> None:
        self.world = world
        self.handle = Door(world.kernel, handle.detach())
        self.rests_since: int | None = None
        self.unwatched = 0
        try:
            super().__init__(cast("PythonSocket", self.handle), self.take, loop)
        except OSError:
            self.handle.close()
            raise

    def take(self, connection: object, address: object) -> None:
        """Called with each connection."""
        world = self.world
        world.in_handler(self.loop)
        assert isinstance(connection, ServerHandle)
        world.require(not self.closed, "a closed listener took a connection")
        world.require(connection.file.nonblocking, "a connection that blocks was handed over")
        conn = world.to_accept.pop(connection.file, None)
        if conn is None:
            raise Broken("a connection was handed over twice")
        early, late = (conn.dice.random() < 0.1 if world.wild else False for _ in range(2))
        if early:
            raise Boom
        conn.open(connection)
        if late:
            raise Boom

    @property
    def queue(self) -> Container[OpenFile]:
        """The clients that have connected and have not been accepted."""
        assert isinstance(self.handle.file, KernelListener)
        return self.handle.file.waiting

    def check(self, closed: bool) -> None:
        """Called after a turn of its loop; `closed` is true if something was closed in it."""
        world = self.world
        refused, self.unwatched = self.unwatched, world.kernel.luck.dealt["epoll_ctl MOD ENOMEM"]
        # Its own watch may be refused too, and each descriptor that leaves without a close makes it
        # try again, several times in a row.
        world.require(self.handle.refusals < 40, "a listener without room does not rest")
        if closed:
            self.handle.refusals = 0
        if self.event_watch & POLLIN:
            self.rests_since = None
            return
        fed = closed and refused == self.unwatched
        world.require(not fed, "a listener does not begin again, though something was closed")
        now = world.kernel.clock.now_ns
        self.rests_since = self.rests_since or now
        most = listener.PAUSE * 1e9 + (LATE_BY_TICKS if len(world.loops) == 1 else 3000 * MS)
        world.require(now - self.rests_since < most, "a listener does not begin again")
