"""Our Perlbal on the simulated kernel: the same bad input, on a kernel that disturbs and fails.

    python -m tests.perlbal.simulated [--seed N] [--worlds N] [--backend NAME]

The server runs in this process, on any of the four mechanisms. Clients, backends and managers send
random and mutated bytes, split at random points, and leave at random times. The kernel cuts
transfers short, delays them, reports spurious events, and in half of the worlds fails calls and
resets connections. A witness sends requests to its own backend. No exception may leave the loop or
be logged with a traceback, nothing may be left over when all peers are gone, and if the kernel only
disturbs, the witness must have received every answer.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from io import StringIO
from random import Random
from unittest.mock import patch

from danga_raw import Loop
from danga_raw import loop as loop_room
from danga_raw.types import AnySocket
from examples.perlbal.backends import BackendHTTP, Owner
from examples.perlbal.language import Context
from examples.perlbal.pools import Node
from examples.perlbal.server import Server
from examples.perlbal.services import Service, TCPListener
from tests.perlbal.fuzz import ANSWERS, COMMANDS, REQUESTS, UNFAIR, input_of, pieces
from tests.perlbal.steps import get, good
from tests.simkernel.handles import Handle
from tests.simkernel.kernel import SimKernel
from tests.simkernel.sockets import SHUT_WR
from tests.simkernel.world import BACKENDS, PLATFORMS, Backend

CLIENTS = 30
TESTIMONIES = 20
MS = 1_000_000
END = 60_000 * MS
"""After this time, longer than any timeout, a world counts as hung."""

CONFIGURATION = """
LOAD vhosts
CREATE POOL apart
  POOL apart ADD 127.0.0.1:1
CREATE POOL one
  POOL one ADD 127.0.0.1:2
CREATE SERVICE bystander
  SET role   = reverse_proxy
  SET listen = 127.0.0.1:3
  SET pool   = apart
  SET persist_client  = on
  SET persist_backend = on
ENABLE bystander
CREATE SERVICE proxy
  SET role   = reverse_proxy
  SET listen = 127.0.0.1:4
  SET pool   = one
  SET persist_client  = on
  SET persist_backend = on
  SET verify_backend  = on
  SET enable_error_retries = on
  SET buffer_backend_connect = 1k
  SET buffer_size = 1k
ENABLE proxy
CREATE SERVICE choice
  SET role    = selector
  SET listen  = 127.0.0.1:5
  SET plugins = vhosts
  SET persist_client = on
  VHOST choice * = proxy
ENABLE choice
CREATE SERVICE management
  SET role   = management
  SET listen = 127.0.0.1:6
ENABLE management
"""
SERVICES = ("proxy", "choice", "management")
TEXTS = [answer for answer in ANSWERS if b"REPROXY" not in answer]
"""Without the answers that ask for files or look-ups, which the simulated kernel doesn't have."""
LINES = [line for line in COMMANDS if not any(word in line for word in (b"INCLUDE", b"${"))]
BARRED = (*UNFAIR, b"include", b"${", b"nodefile", b"listen", b"reproxy", b"server ")


class Broken(AssertionError):
    """An invariant of a world is violated."""


class Talker:
    """One side of a connection, which sends its pieces one by one and reads what arrives."""

    def __init__(self, world: World, handle: Handle, dice: Random) -> None:
        self.world = world
        self.handle = handle
        self.dice = dice
        self.heard = b""
        self.to_say: list[bytes] = []
        self.over = False
        handle.setblocking(False)
        world.talkers.append(self)
        self.next_turn()

    def next_turn(self) -> None:
        if not self.over:
            delay = self.dice.randrange(1, 20 * MS)
            self.world.kernel.clock.after(delay, self.turn)

    def turn(self) -> None:
        if self.over:
            return
        try:
            while self.to_say:
                sent = self.handle.send(self.to_say[0])
                self.to_say[0] = self.to_say[0][sent:]
                if self.to_say[0]:
                    break
                del self.to_say[0]
                if self.dice.random() < 0.5:
                    break
        except BlockingIOError:
            pass
        except OSError:
            self.leave()
            return
        try:
            data = self.handle.recv(self.dice.choice((1, 50, 5000)))
            if not data:
                self.ended()
                return
            self.heard += data
        except BlockingIOError:
            pass
        except OSError:
            self.ended()
            return
        self.act()
        self.next_turn()

    def act(self) -> None:
        """Called after each turn."""

    def ended(self) -> None:
        """Called when the other side has closed."""
        self.leave()

    def leave(self, reset: bool = False) -> None:
        if not self.over:
            self.over = True
            if reset and self.handle.fileno() >= 0:
                self.handle.reset()
            else:
                self.handle.close()


