"""Random servers: programs of `Socket` objects on the simulated kernel, and what must hold of them.

One seed makes one world: a kernel, one or two loops, listeners, pipes, and some connections, each
with a client that sends, reads and goes, and a server object that takes what it gets apart into
frames and does something at the end of each. What that is comes from the seed and the number of the
connection alone, so that the first connections of a world do the same however many there are.

There are two kinds of worlds. In a calm one the kernel only disturbs, and each connection's bytes
are the same on every backend. In a wild one calls fail, connections are reset, and objects raise,
close each other and write when it suits them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from errno import EIO, EMFILE, ENFILE, ENOBUFS, ENOMEM, ENOSPC
from functools import partial
from random import Random
from typing import Final, Literal, NamedTuple, TypeVar

from danga_raw._epoll import Epoll as EpollPoller
from danga_raw._poll import Poll as PollPoller
from danga_raw.loop import Loop
from danga_raw.socket import Socket
from danga_raw.timers import Timer
from danga_raw.types import Block, DescriptorMapping, OtherFdMapping, PostLoopCallback, Watched
from tests.simkernel.epoll import as_epoll
from tests.simkernel.files import POLLIN, POLLOUT
from tests.simkernel.handles import Handle
from tests.simkernel.kernel import SimKernel
from tests.simkernel.kqueue import as_kqueue
from tests.simkernel.sockets import SHUT_WR, StreamSocket

Backend = Literal["epoll", "poll", "kqueue-freebsd", "kqueue-netbsd"]
BACKENDS: Final[tuple[Backend, ...]] = ("epoll", "poll", "kqueue-freebsd", "kqueue-netbsd")
_PLATFORMS: Final = {
    "epoll": ("linux",),
    "poll": ("linux",),
    "kqueue-freebsd": ("freebsd", "darwin", "dragonfly", "openbsd", "libkqueue"),
    "kqueue-netbsd": ("netbsd", "netbsd9"),
}
WORLD_SIZE: Final = 16
"""How many connections a world has."""

T = TypeVar("T")

_MS: Final = 1_000_000
_MASK: Final = POLLIN | POLLOUT
_PATIENCE: Final = 2_000 * _MS
"""How long a client waits for a sign of life. Nothing takes longer, unless it is lost."""
_LATE: Final = 3 * _MS
_BYTES: Final = Random("bytes").randbytes(1 << 16)
_NO_ROOM: Final = (EMFILE, ENFILE, ENOBUFS, ENOMEM, ENOSPC)


class Broken(AssertionError):
    """What must always hold does not."""


class Boom(Exception):
    """What a handler raises for the sake of it."""


class Report(NamedTuple):
    """What a world came to."""

    received: list[bytes]
    """What each client got, in order of the connections."""
    steps: int
    faults: int
    calm: bool


def close_anyhow(handle: Handle) -> None:
    """close(2), which frees the descriptor even where it fails."""
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
        """What the loop calls."""
        now = self.world.kernel.clock_gettime(1)
        late = self.world.kernel.clock.now_ns - self.deadline * 1e9
        self.world.require(not self.fired, "a timer fired twice")
        self.world.require(not self.cancelled, "a cancelled timer fired")
        self.world.require(self.deadline <= now, "a timer fired early")
        self.world.require(len(self.world.loops) > 1 or late < _LATE, "a timer fired late")
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
    """The server's side of a connection; sees when the loop closes it."""

    world: World
    loop: Loop | None = None

    def close(self) -> None:
        """close(2)"""
        if self.loop is not None:
            self.world.closing(self.loop, self)
        super().close()
        if number := self.kernel.luck.failure("close", EIO):
            raise OSError(number, "injected")


