"""Random worlds: programs of `Socket` objects on the simulated kernel, and their invariants.

One seed makes one world: a kernel, one or two loops, listeners, pipes, and some connections, each
with a client that sends, reads and leaves, and a server object.

There are two kinds of world. In a calm one the kernel only disturbs, and each connection's bytes
are the same on every backend. In a wild one calls fail, connections are reset, and objects raise,
close each other and write at random.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from errno import EIO, EMFILE, ENFILE, ENOBUFS, ENOMEM, ENOSPC
from functools import partial
from random import Random
from typing import Final, Literal, NamedTuple, TypeVar

from danga_raw import _epoll, _kqueue, listener
from danga_raw._epoll import Epoll as EpollPoller
from danga_raw._poll import Poll as PollPoller
from danga_raw._registry import LOOPS_OWN
from danga_raw.loop import Loop
from danga_raw.types import AnySocket, PostLoopCallback
from tests.simkernel.behind import Owner
from tests.simkernel.clients import Tap
from tests.simkernel.epoll import as_epoll
from tests.simkernel.files import POLLIN, POLLOUT, OpenFile
from tests.simkernel.handles import Handle
from tests.simkernel.kernel import SimKernel
from tests.simkernel.kqueue import as_kqueue
from tests.simkernel.rules import MASK, MS, Boom, Broken, ServerHandle, TimerModel
from tests.simkernel.servers import Acceptor, Connection, Dial, Peer, PipeUser
from tests.simkernel.sockets import StreamSocket
from tests.simkernel.waking import SIGNALS, Listening, Outsider, Soon, unread, wake
from tests.watched import by_poll

Backend = Literal["epoll", "poll", "kqueue-freebsd", "kqueue-netbsd"]
BACKENDS: Final[tuple[Backend, ...]] = ("epoll", "poll", "kqueue-freebsd", "kqueue-netbsd")
PLATFORMS: Final = {
    "epoll": ("linux",),
    "poll": ("linux",),
    "kqueue-freebsd": ("freebsd", "darwin", "dragonfly", "openbsd", "libkqueue"),
    "kqueue-netbsd": ("netbsd", "netbsd9"),
}
WORLD_SIZE: Final = 16
"""How many connections a world has."""
LISTENERS_PAUSE: Final = 0.02
"""Half a second would be most of a world's time."""
MOST_IN_VAIN: Final = 50
MOST_TURNS: Final = 50_000
"""A world takes some hundred turns, or some thousand if the kernel waits in short ticks."""
_NO_ROOM: Final = (EMFILE, ENFILE, ENOBUFS, ENOMEM, ENOSPC)

T = TypeVar("T")


class Report(NamedTuple):
    """The result of a world."""

    received: list[bytes]
    """What each client received, in the order of the connections."""
    steps: int
    faults: int
    calm: bool


