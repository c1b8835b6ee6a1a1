"""Short stories of waking, accepting and connecting, to be interrupted anywhere.

Each is a series of steps. A step may be cut short by an exception, and is not started again.
`ending` goes on with the others and reports what was lost, doubled or leaked.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Final

from danga_raw import Listener, Loop, Socket, _connecting, _waker, listener
from danga_raw._libc import libc
from danga_raw.types import SocketAddress
from tests.interrupted import Interrupter, complaints, lock_left_taken, registered

TURNS: Final = 50
"""A story that has not ended after this many never will."""


class Part:
    """A story on its own loop."""

    def __init__(self, backend: str) -> None:
        self.before = set(os.listdir("/proc/self/fd"))
        self.wrong: list[str] = []
        self.loop = Loop(backend)
        self.steps: list[Callable[[], object]] = []
        self.things: list[socket.socket] = []
        """Sockets that the package doesn't own, to be closed at the end."""
        self.injected = 0
        """The errno with which a call fails, if one does."""

    def go_on(self) -> None:
        """Take the remaining steps."""
        while self.steps:
            self.steps.pop(0)()

    def turn(self, ms: int = 0) -> None:
        self.loop.set_loop_timeout(ms)
        self.loop.set_post_loop_callback(lambda *_: False)
        self.loop.run()

    def ending(self) -> list[str]:
        """Go on to the end, and report what is wrong."""
        try:
            self.go_on()
            self.check()
        except Exception as error:
            self.wrong.append(repr(error))
        self.wrong += lock_left_taken()
        self.loop.close()
        for each in self.things:
            each.close()
        if left := set(os.listdir("/proc/self/fd")) - self.before:
            self.wrong.append(f"descriptors are left: {left}")
        if _connecting.begun:
            self.wrong.append("something has begun to connect for ever")
            _connecting.begun.clear()
        return self.wrong

    def check(self) -> None:
        """Collect complaints about what is wrong at the end."""

    def check_registered(self) -> None:
        """Check that the poller and the loop know the same descriptors."""
        registry = self.loop._registry
        known = {fd: obj.event_watch & 5 for fd, obj in registry.objects.items() if not obj.closed}
        if registry.waker is not None:
            known[registry.waker.fileno()] = 1
        there = registered(self.loop)
        if known != there:
            self.wrong.append(f"registered: {there}, and known: {known}")
        if registry.connecting.keys() - known.keys():
            self.wrong.append(f"connecting still: {registry.connecting}")

    def timers(self) -> int:
        """How many timers are still going to fire."""
        return sum(timer.callback is not None for _, _, timer in self.loop._timers.heap)


class Waking(Part):
    """Callbacks, added from within and from outside."""

    def __init__(self, backend: str) -> None:
        super().__init__(backend)
        self.given: list[int] = []
        self.ran: list[int] = []
        soon, wake = self.loop.call_soon, self.loop.call_soon_threadsafe
        for number, way in enumerate((soon, soon, None, wake, None, wake, wake, soon, None, None)):
            self.steps.append(self.turn if way is None else partial(self.give, way, number))

    def give(self, way: Callable[[Callable[[], object]], None], number: int) -> None:
        way(partial(self.ran.append, number))
        self.given.append(number)

    def check(self) -> None:
        for _ in range(3):
            self.turn()
        if any(count > 1 for count in Counter(self.ran).values()) or sorted(self.ran) != self.ran:
            self.wrong.append(f"called: {self.ran}")
        if not set(self.given) <= set(self.ran):
            self.wrong.append(f"given: {self.given}, and called: {self.ran}")
        self.check_registered()
        self.loop.call_soon_threadsafe(partial(self.ran.append, -1))
        waker = self.loop._registry.waker
        poll = select.poll()
        poll.register(waker.fileno() if waker is not None else -1, select.POLLIN)
        if not poll.poll(0):
            self.wrong.append("nothing ends a wait")
        self.check_registered()
        self.turn()
        if self.ran[-1] != -1:
            self.wrong.append("a callback is lost")