class Connection:
    """What belongs to one connection, whatever objects are wrapped around it in turn."""

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
        """How many callables wait in the queue."""
        self.want_write = False
        self.boom = False
        self.callable_raised = False
        """From then on it may be watched for what was queued behind, till the next event."""
        self.ended = False

    # --- the server's side ------------------------------------------------------------------------

    def open(self, handle: Handle) -> None:
        """The server's side is there."""
        handle.setblocking(False)
        self.handle = ServerHandle(self.world.kernel, handle.detach())
        self.handle.world = self.world
        self.wrap()

    @property
    def taken(self) -> int:
        """How many bytes the kernel has accepted."""
        assert self.handle is not None and isinstance(self.handle.file, StreamSocket)
        return self.handle.file.taken

    @property
    def hung_up(self) -> bool:
        """Whether the client has shut its side at least."""
        assert self.handle is not None and isinstance(self.handle.file, StreamSocket)
        return self.handle.file.shut_read

    def wrap(self) -> None:
        """A new object for the handle, on any loop."""
        assert self.handle is not None
        del self.out[self.taken :]
        self.callables = 0
        self.want_write = False
        loop = self.dice.choice(self.world.loops)
        try:
            self.obj = Peer(self.handle, loop, self)
        except OSError as error:
            self.world.tolerate(error)
            self.obj = None
            self.handle.loop = None
            close_anyhow(self.handle)
            return
        self.handle.loop = loop
        self.obj.watch_read(True)

    def feed(self, obj: Peer, data: bytes) -> None:
        """The object has read `data`: push some of it back, and act at the end of each frame."""
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
        """The client has closed, or there was an error: go once everything is out."""
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
        return _BYTES[number : number + size]

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

    # --- what it does at the end of a frame: the same whenever it happens -------------------------

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
            TimerModel(
                self.world, obj.loop, number % 9 / 1000, lambda: obj.watch_read(not self.ended)
            )

    def act_watch_write(self, obj: Peer, number: int) -> None:
        # Whoever switches the watch off while something is queued asked for what happens then.
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
            # What was pushed back is gone with the object.
            close_anyhow(self.handle)
        else:
            self.wrap()

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
        # A handler may run a loop, its own among them.
        if number % 4 == 0:
            self.world.run_within(self.world.loops[number % len(self.world.loops)])

    def act_spawn(self, obj: Peer, number: int) -> None:
        self.world.spawn()


_CALM_ACTS: Final = (
    "act_bytes", "act_bytes", "act_bytes", "act_bytearray", "act_view", "act_many", "act_callable",
    "act_kick", "act_cork", "act_pause", "act_watch_write", "act_timer", "act_writer",
    "act_own_callback", "act_steal", "act_raise",
)  # fmt: skip
_WILD_ACTS: Final = (
    *_CALM_ACTS, "act_close", "act_close_other", "act_late_write", "act_writing_callable",
    "act_closing_callable", "act_raising_callable", "act_spawn", "act_run",
)  # fmt: skip


class Peer(Socket):
    """The server's object."""

    __slots__ = ("conn",)

    def __init__(self, handle: Handle, loop: Loop, conn: Connection) -> None:
        super().__init__(handle, loop)
        self.conn = conn

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
        self.close("err")

    def event_hup(self) -> None:
        self.conn.world.entered(self)
        self.conn.world.require(self.conn.hung_up, "a hang-up of another")
        # kqueue calls the end of what the client sends a hang-up. Only a wild client hangs up.
        if self.conn.world.wild:
            self.close("hup")

    def close(self, reason: str | None = None) -> None:
        """As `Socket.close`, and noted by the world."""
        if not self.closed:
            self.conn.world.will_close(self)
        super().close(reason)


class Acceptor(Socket):
    """A listener; the connections that wait for it are known by their order."""

    __slots__ = ("waiting", "world")

    def __init__(self, world: World, handle: Handle, loop: Loop) -> None:
        super().__init__(handle, loop)
        self.world = world
        self.waiting: list[Connection] = []
        self.watch_read(True)

    def event_read(self) -> None:
        self.world.require(not self.closed, "a closed listener got an event")
        assert isinstance(self.sock, Handle)
        while True:
            try:
                handle, _ = self.sock.accept()
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno == EMFILE:
                    self.watch_read(False)
                    TimerModel(self.world, self.loop, 0.001, lambda: self.watch_read(True))
                    return
                # That one connection is gone.
                self.waiting.pop(0)
                continue
            self.waiting.pop(0).open(handle)

    event_err = event_hup = event_read


