"""Signals at any moment: handlers that return, and handlers that raise.

CPython runs a signal handler after a call, at the start of a function and at a backward jump, and
nowhere else. A short story (`interrupted.py`) is interrupted in turn at each such place of the
package that it passes, and afterwards the loop runs to the end with nothing lost, doubled or
leaked. A connection is closed if the exception has discarded the result of its read(2) or
write(2).
"""

from __future__ import annotations

import gc
import logging
import os
import random
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FrameType

import pytest

from danga_raw import Loop, Socket
from danga_raw._interrupt import alone
from danga_raw._registry import Registry
from danga_raw._waker import Waker
from danga_raw.types import Callback, Poller
from tests.interrupted import (
    PACKAGE,
    Interrupter,
    Story,
    adds_a_timer,
    closes,
    complaints,
    function,
    handled,
    interrupted,
    interrupted_by_signal,
    left_out_of_a_try,
    lock_left_taken,
)
from tests.interrupted_parts import PARTS, cut_short
from tests.needs import REQUIRED
from tests.world import IN, PATIENCE, POLLERS, Recorder, World

BACKENDS = ["epoll", "poll"]


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    """The story must run the same way each time."""
    gc.disable()
    yield
    gc.enable()


not_on_3_12 = pytest.mark.skipif(
    sys.version_info[:2] == (3, 12),
    reason="3.12 tells a trace function of instructions only by luck, and what it raises has no line",
)


def places(count: int, most: int | None) -> Sequence[int]:
    """All numbers below `count`, or a sample of `most`."""
    if most is None or most >= count:
        return range(count)
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    return random.Random(seed).sample(range(count), most)


def faults_by_place(
    backend: str, most: int | None, anywhere: bool = False
) -> tuple[dict[str, list[str]], int]:
    """What was wrong after the story was interrupted, by place, at all places or a sample of
    `most`; and how many places there are."""
    interrupted(-1, backend, anywhere)  # Some things are done only the first time.
    whole, wrong = interrupted(-1, backend, anywhere)
    assert wrong == []
    found: dict[str, list[str]] = {}
    hits = 0
    chosen = places(whole.count, most)
    for at in chosen:
        interrupter, wrong = interrupted(at, backend, anywhere)
        # At its last instruction `read` has done everything: the result is the caller's, and no
        # function can save its result from a trace function that raises just there.
        handed_over = interrupter.returning and function(interrupter.where or "") == "read"
        if wrong and not handed_over:
            found[interrupter.where or "nowhere"] = wrong
        hits += interrupter.where is not None
    assert hits > len(chosen) // 2  # Python 3.13 counts more places the first few times.
    return found, whole.count


@not_on_3_12
@pytest.mark.parametrize("backend", BACKENDS)
def test_exception_anywhere_leaves_nothing_half_done(backend: str) -> None:
    found, count = faults_by_place(backend, None if REQUIRED else 120)
    assert found == {}
    assert count > 200


@not_on_3_12
@pytest.mark.parametrize("backend", BACKENDS)
def test_exception_before_any_instruction_leaves_nothing_half_done(backend: str) -> None:
    found, count = faults_by_place(backend, 1000 if REQUIRED else 100, anywhere=True)
    assert found == {}
    assert count > 2000


@pytest.mark.skipif(
    sys.version_info < (3, 11), reason="3.10 has no table of what a `try` holds for"
)
def test_every_backward_jump_is_covered_by_its_enclosing_try() -> None:
    """CPython 3.13 and 3.14 leave some out, and a signal's handler may raise there."""
    codes = [compile(path.read_text(), str(path), "exec") for path in Path(PACKAGE).glob("*.py")]
    assert codes
    assert [place for code in codes for place in left_out_of_a_try(code)] == []


@pytest.mark.skipif(
    sys.version_info[:2] not in ((3, 13), (3, 14)), reason="the fault of 3.13, 3.14"
)
def test_backward_jump_that_is_not_covered_is_detected() -> None:
    loop = "def f():\n try:\n  for each in many:\n   if each:\n    each()\n finally: end()\n"
    assert len(left_out_of_a_try(compile(loop, "loop", "exec"))) == 1
    plain = loop.replace(" finally", "   each()\n finally")
    assert left_out_of_a_try(compile(plain, "loop", "exec")) == []


@not_on_3_12
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # Made by an interrupted call.
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("story", PARTS)
def test_exception_while_waking_accepting_or_connecting_leaves_nothing_half_done(
    story: str, backend: str
) -> None:
    cut_short(story, -1, backend)
    whole, wrong = cut_short(story, -1, backend)
    assert wrong == []
    assert whole.count > 100
    found: dict[str, list[str]] = {}
    for at in places(whole.count, None if REQUIRED else 12):
        interrupter, wrong = cut_short(story, at, backend)
        if wrong:
            found[interrupter.where or "nowhere"] = wrong
    gc.collect()
    assert found == {}