class Reset(Waking):
    """A loop that is reset while something waits in it, and started again."""

    def __init__(self, backend: str) -> None:
        super().__init__(backend)
        self.steps[4:] = [self.end, self.turn]

    def end(self) -> None:
        self.given.clear()
        self.loop.reset()

    def check(self) -> None:
        if self.loop._soon or self.loop._registry.objects:
            self.wrong.append("half reset")
        super().check()


class Signals(Part):
    """Signal handlers that are added, called, and removed."""

    ONE, TWO = signal.SIGUSR1, signal.SIGUSR2

    def __init__(self, backend: str) -> None:
        super().__init__(backend)
        self.heard: Counter[int] = Counter()
        self.raised: Counter[int] = Counter()
        self.steps = [
            *(partial(self.add, self.ONE), partial(self.come, self.ONE), self.turn),
            *(partial(self.add, self.TWO), partial(self.remove, self.ONE)),
            *(partial(self.come, self.TWO), self.turn, self.turn, self.loop.reset),
            *(partial(self.add, self.ONE), partial(self.come, self.ONE), self.loop.close),
        ]

    def add(self, number: int) -> None:
        self.loop.add_signal_handler(number, partial(self.note, number))

    def note(self, number: int) -> None:
        self.heard[number] += 1

    def remove(self, number: int) -> None:
        self.loop.remove_signal_handler(number)
        if signal.getsignal(number) != signal.SIG_DFL:
            self.wrong.append("a handler that was removed is there")

    def come(self, number: int) -> None:
        if signal.getsignal(number) != signal.SIG_DFL:
            signal.raise_signal(number)
            self.raised[number] += len(self.steps) > 3  # The last finds no handler.

    def check(self) -> None:
        for number in (self.ONE, self.TWO):
            if self.heard[number] < self.raised[number] or self.heard[number] > 1:
                self.wrong.append(f"heard {self.heard}, and came {self.raised}")
        self.loop.close()
        for number in (self.ONE, self.TWO):
            if signal.getsignal(number) != signal.SIG_DFL:
                self.wrong.append("a handler outlives its loop")
                signal.signal(number, signal.SIG_DFL)
        if (left := signal.set_wakeup_fd(-1)) != -1 or _waker._on_signals:
            self.wrong.append(f"signals write to {left} still")
            _waker._on_signals.clear()


class Quiet(Socket):
    """An accepted connection."""

    def event_read(self) -> None:
        if self.read(100) is None:
            self.close("end")

    event_err = event_hup = event_read