class Client:
    """The other end of a connection. It acts whenever the loop waits."""

    def __init__(self, conn: Connection) -> None:
        self.conn = conn
        script = conn.script
        start = script.randrange(1 << 14)
        self.sent = _BYTES[start : start + script.randint(0, 600)]
        """All that it is going to send."""
        self.done = 0
        self.received = bytearray()
        self.handle: Handle | None = None
        self.shut = False
        self.over = False
        self.deadline = 0

    def connect(self) -> None:
        """Open the connection: by a listener, or as a pair."""
        world = self.conn.world
        kernel = world.kernel
        self.lives()
        try:
            kind = self.conn.script.randrange(3)
            if kind == 0:
                acceptor = self.conn.dice.choice(world.acceptors)
                assert isinstance(acceptor.sock, Handle)
                self.handle = kernel.connect(acceptor.sock)
                acceptor.waiting.append(self.conn)
            else:
                self.handle, far = kernel.socketpair(tcp=kind == 1)
                self.conn.open(far)
        except OSError as error:
            world.tolerate(error)
            self.over = self.handle is None
            return
        self.handle.setblocking(False)
        self.next_tick()

    def lives(self) -> None:
        """Something has come or gone."""
        self.deadline = self.conn.world.kernel.clock.now_ns + _PATIENCE

    def next_tick(self) -> None:
        self.conn.world.kernel.clock.after(self.conn.dice.randrange(50_000, 3 * _MS), self.tick)

    def tick(self) -> None:
        """Send a little, read a little, and sometimes go."""
        world = self.conn.world
        assert self.handle is not None
        dice = self.conn.dice
        if world.wild and dice.random() < 0.02:
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
        self.write_end.send(_BYTES[self.sent : self.sent + count])
        self.sent += count
        self.left -= count
        self.world.kernel.clock.after(self.dice.randrange(_MS), self.tick)

    def event(self, state: int) -> None:
        """What the loop calls."""
        self.world.require(self.watched, "an other fd that was taken off got an event")
        self.world.in_handler(self.loop)
        try:
            data = self.read_end.recv(self.dice.randint(1, 60))
        except BlockingIOError:
            return
        self.world.require(
            _BYTES[self.received : self.received + len(data)] == data, "a pipe's bytes are mixed up"
        )
        self.received += len(data)
        if not data:
            self.world.require(self.received == self.sent, "a pipe's bytes are lost")
            self.watched = False
            fd = self.read_end.fileno()
            self.loop.other_fds = {k: v for k, v in self.loop.other_fds.items() if k != fd}
            close_anyhow(self.read_end)


class Warnings(logging.Handler):
    """Sees what the package warns of, which is nothing in a calm world."""

    def __init__(self, world: World) -> None:
        super().__init__(logging.WARNING)
        self.world = world

    def emit(self, record: logging.LogRecord) -> None:
        """Fail if the world is calm."""
        self.world.require(self.world.wild, f"warned: {record.getMessage()}")