def run_call_soon_callbacks(at: int) -> tuple[Interrupter, list[str]]:
    """Run three `call_soon` callbacks, interrupted at the `at`th place; which were called."""
    interrupter = Interrupter(at)
    called: list[str] = []
    with Loop("epoll") as loop:
        loop.set_loop_timeout(0)
        for each in "abc":
            loop.call_soon(partial(called.append, each))
        loop.call_soon(loop.stop)
        sys.settrace(interrupter.trace)
        try:
            loop.run()
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)
        loop.call_soon(loop.stop)
        loop.run()
    return interrupter, called


@pytest.mark.skipif(
    sys.version_info >= (3, 12),
    reason="from 3.12 on a trace function hears of no instruction of what runs but once",
)
def test_exception_anywhere_neither_loses_nor_repeats_a_callback() -> None:
    run_call_soon_callbacks(-1)
    count = run_call_soon_callbacks(-1)[0].count
    assert count > 10
    for at in range(count):
        interrupter, called = run_call_soon_callbacks(at)
        assert called == ["a", "b", "c"], interrupter.where


def forget_unfinished_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Registry, "resume", lambda self: None)


def remove_callbacks_before_calling_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def run_soon(self: Loop) -> None:
        for _ in range(len(self._soon)):
            callback = self._soon.popleft()
            callback()

    # It is distinguished from the package's functions by its file.
    run_soon.__code__ = run_soon.__code__.replace(co_filename=Loop._run_soon.__code__.co_filename)
    monkeypatch.setattr(Loop, "_run_soon", run_soon)


def record_signals_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Waker.add_signal

    def add_signal(self: Waker, number: int, callback: Callback) -> None:
        try:
            original(self, number, callback)
        except BaseException:
            self._handled.pop(number, None)
            raise

    monkeypatch.setattr(Waker, "add_signal", add_signal)