class Listening(Part):
    """A listener with connections, with no room for one, and with room again; `pause` is how long
    it waits if nothing is closed."""

    def __init__(self, backend: str, pause: float) -> None:
        super().__init__(backend)
        self.pause = pause
        self.sock = socket.create_server(("127.0.0.1", 0))
        self.things.append(self.sock)
        self.clients: list[socket.socket] = []
        self.served: list[Quiet] = []
        self.listener: Listener | None = None
        self.full = False
        free = self.close_one if pause else self.free
        self.steps = [
            *(self.come, self.come, self.listen, self.turn, self.turn),
            *(self.come, self.fill, self.turn, free, self.turn, self.turn),
            *(self.come, self.fill, self.turn, free, self.turn, self.turn),
        ]

    def come(self) -> None:
        client = socket.create_connection(self.sock.getsockname())
        client.setblocking(False)
        self.things.append(client)
        self.clients.append(client)

    def listen(self) -> None:
        self.listener = Listener(self.sock, self.accepted, self.loop)

    def accepted(self, connection: socket.socket, address: object) -> None:
        self.served.append(Quiet(connection, self.loop))
        self.served[-1].watch_read(True)

    def fill(self) -> None:
        self.full = True

    def free(self) -> None:
        self.full = False

    def close_one(self) -> None:
        self.free()
        for each in self.served[:1]:
            self.served.remove(each)
            each.close()

    @contextmanager
    def installed(self) -> Iterator[None]:
        """With accept(2) replaced for this story."""
        before, pause = libc.accept, listener.PAUSE

        def accept(sock: socket.socket) -> tuple[socket.socket, object]:
            if self.full:
                raise OSError(errno.EMFILE, "no room")
            return before(sock)

        setattr(libc, "accept", accept)
        setattr(listener, "PAUSE", self.pause)
        try:
            yield
        finally:
            setattr(libc, "accept", before)
            setattr(listener, "PAUSE", pause)

    def go_on(self) -> None:
        with self.installed():
            super().go_on()

    def check(self) -> None:
        with self.installed():
            self.check_served()

    def check_served(self) -> None:
        self.full = False
        if self.listener is None:
            if self.loop._registry.objects or self.sock.fileno() < 0:
                self.wrong.append("a listener that was not made has left something")
            self.listen()
        self.come()
        for _ in range(TURNS):
            self.turn()
            if not self.readable(self.sock):
                break
        assert self.listener is not None
        registry, fd = self.loop._registry, self.listener.fd
        if fd in registry.paused and self.timers() and self.pause:
            here, there = socket.socketpair()
            here.setblocking(False)
            Quiet(here, self.loop).close()
            there.close()
            for _ in range(len(self.clients)):
                self.turn()
        if not self.listener.event_watch & 1:
            self.wrong.append("deaf" if fd not in registry.paused else "it does not begin again")
        if self.timers() > 1 + (self.pause > 1):
            self.wrong.append(f"{self.timers()} timers")
        alive = len(self.clients) - sum(map(self.ended, self.clients))
        served = [obj for obj in registry.objects.values() if isinstance(obj, Quiet)]
        if alive != len([each for each in served if not each.closed]):
            self.wrong.append(f"{alive} connections, and {len(served)} are served")
        if self.ended(self.clients[-1]):
            self.wrong.append("the last connection is not served")
        self.check_registered()
        for each in served:
            each.close()
        self.listener.steal_socket()
        self.turn()

    def readable(self, sock: socket.socket) -> bool:
        return bool(select.select([sock], [], [], 0)[0])

    def ended(self, client: socket.socket) -> bool:
        with suppress(BlockingIOError):
            return client.recv(1) == b""
        return False


class OnPurpose(Exception):
    """The exception of a constructor."""


class Again(Quiet):
    """Calls its constructor again with another socket when the first has ended."""

    def __init__(self, sock: socket.socket, part: MadeAnew) -> None:
        super().__init__(sock, part.loop)
        self.part = part
        self.watch_read(True)

    def event_read(self) -> None:
        if data := self.read(100):
            self.part.got += data
        else:
            self.close("end")
            if self.part.following:
                self.__init__(self.part.following.pop(0), self.part)  # type: ignore[misc]  # made anew
                self.part.obj = self


class MadeAnew(Part):
    """A closed object whose constructor is called again with another socket, twice."""

    def __init__(self, backend: str) -> None:
        super().__init__(backend)
        self.obj: Again | None = None
        self.got = b""
        self.following: list[socket.socket] = []
        self.theirs: list[socket.socket] = []
        for _ in range(3):
            ours, theirs = socket.socketpair()
            ours.setblocking(False)
            self.following.append(ours)
            self.theirs.append(theirs)
            self.things += [ours, theirs]
        end = [partial(each.shutdown, socket.SHUT_WR) for each in self.theirs]
        self.steps = [self.make, end[0], self.turn, self.turn, end[1], self.turn]

    def make(self) -> None:
        self.obj = Again(self.following.pop(0), self)

    def check(self) -> None:
        for _ in range(3):
            if self.obj is not None:
                self.obj.watch_read(True)  # the exception may have come before it
            self.turn()
        self.check_registered()
        objects = dict(self.loop.descriptor_map)
        if self.obj is not None and list(objects.values()) != [self.obj] * (not self.obj.closed):
            self.wrong.append(f"{self.obj}, and known: {objects}")
        for fd, obj in objects.items():
            if obj is self.obj:
                self.theirs[2 - len(self.following)].send(b"hello")
                self.turn()
                if self.got != b"hello" or obj.fd != fd:
                    self.wrong.append("what came is not heard")
            obj.close()
        self.turn()