class BadClient(Talker):
    """Sends one input to a service, and leaves a little later."""

    def __init__(self, world: World, service: str, dice: Random) -> None:
        super().__init__(world, world.connect(service), dice)
        corpus = LINES if service == "management" else REQUESTS
        data = input_of(corpus, dice).replace(b"%d", b"%d" % len(world.talkers))
        if service == "management" and any(word in data.lower() for word in BARRED):
            data = b"show service\r\n"
        self.to_say = list(pieces(data, dice))
        self.turns = dice.randrange(3, 60)
        self.shuts = dice.random() < 0.2

    def act(self) -> None:
        self.turns -= 1
        if self.turns <= 0:
            self.leave(self.dice.random() < 0.3)
        elif self.shuts and not self.to_say:
            self.shuts = False
            try:
                self.handle.shutdown(SHUT_WR)
            except OSError:
                self.leave()


class BadBackend(Talker):
    """Answers each head with random input or a good answer, and may leave at any time."""

    def act(self) -> None:
        if b"\r\n\r\n" in self.heard:
            self.heard = b""
            data = input_of(TEXTS, self.dice) if self.dice.random() < 0.6 else good("fine").data
            self.to_say += pieces(data, self.dice)
        elif not self.to_say and self.dice.random() < 0.02:
            self.leave(self.dice.random() < 0.5)


class GoodBackend(Talker):
    def act(self) -> None:
        while b"\r\n\r\n" in self.heard:
            self.heard = self.heard.partition(b"\r\n\r\n")[2]
            self.to_say.append(good("ok").data)


class Witness(Talker):
    """Sends one request after another, on one connection."""

    def __init__(self, world: World, dice: Random) -> None:
        super().__init__(world, world.connect("bystander"), dice)
        self.answers = 0
        self.to_say = [get("/witness")]

    def act(self) -> None:
        if self.world.harm and b" 502 " in self.heard:
            self.leave()  # its backend's connection was harmed
        if self.heard.endswith(b"\r\n\r\nok"):
            if not self.heard.startswith(b"HTTP/1.0 200 OK\r\n"):
                raise Broken(f"the witness heard {self.heard!r}")
            self.heard = b""
            self.answers += 1
            if self.answers == TESTIMONIES:
                self.leave()
            else:
                self.to_say.append(get("/witness"))

    def ended(self) -> None:
        self.leave()
        if not self.world.harm:
            raise Broken(f"the witness was hung up on after {self.answers} answers")