@not_on_3_12
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.parametrize(
    ("story", "sabotage"),
    [
        ("connect: silent", forget_unfinished_steps),
        ("waking", remove_callbacks_before_calling_them),
        ("signals", record_signals_too_late),
    ],
)
def test_sabotage_that_leaves_something_half_done_is_detected(
    story: str, sabotage: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    sabotage(monkeypatch)
    cut_short(story, -1, "epoll")
    count = cut_short(story, -1, "epoll")[0].count
    found = any(cut_short(story, at, "epoll")[1] for at in range(count))
    gc.collect()
    assert found


@not_on_3_12
@pytest.mark.parametrize("handler", [*map(closes, range(5)), adds_a_timer])
@pytest.mark.parametrize("backend", BACKENDS)
def test_signal_handler_may_close_sockets_and_add_timers_anywhere(
    backend: str, handler: Callable[[Story], None]
) -> None:
    handled(-1, backend, handler)
    count = handled(-1, backend, handler)[0].count
    found: dict[str, list[str]] = {}
    for at in places(count, 250 if REQUIRED else 15):
        interrupter, wrong = handled(at, backend, handler)
        if wrong:
            found[interrupter.where or "nowhere"] = wrong
    assert found == {}
    assert count > 200


@pytest.mark.parametrize("backend", BACKENDS)
def test_real_signal_leaves_nothing_half_done(backend: str) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chooser = random.Random(seed)
    hits = 0
    tries = 3000 if REQUIRED else 200
    for tried in range(20 * tries):
        # How many of them hit the package depends on the machine's current speed.
        if tried >= tries and hits > 20:
            break
        where, wrong = interrupted_by_signal(chooser.uniform(1e-5, 2e-3), backend)
        if where:
            hits += 1
            assert wrong == [], where
    assert hits > 20


def test_real_signal_does_not_leave_the_lock_of_all_threads_held() -> None:
    """CPython 3.14 may run a handler after taking a lock and before its `with` begins."""
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        for _ in range(200):
            with suppress(KeyboardInterrupt):
                signal.setitimer(signal.ITIMER_REAL, 3e-5)
                while True:
                    with alone:
                        pass
            assert lock_left_taken() == []
    finally:
        signal.signal(signal.SIGALRM, before)


def test_story_interrupted_in_logging_leaves_other_threads_able_to_log() -> None:
    with suppress(KeyboardInterrupt), complaints():
        vars(logging)["_lock"].acquire()
        raise KeyboardInterrupt
    thread = threading.Thread(target=logging.getLogger, args=("of another thread",), daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive()


# --- handlers that return -------------------------------------------------------------------------

CONNECTIONS = 4
AMOUNT = 4 << 20


class Echo(Socket):
    """Echoes what it reads; reads no more while that is queued."""

    __slots__ = ()

    def event_read(self) -> None:
        data = self.read(10_000)
        if data is None:
            self.close("end")
        elif data and not self.write(data):
            self.watch_read(False)

    def event_write(self) -> None:
        if self.write(None):
            self.watch_read(True)

    def event_err(self) -> None:
        self.close("error")

    event_hup = event_err


def receive_all(end: socket.socket, into: bytearray) -> None:
    while piece := end.recv(1 << 16):
        into += piece


def send_all(end: socket.socket, data: bytes) -> None:
    end.sendall(data)
    end.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_byte_arrives_despite_a_thousand_signals_a_second(backend: str) -> None:
    alarms = 0

    def count(number: int, frame: FrameType | None) -> None:
        nonlocal alarms
        alarms += 1

    sent = [random.Random(seed).randbytes(AMOUNT) for seed in range(CONNECTIONS)]
    got = [bytearray() for _ in sent]
    pairs = [socket.socketpair() for _ in sent]
    threads = []
    for (_, far), data, into in zip(pairs, sent, got):
        threads.append(threading.Thread(target=send_all, args=(far, data)))
        threads.append(threading.Thread(target=receive_all, args=(far, into)))
    before = signal.signal(signal.SIGALRM, count)
    with Loop(backend) as loop:
        for near, _ in pairs:
            near.setblocking(False)
            Echo(near, loop).watch_read(True)
        loop.set_post_loop_callback(lambda sockets, _: bool(sockets))
        for thread in threads:
            thread.start()
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        try:
            loop.run()
            # However fast the loop was, there must have been enough signals for a test.
            while alarms < 50:
                signal.pause()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
    for thread in threads:
        thread.join()
    for _, far in pairs:
        far.close()
    assert [bytes(each) for each in got] == sent


def test_signal_ends_a_wait_and_its_handler_may_stop_the_loop() -> None:
    with Loop() as loop:
        before = signal.signal(signal.SIGALRM, lambda *_: loop.stop())
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
            loop.run()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


def test_exception_of_a_signal_handler_leaves_the_wait() -> None:
    with Loop() as loop:
        before = signal.signal(signal.SIGALRM, signal.default_int_handler)
        # Not before the loop runs, however busy the machine is: nothing else handles it.
        loop.add_timer(0, lambda: signal.setitimer(signal.ITIMER_REAL, 0.01))
        try:
            with pytest.raises(KeyboardInterrupt):
                loop.run()
        finally:
            signal.signal(signal.SIGALRM, before)
        near, far = socket.socketpair()
        near.setblocking(False)
        echo = Echo(near, loop)
        echo.watch_read(True)
        loop.set_post_loop_callback(lambda *_: False)
        with near, far:
            far.sendall(b"still here")
            loop.run()
            assert os.read(far.fileno(), 100) == b"still here"


def test_reopened_object_interrupted_in_its_second_close_is_closed_completely(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The remaining steps for its second descriptor were done for its first, which it had lost."""
    one, _ = world.socketpair()
    other, _ = world.socketpair()
    obj = Recorder(one, world.loop)
    first, second = one.fileno(), other.fileno()
    obj.close("reconnects")
    Recorder.__init__(obj, other, world.loop)
    poller = POLLERS[world.backend]
    call = poller.unregister
    unregistered: list[int] = []

    def interrupted(self: Poller, fd: int, events: int) -> None:
        unregistered.append(fd)
        if len(unregistered) == 1:
            raise KeyboardInterrupt
        call(self, fd, events)

    monkeypatch.setattr(poller, "unregister", interrupted)
    with pytest.raises(KeyboardInterrupt):
        obj.close("gives up")
    world.turn()
    assert unregistered == [second, second] and caplog.text == ""
    assert not world.is_open(first) and not world.is_open(second)
    assert world.loop.descriptor_map == {}


@pytest.mark.parametrize("behind", [True, False], ids=["behind the call", "before the call"])
@pytest.mark.parametrize("verb", ["register", "modify", "unregister"])
def test_timeout_error_of_a_signal_handler_is_not_taken_for_a_failed_call(
    world: World, verb: str, behind: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is an OSError, but from a handler, which may run before or after the call."""
    one, two = world.socketpair()
    poller = POLLERS[world.backend]
    call = getattr(poller, verb)
    made: list[str] = []

    def interrupted(*arguments: object) -> None:
        if made:
            call(*arguments)
            return
        made.append(verb)
        if behind:
            call(*arguments)
        raise TimeoutError("a handler's")

    obj = None if verb == "register" else Recorder(one, world.loop)
    monkeypatch.setattr(poller, verb, interrupted)
    with pytest.raises(TimeoutError, match="a handler's"):
        if obj is None:
            Recorder(one, world.loop)
        elif verb == "modify":
            obj.watch_read(True)
        else:
            obj.close()
    monkeypatch.undo()
    if verb == "unregister":
        assert obj is not None and obj.closed
        fd = one.fileno()
        world.turn()
        assert world.loop.watched_sockets == 0 and not world.is_open(fd)
        return
    # It has had no effect, and can be done again.
    obj = obj or Recorder(one, world.loop)
    assert not obj.event_watch & IN
    two.send(b"x")
    world.turn()
    assert obj.events == []
    obj.watch_read(True)
    world.until(lambda: obj.got == b"x")