class Client(Quiet):
    """Connects, and writes at once."""

    def __init__(self, sock: socket.socket, part: Connecting) -> None:
        super().__init__(sock, part.loop)
        self.part = part
        part.made.append(self)
        self.write(b"first")
        if part.way == "raise":
            raise OnPurpose

    def event_connect(self, error: OSError | None) -> None:
        self.part.told.append((self, error))


class Connecting(Part):
    """A connect, and its outcome."""

    def __init__(self, backend: str, way: str) -> None:
        super().__init__(backend)
        self.way = way
        self.made: list[Client] = []
        self.told: list[tuple[Client, OSError | None]] = []
        self.client: Client | None = None
        self.server = socket.socket()
        self.server.bind(("127.0.0.1", 0))
        self.server.setblocking(False)
        if (
            way != "refused"
        ):  # Then the port is taken: nobody else listens, and the client can't have it.
            self.server.listen(8 if way != "silent" else 0)
        self.address: SocketAddress = self.server.getsockname()
        self.things.append(self.server)
        if way == "nobody":
            self.address = "/nonexistent/door"
        elif way == "silent":
            for _ in range(8):
                filler = socket.socket()
                filler.setblocking(False)
                filler.connect_ex(self.server.getsockname())
                self.things.append(filler)
        self.steps = [self.connect, self.turn, self.turn, self.turn]

    def connect(self) -> None:
        timeout = {"silent": 0.0, "connected": 60.0}.get(self.way)
        with suppress(OnPurpose):
            self.client = Client.connect(self.address, self, timeout=timeout)

    def check(self) -> None:
        client, registry = self.client, self.loop._registry
        self.turn()
        for _ in range(TURNS):
            if client is None or client.closed or (self.told and not client.write_buf):
                break
            self.turn(10)
        self.check_registered()
        if len(self.told) > 1:
            self.wrong.append(f"told {self.told}")
        if client is None:
            if registry.objects or self.told:
                self.wrong.append("a connect that raised has left something")
            return
        if self.timers():
            self.wrong.append("a timeout that is of no use is kept")
        if not self.told and not client.closed:
            self.wrong.append("nothing came of it")
        for _, error in self.told:
            injected = error is not None and error.errno == self.injected
            if not injected and (error is None) != (self.way == "connected"):
                self.wrong.append(f"told {error}")
        if self.way != "connected":
            if not client.closed:
                self.wrong.append("what has not connected is open")
        elif not client.closed:
            if client.event_watch & 4:
                self.wrong.append("it is watched for writing for ever")
            there = self.server.accept()[0]
            self.things.append(there)
            if there.recv(100) != b"first":
                self.wrong.append("what was written is lost")
            client.close()
        self.turn()


PARTS: Final[dict[str, Callable[[str], Part]]] = {
    "waking": Waking,
    "reset": Reset,
    "made anew": MadeAnew,
    "signals": Signals,
    "a listener that waits for a close": lambda backend: Listening(backend, 60),
    "a listener that waits a while": lambda backend: Listening(backend, 0),
    **{
        f"connect: {way}": lambda backend, way=way: Connecting(backend, way)  # type: ignore[misc]  # mypy takes no default in a lambda's type
        for way in ("connected", "refused", "nobody", "silent", "raise")
    },
}


def cut_short(story: str, at: int, backend: str) -> tuple[Interrupter, list[str]]:
    """Tell one of the stories, interrupted at the `at`th place, and report what is wrong."""
    interrupter = Interrupter(at)
    with complaints() as heard:
        part = PARTS[story](backend)
        second = False
        sys.settrace(interrupter.trace)
        try:
            part.go_on()
            if interrupter.where is not None:
                part.wrong.append("the exception was swallowed")
        except KeyboardInterrupt as error:
            # Less is promised for a second exception, after a constructor's.
            second = isinstance(error.__context__, OnPurpose)
        finally:
            sys.settrace(None)
        wrong = part.ending() + heard
        return interrupter, [] if second else wrong