class Warnings(logging.Handler):
    """Sees the package's warnings. In a calm world there must be none."""

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
            platform=Random(f"platform {seed}").choice(PLATFORMS[backend]),
            noise=noise,
            harm=harm,
            limit=limit,
            first_fd=dice.choice((0, 3)),
        )
        self.kernel.epipe_at_registration = True
        self.backend = backend.partition("-")[0]
        self.loops_wanted = dice.choice((1, 1, 2))
        # One loop must return for the other to run.
        self.turns_of_run = dice.choice((1, 5, 1000 if self.loops_wanted == 1 else 20))
        self.taps_wanted = dice.randrange(3)
        self.pipes_wanted = dice.randrange(4)
        self.room = dice.choice((1000, 1000, 1000, 5, 2))
        """The most events that a wait returns: with 1,000 no world ever fills a batch."""
        self.wakes = dice.random() < 0.6
        """True if the loops are woken from outside, and so have a waker."""
        self.outsiders_wanted = dice.randrange(4)
        self.signals_wanted = dice.choice((0, 0, 1, 2))
        self.accepted_at_once = dice.choice((64, 64, 2, 1))
        self.owners_wanted = dice.choice((0, 0, 0, 0, 1, 3)) if self.wild else 0
        # The package doesn't know of such a close, uses the descriptor, and gets EBADF.
        self.kernel.strict = not self.owners_wanted
        if self.wakes:
            self.kernel.table.limit += 2 * self.loops_wanted
            self.kernel.signals.chance = 0.01 if self.signals_wanted else 0.0
        self.kernel.signals.about_to = self._signal_comes
        self.kernel.handle = self.server_handle
        self.wanted = connections
        self.loops: list[Loop] = []
        self.acceptors: list[Acceptor] = []
        self.connections: list[Connection] = []
        self.taps: list[Tap] = []
        self.pipes: list[PipeUser] = []
        self.owners: list[Owner] = []
        self.handled = False
        """True if a handler ran in this turn."""
        self.vain: Counter[Loop] = Counter()
        """How many waits in a row have found something but run no handler."""
        self.within = 0
        """How many loops run inside handlers."""
        self.timers: set[TimerModel] = set()
        self.timers_made = 0
        self.last_timer: dict[Loop, tuple[float, int]] = {}
        self.to_close: dict[Loop, list[Handle]] = {}
        self.closes_began: set[Loop] = set()
        self.soon: dict[Loop, list[Soon]] = {}
        """The callbacks given to `call_soon` that have not run, in order."""
        self.dials: list[Dial] = []
        """The connects in progress."""
        self.in_callback = False
        self.ran_within = False
        """True if a handler ran a loop in this turn, which then took over the pending callbacks."""
        self.turns = 0
        self.errands: list[Callable[[], object]] = []
        """Actions for after the next turn."""
        self.listening: list[Listening] = []
        self.to_accept: dict[OpenFile, Connection] = {}
        """Clients that have connected to a listener and have not been handed over yet."""
        self.turns_left = 0

    def require(self, holds: bool, what: str) -> None:
        """Fail unless `holds`."""
        if not holds:
            raise Broken(what)

    def tolerate(self, error: OSError) -> None:
        """Accept an injected fault, which only a wild world has."""
        self.require(self.wild and error.errno in _NO_ROOM, f"unexpected: {error!r}")

    def server_handle(self, kernel: SimKernel, fd: int) -> ServerHandle:
        """A handle that tells this world when it is closed."""
        handle = ServerHandle(kernel, fd)
        handle.world = self
        return handle

    @property
    def wakes_failed(self) -> int:
        """How many wake-ups have failed for lack of memory."""
        return self.kernel.luck.dealt["write to a pipe ENOMEM"]

    def _signal_comes(self, number: int) -> None:
        for each in self.listening:
            if each.number == number:
                Soon(self, each.loop, each.come_to)

    # --- a run ------------------------------------------------------------------------------------

    def run(self) -> Report:
        """Run the world. Raises `Broken` or `SimError`."""
        with self.kernel.installed(), self._warnings_seen(), self._little_room():
            self._set_up()
            while not self._finished():
                for loop in self.loops:
                    self.turns_left = self.turns_of_run
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
        """Run one turn of a loop, from inside a handler."""
        before, self.turns_left = self.turns_left, 1
        in_callback, self.in_callback = self.in_callback, False
        self.within += 1
        # Handlers may have added timers that are due before those that fired in this turn.
        self.last_timer.pop(loop, None)
        try:
            loop.run()
        except Boom:
            self._turn(loop)
        except OSError as error:
            self.tolerate(error)
            self._turn(loop)
        finally:
            self.turns_left = before
            self.in_callback = in_callback
            self.within -= 1
            self.ran_within = True

    @contextmanager
    def _warnings_seen(self) -> Iterator[None]:
        log = logging.getLogger("danga_raw")
        handler = Warnings(self)
        log.addHandler(handler)
        try:
            yield
        finally:
            log.removeHandler(handler)

    @contextmanager
    def _little_room(self) -> Iterator[None]:
        before = _kqueue.MAX_EVENTS, _epoll.MAX_EVENTS, listener.AT_ONCE, listener.PAUSE
        try:
            vars(_kqueue)["MAX_EVENTS"] = vars(_epoll)["MAX_EVENTS"] = self.room
            vars(listener)["AT_ONCE"] = self.accepted_at_once
            vars(listener)["PAUSE"] = LISTENERS_PAUSE
            yield
        finally:
            vars(_kqueue)["MAX_EVENTS"], vars(_epoll)["MAX_EVENTS"] = before[:2]
            vars(listener)["AT_ONCE"], vars(listener)["PAUSE"] = before[2:]

    def _set_up(self) -> None:
        for _ in range(self.loops_wanted):
            loop = Loop(self.backend)
            loop.set_loop_timeout(20 if self.loops_wanted == 1 else 2)
            loop.set_post_loop_callback(self._turn_of(loop))
            if self.closes_on_exception:
                loop.on_exception = self._on_exception
            self.to_close[loop] = []
            self.soon[loop] = []
            self.loops.append(loop)
            self._insist(loop._registry.open)
            self.acceptors.append(
                self._insist(lambda: Acceptor(self, self.kernel.listener(), loop))
            )
            if self.wakes:
                # Before the first wait: on poll, a waker added later by a thread can't end it.
                self._insist(partial(wake, self, loop))
        if self.wakes:
            for number in range(self.outsiders_wanted):
                Outsider(self, number)
            for loop, signal in zip(self.loops * 2, SIGNALS[: self.signals_wanted]):
                Listening(self, loop, signal)
        for number in range(self.taps_wanted):
            self.taps.append(self._insist(partial(Tap, self, number)))
        for number in range(self.pipes_wanted):
            try:
                self.pipes.append(PipeUser(self, number))
            except OSError as error:
                self.tolerate(error)
        self.owners += (Owner(self, number) for number in range(self.owners_wanted))
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
        """Add a connection, soon."""
        if len(self.connections) < self.wanted + 4:
            conn = Connection(self, len(self.connections))
            self.connections.append(conn)
            self.kernel.clock.after(conn.dice.randrange(20 * MS), conn.client.connect)

    def _finished(self) -> bool:
        return (
            all(conn.client.over and not conn.obj for conn in self.connections)
            and not self.timers
            and not any(self.soon.values())
            and not self.errands
            and all(owner.over for owner in self.owners)
            and all(not tap.watched for tap in self.taps)
            and all(pipe.closed and pipe.hung_up for pipe in self.pipes)
        )

    def _turn_of(self, loop: Loop) -> PostLoopCallback:
        return lambda sockets, others: self._turn(loop)

    def _turn(self, loop: Loop) -> bool:
        self.turns += 1
        self.require(self.turns < MOST_TURNS, "the world has no end")
        in_vain = self.kernel.found and not self.handled
        self.vain[loop] = self.vain[loop] + 1 if in_vain else 0
        self.require(self.vain[loop] < MOST_IN_VAIN, "waits find what nothing comes of")
        self.handled = False
        self.ran_within = False
        closed = loop in self.closes_began
        self.closes_began.discard(loop)
        for acceptor in self.acceptors:
            if acceptor.loop is loop:
                acceptor.check(closed)
        self.last_timer.pop(loop, None)
        self.check(loop)
        while self.errands:
            self.errands.pop()()
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
        signals = self.kernel.signals
        self.require(not signals.handlers, f"handled still: {signals.handlers}")
        self.require(signals.wakeup_fd == -1, f"signals write to {signals.wakeup_fd} still")
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

    def _on_exception(self, obj: AnySocket | None, error: Exception) -> None:
        if not isinstance(error, (Boom, OSError)):
            raise error

    # --- what the objects report ------------------------------------------------------------------

    def in_handler(self, loop: Loop) -> None:
        """Called when a handler begins."""
        self.handled = True
        if loop in self.closes_began:
            raise Broken("a handler ran after the closes of its batch")

    def entered(self, obj: Peer, outcome: bool = False) -> None:
        """Called when a handler of `obj` begins; `outcome` is true if it reports a connect."""
        if not outcome and obj.conn.dial is not None and obj.conn.dial.pending:
            raise Broken("an event before the outcome of a connect")
        if obj.closed:
            raise Broken("a handler ran on a closed object")
        if obj.conn.obj is not obj:
            raise Broken("a handler ran on an object that was replaced")
        self.in_handler(obj.loop)

    def left(self, obj: Peer) -> None:
        """Called when a handler of `obj` ends."""
        self.check_object(obj)

    def will_close(self, obj: Peer) -> None:
        """Called when `obj` is being closed."""
        assert obj.conn.handle is not None
        self.to_close[obj.loop].append(obj.conn.handle)
        obj.conn.obj = None

    def closing(self, loop: Loop, handle: Handle) -> None:
        """Called when the loop closes `handle`."""
        self.closes_began.add(loop)
        self.require(bool(self.to_close[loop]), "a handle was closed that nobody had closed")
        self.require(self.to_close[loop].pop(0) is handle, "handles were closed out of order")

    # --- what must hold ---------------------------------------------------------------------------

    def check_object(self, obj: Peer) -> None:
        """The invariants of an object while none of its methods is running."""
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
        if conn.dial is not None and conn.dial.pending:
            return  # Unless the connect failed at once, it is watched for another reason.
        if not obj.event_watch & POLLOUT:
            if obj.write_buf:
                raise Broken("an object with a queue isn't watched")
        elif not obj.write_buf and not conn.want_write and not conn.callable_raised:
            raise Broken("an object is watched for writing, and nobody asked for it")

    def check(self, loop: Loop) -> None:
        """The invariants after each turn."""
        asked = {}
        for conn in self.connections:
            obj = conn.obj
            if obj is not None and obj.loop is loop:
                self.check_object(obj)
                assert obj.fd is not None
                asked[obj.fd] = obj.event_watch & MASK
                if conn.dial is not None:
                    conn.dial.check()
        for file, conn in list(self.to_accept.items()):
            assert isinstance(file, StreamSocket)
            if not file.descriptors and file.dead:
                del self.to_accept[file]
            elif not any(file in each.queue for each in self.acceptors):
                raise Broken(f"connection {conn.number} was accepted and lost")
        for acceptor in self.acceptors:
            if acceptor.loop is loop:
                assert acceptor.fd is not None
                asked[acceptor.fd] = acceptor.event_watch & MASK
        shadows = set()
        """Numbers that their owner has closed, which the loop can't know."""
        for owner in self.owners:
            for heard in owner.objects:
                if heard.loop is loop and heard.fd is not None:
                    heard.check()
                    asked[heard.fd] = heard.event_watch & MASK
                    shadows |= {heard.fd} if heard.gone else set()
        gone = set()
        for pipe in self.pipes:
            if pipe.loop is loop and pipe.fd is not None:
                asked[pipe.fd] = pipe.event_watch & MASK
                if pipe.hung_up:
                    gone.add(pipe.fd)
        mapped = loop._registry.objects.keys()
        if mapped != asked.keys():
            leaving = loop._registry.leaving.keys()
            if mapped - leaving != asked.keys() - leaving:
                raise Broken(f"the map has {sorted(mapped)}, and {sorted(asked)} are open")
        if not loop._registry.readable.keys() <= asked.keys():
            raise Broken("pushed-back data outlives its object")
        if not loop._registry.post_loop_callbacks.keys() <= asked.keys() | {LOOPS_OWN}:
            raise Broken("a callback outlives its object")
        waiting = [sock for sock in loop.to_close if isinstance(sock, ServerHandle) and sock.loop]
        if waiting != self.to_close[loop]:
            raise Broken("the closes that wait are not those asked for")
        for tap in self.taps:
            if tap.watched and tap.loop is loop:
                asked[tap.read_end.fileno()] = POLLIN
        if self.soon[loop]:
            self.soon[loop][0].check()
        if (waker := loop._registry.waker) is not None:
            asked[waker.fileno()] = POLLIN
            if not self.listening and unread(self, loop) > 1:
                raise Broken("several wake-ups have cost more than one")
        watched = self.watched(loop)
        if self.backend == "kqueue":
            # A pipe without its other end may have lost its write filter.
            for fd in gone:
                asked[fd] &= POLLIN
                watched[fd] &= POLLIN
        for fd in shadows:
            watched.pop(fd, None)
            del asked[fd]
        if watched != asked:
            raise Broken(f"the kernel watches {watched}, and asked for is {asked}")
        # An exception may have left timers for the next pass, one perhaps still in the heap.
        timers = dict.fromkeys([*(entry[2] for entry in loop._timers.heap), *loop._timers.due])
        whose = [getattr(timer.callback, "__self__", None) for timer in timers]
        heaped = sum(isinstance(each, TimerModel) for each in whose)
        retries = [each for each in whose if isinstance(each, Acceptor)]
        if len(retries) > len(set(retries)):
            raise Broken("a listener has several timers")
        self.dials = [dial for dial in self.dials if dial.pending]
        connects = sum(dial.times_out(loop) for dial in self.dials)
        if len(whose) - whose.count(None) - heaped - len(retries) != connects:
            raise Broken(f"there are timers of connects beside {connects} that may time out")
        asked_for = sum(1 for timer in self.timers if timer.loop is loop)
        if heaped != asked_for:
            raise Broken(f"{heaped} timers wait, {asked_for} asked for")

    def watched(self, loop: Loop) -> dict[int, int]:
        """What the kernel watches for `loop`, after opening its poller if needed."""
        poller = self._insist(loop._registry.open)
        if isinstance(poller, PollPoller):
            return by_poll(poller)
        file = self.kernel.table.files[poller.fileno()]
        if isinstance(poller, EpollPoller):
            entries = as_epoll(file).entries
            table = self.kernel.table.files
            # An entry whose number has been reused stays as long as its file is open somewhere.
            return {
                fd: e.events & MASK for (fd, file), e in entries.items() if table.get(fd) is file
            }
        found: dict[int, int] = {}
        for (fd, _), note in as_kqueue(file).notes.items():
            bit = (POLLOUT if note.write else POLLIN) if note.enabled else 0
            found[fd] = found.get(fd, 0) | bit
        return found
