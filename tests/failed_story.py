"""Tells scenarios in which a call is going to fail, and then checks that the loop still works.

It reads the paths of scenarios, one per line. It forks for each, since a fork is ten times as fast
as a start under strace; the child prints its process id, and starts when it gets SIGUSR1, by which
time a tracer is attached.

The child notes how the scenario ended: "told", "waits" (for something that will never happen, while
nothing is ready that the loop should report), "raised TEXT" (an OSError of the package), or
"derailed" (the scenario itself failed because of the state of its sockets). Then a new connection
is added to the same loop, and "intact" is noted after its event. Anything else is noted as a
"fault".
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType

import danga_raw
from danga_raw import Loop, Socket
from danga_raw._epoll import Epoll
from danga_raw._libc import libc
from danga_raw._poll import POLLIN, POLLOUT
from tests import announced
from tests.scenarios import story as stories
from tests.scenarios.story import note

LOOK = 0.2
"""Seconds between two checks of whether the scenario waits in vain."""

LOOKS = 25
"""After this many checks that found something ready, the loop is deaf to it."""

FRUITLESS_LOOKS = 2
"""After this many checks in a row that found the loop waiting with nothing ready, it waits in vain;
a single one may have happened in the middle of a step."""

SPINS = 10
"""The same for a loop that spins without a timeout."""

TRIES = 100
"""How often to run the loop for the new connection, since the scenario's objects may raise."""

PACKAGE = os.path.dirname(os.path.abspath(danga_raw.__file__))


class WaitsInVain(BaseException):
    """The scenario waits for something that won't happen."""


class Watchdog:
    """Ends a wait in vain, and a loop that is deaf to what is ready."""

    def __init__(self) -> None:
        self.looks = 0
        self.vain = 0
        self.idle = 0
        self.watching = True

    def look(self, number: int, frame: FrameType | None) -> None:
        if not self.watching:
            return
        loops = [each for each in gc.get_objects() if isinstance(each, Loop)]
        if not any(ready(loop) for loop in loops):
            waiting = frame is not None and frame.f_code is Epoll.wait_bare.__code__
            self.vain = self.vain + 1 if waiting else 0
            self.idle += 1
            if self.vain == FRUITLESS_LOOKS or self.idle == SPINS:
                raise WaitsInVain
            return
        self.vain = self.idle = 0
        self.looks += 1
        if self.looks == LOOKS:
            note("fault: the loop does not hear what is ready")
            os._exit(1)


def ready(loop: Loop) -> bool:
    """True if the loop has something to do, by poll(2) and its records, not by its poller."""
    poll = select.poll()
    for fd, obj in loop._registry.objects.items():
        if not obj.closed:
            poll.register(fd, obj.event_watch & (POLLIN | POLLOUT))
    for fd in loop.other_fds:
        poll.register(fd, POLLIN)
    pushed_back = bool(loop._registry.readable)
    now = libc.clock_gettime(1)
    due = any(deadline <= now and timer.callback for deadline, _, timer in loop._timers.heap)
    return bool(poll.poll(0)) or pushed_back or due


class NewConnection(Socket):
    """The new connection."""

    __slots__ = ("got",)

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self.got: bytes | None = None

    def event_read(self) -> None:
        self.got = self.read(10)
        self.loop.stop()


def check_new_connection() -> None:
    """Note "intact" after an event of a new connection."""
    Socket.SetPostLoopCallback(None)
    ours, theirs = stories.pair()
    heard = NewConnection(ours)
    heard.watch_read(True)
    theirs.send(b"still here")
    for _ in range(TRIES):
        with suppress(Exception):
            heard.loop.run()
        if heard.got == b"still here":
            note("intact")
            return
    note("fault: a new connection is not heard")


def in_package(error: BaseException) -> bool:
    """True if the package raised it, or a call that the package made."""
    return traceback.extract_tb(error.__traceback__)[-1].filename.startswith(PACKAGE)


def story(tell: Callable[[], None]) -> None:
    """Replaces the function of that name in the scenarios."""
    note("begin")
    watchdog = Watchdog()
    signal.signal(signal.SIGALRM, watchdog.look)
    signal.setitimer(signal.ITIMER_REAL, LOOK, LOOK)
    try:
        try:
            tell()
        finally:
            watchdog.watching = False
        note("told")
    except WaitsInVain:
        note("waits")
    except Exception as error:
        if not in_package(error):
            note("derailed", type(error).__name__)
        elif isinstance(error, OSError):
            note("raised", error)
        else:
            traceback.print_exc()
            note("fault:", type(error).__name__, error)
    signal.setitimer(signal.ITIMER_REAL, 0)
    check_new_connection()
    note("end")
    os._exit(0)


def main() -> None:
    # The package already has its own references to the calls, so only the scenario's are announced.
    for name in ("read", "write", "close"):
        setattr(os, name, announced.announcing(getattr(os, name)))
    real_close = getattr(socket.socket, "_real_close")

    def close(self: socket.socket) -> None:
        # A socket without a descriptor makes no call to announce.
        (announced.announcing(real_close) if self.fileno() >= 0 else real_close)(self)

    setattr(socket.socket, "_real_close", close)
    setattr(stories, "story", story)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            code = compile(Path(line.strip()).read_text(), line.strip(), "exec")
            print(os.getpid(), flush=True)
            signal.sigwait({signal.SIGUSR1})
            exec(code, {"__name__": "__main__"})
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