class World:
    """One seed's world."""

    def __init__(self, seed: int, backend: Backend, connections: int = WORLD_SIZE) -> None:
        self.seed = seed
        dice = Random(f"world {seed}")
        self.wild = dice.random() < 0.7
        self.closes_on_exception = self.wild and dice.random() < 0.5
        noise = dice.choice((0.02, 0.1, 0.3))
        harm = dice.choice((0.0, 0.005, 0.02)) if self.wild else 0.0
        limit = dice.choice((15, 30, 1000)) if self.wild else 1000
        self.kernel = SimKernel(
            seed,
            platform=Random(f"platform {seed}").choice(_PLATFORMS[backend]),
            noise=noise,
            harm=harm,
            limit=limit,
            first_fd=dice.choice((0, 3)),
        )
        self.kernel.epipe_at_registration = True
        self.backend = backend.partition("-")[0]
        self.loops_wanted = dice.choice((1, 1, 2))
        # One loop has to let go for the other to run.
        self.turns = dice.choice((1, 5, 1000 if self.loops_wanted == 1 else 20))
        self.taps_wanted = dice.randrange(3)
        self.wanted = connections
        self.loops: list[Loop] = []
        self.acceptors: list[Acceptor] = []
        self.connections: list[Connection] = []
        self.taps: list[Tap] = []
        self.timers: set[TimerModel] = set()
        self.timers_made = 0
        self.last_timer: dict[Loop, tuple[float, int]] = {}
        self.to_close: dict[Loop, list[Handle]] = {}
        self.closes_began: set[Loop] = set()
        self.turns_left = 0

    def require(self, holds: bool, what: str) -> None:
        """Fail unless `holds`."""
        if not holds:
            raise Broken(what)

    def tolerate(self, error: OSError) -> None:
        """An injected fault, which only a wild world has."""
        self.require(self.wild and error.errno in _NO_ROOM, f"unexpected: {error!r}")

    # --- a run ------------------------------------------------------------------------------------

    def run(self) -> Report:
        """Let everything happen. Raises `Broken` or `SimError`."""
        with self.kernel.installed(), self._warnings_seen():
            self._set_up()
            while not self._finished():
                for loop in self.loops:
                    self.turns_left = self.turns
                    try:
                        loop.run()
                    except Boom:
                        self._turn(loop)
                    except OSError as error:
                        self.tolerate(error)
                        self._turn(loop)
            self._tear_down()
        faults = sum(self.kernel.luck.dealt.values())
        received = [bytes(conn.client.received) for conn in self.connections]
        return Report(received, self.kernel.steps, faults, not self.wild)

    def run_within(self, loop: Loop) -> None:
        """One turn of a loop, from within a handler of one."""
        before, self.turns_left = self.turns_left, 1
        try:
            loop.run()
        except Boom:
            self._turn(loop)
        except OSError as error:
            self.tolerate(error)
            self._turn(loop)
        finally:
            self.turns_left = before

    @contextmanager
    def _warnings_seen(self) -> Iterator[None]:
        log = logging.getLogger("danga_raw")
        handler = Warnings(self)
        log.addHandler(handler)
        try:
            yield
        finally:
            log.removeHandler(handler)

    def _set_up(self) -> None:
        for _ in range(self.loops_wanted):
            loop = Loop(self.backend)
            loop.set_loop_timeout(20 if self.loops_wanted == 1 else 2)
            loop.set_post_loop_callback(self._turn_of(loop))
            if self.closes_on_exception:
                loop.on_exception = self._on_exception
            self.to_close[loop] = []
            self.loops.append(loop)
            self._insist(loop.poller)
            handle = self.kernel.listener()
            handle.setblocking(False)
            self.acceptors.append(self._insist(partial(Acceptor, self, handle, loop)))
        for number in range(self.taps_wanted):
            self.taps.append(self._insist(partial(Tap, self, number)))
        for _ in range(self.wanted):
            self.spawn()

    def _insist(self, action: Callable[[], T]) -> T:
        for _ in range(100):
            try:
                return action()
            except OSError as error:
                self.tolerate(error)
        raise Broken("a call failed a hundred times")

    def spawn(self) -> None:
        """One more connection, soon."""
        if len(self.connections) < self.wanted + 4:
            conn = Connection(self, len(self.connections))
            self.connections.append(conn)
            self.kernel.clock.after(conn.dice.randrange(20 * _MS), conn.client.connect)

    def _finished(self) -> bool:
        return (
            all(conn.client.over and not conn.obj for conn in self.connections)
            and not self.timers
            and all(not tap.watched for tap in self.taps)
        )

    def _turn_of(self, loop: Loop) -> PostLoopCallback:
        return lambda sockets, others: self._turn(loop)

    def _turn(self, loop: Loop) -> bool:
        self.closes_began.discard(loop)
        self.last_timer.pop(loop, None)
        self.check(loop)
        self.turns_left -= 1
        return self.turns_left > 0 and not self._finished()

    def _tear_down(self) -> None:
        for acceptor in self.acceptors:
            acceptor.close()
        for loop in self.loops:
            try:
                loop.close()
            except OSError as error:
                self.require(self.wild and error.errno == EIO, f"unexpected: {error!r}")
        for tap in self.taps:
            tap.write_end.close()
        self.require(not self.kernel.table.files, f"left open: {self.kernel.table.files}")
        if not self.wild:
            for conn in self.connections:
                self.require(
                    conn.client.received == conn.out, f"connection {conn.number} lost its end"
                )
                self.require(
                    conn.consumed == len(conn.client.sent),
                    f"connection {conn.number} read {conn.consumed} bytes of those sent",
                )

    def _on_exception(self, obj: Watched | None, error: Exception) -> None:
        if not isinstance(error, (Boom, OSError)):
            raise error

    # --- what the objects tell --------------------------------------------------------------------

    def in_handler(self, loop: Loop) -> None:
        """A handler begins."""
        if loop in self.closes_began:
            raise Broken("a handler ran after the closes of its batch")

    def entered(self, obj: Peer) -> None:
        """A handler of `obj` begins."""
        if obj.closed:
            raise Broken("a handler ran on a closed object")
        if obj.conn.obj is not obj:
            raise Broken("a handler ran on an object that was replaced")
        self.in_handler(obj.loop)

    def left(self, obj: Peer) -> None:
        """A handler of `obj` is done."""
        self.check_object(obj)

    def will_close(self, obj: Peer) -> None:
        """`obj` is being closed."""
        assert obj.conn.handle is not None
        self.to_close[obj.loop].append(obj.conn.handle)
        obj.conn.obj = None

    def closing(self, loop: Loop, handle: Handle) -> None:
        """The loop calls close(2) for `handle`."""
        self.closes_began.add(loop)
        self.require(bool(self.to_close[loop]), "a handle was closed that nobody had closed")
        self.require(self.to_close[loop].pop(0) is handle, "handles were closed out of order")

    # --- what must hold ---------------------------------------------------------------------------

    def check_object(self, obj: Peer) -> None:
        """What must hold of an object whenever none of its methods is running."""
        conn = obj.conn
        if obj.closed:
            if obj.write_buf or obj.read_push_back or obj.write_buf_size:
                raise Broken("a closed object has a queue")
            if obj.fd is not None or obj.sock is not None:
                raise Broken("a closed object has a descriptor")
            return
        queued = len(conn.out) - conn.taken + conn.callables
        if obj.write_buf_size != queued:
            raise Broken(f"write_buf_size is {obj.write_buf_size}, and {queued} are queued")
        if not obj.event_watch & POLLOUT:
            if obj.write_buf:
                raise Broken("an object with a queue isn't watched")
        elif not obj.write_buf and not conn.want_write and not conn.callable_raised:
            raise Broken("an object is watched for writing, and nobody asked for it")

    def check(self, loop: Loop) -> None:
        """What must hold after each turn."""
        asked = {}
        for conn in self.connections:
            obj = conn.obj
            if obj is not None and obj.loop is loop:
                self.check_object(obj)
                assert obj.fd is not None
                asked[obj.fd] = obj.event_watch & _MASK
        for acceptor in self.acceptors:
            if acceptor.loop is loop:
                assert acceptor.fd is not None
                asked[acceptor.fd] = acceptor.event_watch & _MASK
        mapped = loop.sockets.keys()
        if mapped != asked.keys():
            leaving = {entry.fd for entry in loop.leaving}
            if mapped - leaving != asked.keys() - leaving:
                raise Broken(f"the map has {sorted(mapped)}, and {sorted(asked)} are open")
        if not loop.pushed_back.keys() <= asked.keys():
            raise Broken("pushed-back data outlives its object")
        if not loop.own_callbacks.keys() <= asked.keys():
            raise Broken("a callback outlives its object")
        if len(self.to_close[loop]) != len(loop.leaving):
            raise Broken("the closes that wait are not those asked for")
        for tap in self.taps:
            if tap.watched and tap.loop is loop:
                asked[tap.read_end.fileno()] = POLLIN
        watched = self.watched(loop)
        if watched != asked:
            raise Broken(f"the kernel watches {watched}, and asked for is {asked}")
        heaped = sum(1 for entry in loop._timers.heap if entry[2].callback is not None)
        asked_for = sum(1 for timer in self.timers if timer.loop is loop)
        if heaped != asked_for:
            raise Broken(f"{heaped} timers in the heap, {asked_for} asked for")

    def watched(self, loop: Loop) -> dict[int, int]:
        """What the kernel watches for `loop`."""
        poller = loop.poller()
        if isinstance(poller, PollPoller):
            return {fd: poller._table[slot].events & _MASK for fd, slot in poller._slot.items()}
        file = self.kernel.table.files[poller.fileno()]
        if isinstance(poller, EpollPoller):
            entries = as_epoll(file).entries
            return {fd: entry.events & _MASK for (fd, _), entry in entries.items()}
        found: dict[int, int] = {}
        for (fd, _), note in as_kqueue(file).notes.items():
            bit = (POLLOUT if note.write else POLLIN) if note.enabled else 0
            found[fd] = found.get(fd, 0) | bit
        return found