class World:
    """One seed's world."""

    def __init__(self, seed: int, backend: Backend) -> None:
        self.seed = seed
        self.backend = backend
        dice = Random(f"perlbal {seed}")
        self.dice = dice
        self.harm = dice.choice((0.0, 0.002, 0.01))
        self.kernel = SimKernel(
            seed,
            platform=dice.choice(PLATFORMS[backend]),
            noise=dice.choice((0.02, 0.1)),
            harm=self.harm,
            strict=True,
        )
        self.talkers: list[Talker] = []
        self.listeners: dict[str, Handle] = {}
        self.far: dict[int, Handle] = {}
        self.said = StringIO()
        self.wrong: list[str] = []

    def connect(self, service: str) -> Handle:
        """A client's side of a new connection, which doesn't fail."""
        with self.spared():
            return self.kernel.connect(self.listeners[service])

    @contextmanager
    def spared(self) -> Iterator[None]:
        """Let the test's own calls not fail."""
        luck = self.kernel.luck
        noise, harm = luck.noise, luck.harm
        luck.noise = luck.harm = 0.0
        try:
            yield
        finally:
            luck.noise, luck.harm = noise, harm

    # --- replacements for system calls that the simulated kernel doesn't have ---------------------

    def _listen(self, service: Service, listen: str) -> TCPListener:
        handle = self.listeners[service.name] = self.kernel.listener()
        return TCPListener(service, handle)  # type: ignore[arg-type]  # it has a socket's methods

    def _open(self, owner: Owner, node: Node, timeout: float = 0.0) -> BackendHTTP | None:
        """A connection to a backend, which may fail at once, later, or never."""
        port = node.port
        luck = self.dice.random() if port == 2 else 1.0
        if luck < 0.1:
            return None
        with self.spared():
            near = self.kernel.connect(self.far[port])
            far, _ = self.far[port].accept()
            near.setblocking(False)
            made = BackendHTTP(near, owner, node)  # type: ignore[arg-type]  # as above
        kind = GoodBackend if port == 1 else BadBackend
        kind(self, far, Random(f"backend {self.seed} {len(self.talkers)}"))
        error = ConnectionRefusedError(111, "refused") if luck < 0.2 else None

        def connected() -> None:
            if not made.closed:
                made.event_connect(error)

        delay = self.dice.randrange(5) / 1000
        made.loop.add_timer(delay, connected)
        return made

    def _raised(self, obj: AnySocket | None, error: Exception) -> None:
        """Check a handler's exception: an injected fault is allowed, anything else is a bug."""
        if not (self.harm and isinstance(error, OSError)):
            self.wrong += traceback.format_exception(error)

    # --- a run ------------------------------------------------------------------------------------

    def run(self) -> int:
        """Run the world; return the number of faults injected. Raises `Broken` or `SimError`."""
        kernel = self.kernel
        with ExitStack() as stack:
            stack.enter_context(kernel.installed())
            enter = stack.enter_context
            enter(patch.object(time, "monotonic", lambda: kernel.clock.now_ns / 1e9))
            # The package would make a pipe for other threads to wake it, which the kernel lacks.
            enter(patch.object(loop_room, "count_other_threads", lambda: 0))
            enter(patch.object(Service, "_open", lambda *given: self._listen(*given)))
            enter(patch.object(BackendHTTP, "open", self._open))
            enter(patch.object(Handle, "setsockopt", lambda *_: None, create=True))
            enter(patch.object(Server, "log", lambda server, text: print(text, file=self.said)))
            logger = logging.getLogger("danga_raw")
            handler = logging.StreamHandler(self.said)
            logger.addHandler(handler)
            stack.callback(logger.removeHandler, handler)
            propagates, logger.propagate = logger.propagate, False
            stack.callback(setattr, logger, "propagate", propagates)
            self._run()
        return sum(kernel.luck.dealt.values())

    def _run(self) -> None:
        kernel = self.kernel
        with self.spared():
            loop = Loop(backend=self.backend.partition("-")[0])
            server = Server(loop)
            self.far = {1: kernel.listener(), 2: kernel.listener()}
            run_lines(server, CONFIGURATION)
            loop.on_exception = self._raised
            server.running = True
            witness = Witness(self, Random(f"witness {self.seed}"))
        for number in range(CLIENTS):
            dice = Random(f"client {self.seed} {number}")
            service = dice.choice(SERVICES)
            when = dice.randrange(1, 500 * MS)
            kernel.clock.after(when, partial(BadClient, self, service, dice))
        ends = kernel.clock.now_ns + END

        def look() -> None:
            clients = [each for each in self.talkers if isinstance(each, (BadClient, Witness))]
            if len(clients) > CLIENTS and all(each.over for each in clients):
                loop.stop()
            elif kernel.clock.now_ns > ends:
                self.wrong.append(f"it goes on for ever; {witness.answers} answers for the witness")
                loop.stop()
            else:
                loop.add_timer(0.1, look)

        look()
        while not loop_ended(loop):
            pass
        for each in self.talkers:
            each.leave()
        # The server must release what it still has, now that all peers are gone.
        with self.spared():
            loop.add_timer(60, loop.stop)
            loop.run()
            left = [
                each.as_string() for each in server.sockets() if not isinstance(each, TCPListener)
            ]
            left = [text for text in left if "bored" not in text]
            for other in list(server.sockets()):
                other.close("end of the world")
            loop.reset()
        if left:
            raise Broken(f"left behind: {left}")
        if self.wrong:
            raise Broken("".join(self.wrong))
        if not self.harm and witness.answers < TESTIMONIES:
            raise Broken(f"the witness got {witness.answers} answers of {TESTIMONIES}")


def loop_ended(loop: Loop) -> bool:
    """Run the loop. False if an injected fault ended it."""
    try:
        loop.run()
    except OSError:
        return False
    return True


def run_lines(server: Server, text: str) -> None:
    context = Context(verbose=False)
    for line in text.splitlines():
        said: list[str] = []
        if not server.language.run(line, said.append, context):
            raise Broken(f"{line}: {said}")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="tests.perlbal.simulated", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--seed", type=int, default=1, help="of the first world")
    parser.add_argument("--worlds", type=int, default=100)
    parser.add_argument("--backend", choices=[*BACKENDS, "all"], default="all")
    options = parser.parse_args()
    backends = BACKENDS if options.backend == "all" else (options.backend,)
    for backend in backends:
        faults = 0
        since = time.monotonic()
        for seed in range(options.seed, options.seed + options.worlds):
            try:
                faults += World(seed, backend).run()
            except Exception:
                print(
                    f"repeat: python -m tests.perlbal.simulated --seed {seed} --worlds 1"
                    f" --backend {backend}"
                )
                raise
        spent = time.monotonic() - since
        print(f"{backend}: {options.worlds} worlds, {faults} faults survived, {spent:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
