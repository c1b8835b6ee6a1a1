"""What wakes a waiting loop: other threads, signals, and the loop itself; and that a program that
doesn't need this doesn't pay for it."""

from __future__ import annotations

import ctypes
import errno
import os
import select
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import pytest

from danga_raw import Loop, Socket
from danga_raw._kernel import HERE, asked
from danga_raw._libc import libc
from danga_raw.timers import Timer
from danga_raw.trace import Trace
from tests.clients import PATIENCE
from tests.needs import ROOT
from tests.world import POLLERS

BACKENDS = ["epoll", "poll"]


@pytest.fixture(params=BACKENDS)
def loop(request: pytest.FixtureRequest) -> Iterator[Loop]:
    with Loop(request.param) as loop:
        # A test that would hang ends instead, and fails.
        loop.add_timer(PATIENCE, loop.stop)
        yield loop


def turn(loop: Loop) -> None:
    loop.set_loop_timeout(0)
    loop.set_post_loop_callback(lambda *_: False)
    loop.run()
    loop.set_post_loop_callback(None)
    loop.set_loop_timeout(-1)


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


# --- call_soon ------------------------------------------------------------------------------------


def test_call_soon_callbacks_run_once_and_in_order_in_the_next_turn(loop: Loop) -> None:
    said: list[int] = []
    for number in range(3):
        loop.call_soon(partial(said.append, number))
    assert said == []
    turn(loop)
    assert said == [0, 1, 2]
    turn(loop)
    assert said == [0, 1, 2]


def test_callback_added_by_a_call_soon_callback_waits_for_the_next_turn(loop: Loop) -> None:
    said: list[str] = []

    def again() -> None:
        said.append("soon")
        loop.call_soon(again)

    loop.call_soon(again)
    for turns in (1, 2, 3):
        turn(loop)
        assert said == ["soon"] * turns


def test_raising_callback_does_not_lose_those_behind_it(loop: Loop) -> None:
    said: list[str] = []

    def broken() -> None:
        raise RuntimeError("on purpose")

    loop.call_soon(broken)
    loop.call_soon(lambda: said.append("behind"))
    with pytest.raises(RuntimeError, match="on purpose"):
        turn(loop)
    loop.set_post_loop_callback(None)
    turn(loop)
    assert said == ["behind"]
    loop.on_exception = lambda obj, error: said.append(str(error))
    loop.call_soon(broken)
    loop.call_soon(lambda: said.append("behind"))
    turn(loop)
    assert said == ["behind", "on purpose", "behind"]


def test_call_soon_callback_may_run_the_loop_which_runs_the_others(loop: Loop) -> None:
    said: list[str] = []

    def first() -> None:
        loop.run()
        said.append("first")

    loop.call_soon(first)
    loop.call_soon(lambda: said.append("second"))
    loop.set_post_loop_callback(lambda *_: False)
    loop.run()
    assert said == ["second", "first"]


@pytest.mark.parametrize("callback", [None, 5, "name"])
def test_what_is_not_callable_is_rejected_where_it_is_given(loop: Loop, callback: object) -> None:
    for give in (
        loop.call_soon,
        loop.call_soon_threadsafe,
        lambda given: loop.add_signal_handler(signal.SIGUSR1, given),
    ):
        with pytest.raises(TypeError, match="callable"):
            give(callback)  # type: ignore[arg-type]  # what is asked here
    assert loop._registry.waker is None


# --- other threads --------------------------------------------------------------------------------


def test_call_soon_threadsafe_ends_the_wait(loop: Loop) -> None:
    said: list[int] = []

    def work() -> None:
        loop.call_soon_threadsafe(lambda: said.append(threading.get_ident()))
        loop.call_soon_threadsafe(loop.stop)

    thread = threading.Thread(target=work)
    loop.call_soon(thread.start)
    loop.run()
    thread.join()
    assert said == [threading.get_ident()]


def test_loop_that_is_already_waiting_is_woken_by_the_first_threadsafe_call(loop: Loop) -> None:
    """On poll nothing added later could end a wait in progress."""
    waits = threading.Event()
    here, there = socket.socketpair()

    def work() -> None:
        waits.wait(PATIENCE)
        # It says so before it waits, so give it time to start waiting.
        threading.Event().wait(0.1)
        loop.call_soon_threadsafe(loop.stop)

    thread = threading.Thread(target=work)
    thread.start()
    loop.add_other_fds({here.fileno(): lambda state: None})
    loop.call_soon(waits.set)
    loop.run()
    thread.join()
    here.close()
    there.close()


def test_calls_of_many_threads_arrive_once_and_in_each_threads_order(loop: Loop) -> None:
    threads, calls = 4, 500
    got: list[tuple[int, int]] = []

    def heard(thread: int, number: int) -> None:
        got.append((thread, number))
        if len(got) == threads * calls:
            loop.stop()

    def work(thread: int) -> None:
        for number in range(calls):
            loop.call_soon_threadsafe(partial(heard, thread, number))

    started = [threading.Thread(target=work, args=(thread,)) for thread in range(threads)]
    for each in started:
        each.start()
    loop.run()
    for each in started:
        each.join()
    for own in range(threads):
        assert [number for thread, number in got if thread == own] == list(range(calls))


def test_wake_up_that_arrives_while_the_waker_is_read_is_not_lost(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A byte that another thread writes just before the loop reads is read with the rest."""
    said: list[str] = []
    read = libc.read

    def read_later(fd: int, count: int) -> bytes:
        monkeypatch.setattr(libc, "read", read)
        elsewhere("while it looks")
        return read(fd, count)

    def elsewhere(what: str) -> None:
        thread = threading.Thread(
            target=loop.call_soon_threadsafe, args=(partial(said.append, what),)
        )
        thread.start()
        thread.join()

    elsewhere("before")
    monkeypatch.setattr(libc, "read", read_later)
    for _ in range(2):
        turn(loop)
    assert said == ["before", "while it looks"]
    elsewhere("behind")
    waker = loop._registry.waker
    assert waker is not None
    assert select.select([waker.fileno()], [], [], 0)[0], "nothing ends the next wait"


def test_many_threadsafe_calls_before_the_next_turn_cost_one_write(loop: Loop) -> None:
    loop.call_soon_threadsafe(lambda: None)
    turn(loop)
    turn(loop)
    with Trace() as calls:
        for _ in range(1000):
            loop.call_soon_threadsafe(lambda: None)
    assert [call.name for call in calls] == ["write"]
    with Trace() as calls:
        turn(loop)
        turn(loop)
    assert [call.name for call in calls].count("read") == 1


@pytest.mark.parametrize("used", [True, False], ids=["used before", "first use"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_stop_from_another_thread_ends_a_wait(backend: str, used: bool) -> None:
    with Loop(backend) as loop:
        loop.add_timer(5, loop.stop)
        if used:
            loop.call_soon_threadsafe(lambda: None)
        # Whether it is waiting by then or not, it must be woken.
        thread = threading.Timer(0.05, loop.stop)
        with Trace() as calls:
            thread.start()
            loop.run()
            thread.join()
    waits = [call for call in calls if call.name in ("epoll_wait", "poll")]
    assert all(call.result for call in waits), waits


def test_stop_opens_no_waker_for_a_loop_that_ends_meanwhile() -> None:
    for _ in range(100):
        loop, runs = Loop(), threading.Event()

        def serve(loop: Loop = loop, runs: threading.Event = runs) -> None:
            with loop:
                loop.call_soon(runs.set)
                loop.run()

        server = threading.Thread(target=serve)
        server.start()
        runs.wait()
        stoppers = [threading.Thread(target=loop.stop) for _ in range(2)]
        for thread in stoppers:
            thread.start()
        for thread in (*stoppers, server):
            thread.join()
        assert loop._registry.waker is None


def test_stop_on_the_loops_own_thread_opens_no_waker(loop: Loop) -> None:
    loop.call_soon(loop.stop)
    with Trace() as calls:
        loop.stop()
        loop.run()
        loop.run()
        thread = threading.Thread(target=loop.stop)  # There is no run that it could wake.
        thread.start()
        thread.join()
        loop.run()
    assert calls == []


# --- signals --------------------------------------------------------------------------------------


def test_signal_callback_runs_between_two_batches(loop: Loop) -> None:
    said: list[str] = []
    ends = [socket.socketpair() for _ in range(2)]

    class Hears(Socket):
        def event_read(self) -> None:
            self.read(10)
            said.append("before")
            os.kill(os.getpid(), signal.SIGUSR1)
            said.append("behind")

    for here, there in ends:
        here.setblocking(False)
        Hears(here, loop).watch_read(True)
        there.send(b"x")

    def heard() -> None:
        said.append("signal")
        loop.stop()

    loop.add_signal_handler(signal.SIGUSR1, heard)
    loop.run()
    assert said[:5] == ["before", "behind", "before", "behind", "signal"]
    for here, there in ends:
        here.close()
        there.close()


def test_signal_ends_the_wait_whenever_it_arrives() -> None:
    """Even between the last check and the wait, which a Python signal handler would not end."""
    code = """
import os, signal, sys, threading
from danga_raw import Loop
with Loop(sys.argv[1]) as loop:
    count = 0
    def heard():
        global count
        count += 1
        if count == 300:
            loop.stop()
        else:
            os.write(1, b".")
    loop.add_signal_handler(signal.SIGTERM, heard)
    os.write(1, b".")
    loop.run()
print("done")
"""
    for backend in BACKENDS:
        with subprocess.Popen(
            [sys.executable, "-c", code, backend], cwd=ROOT, stdout=subprocess.PIPE
        ) as process:
            try:
                assert process.stdout is not None
                for _ in range(300):
                    assert process.stdout.read(1) == b"."
                    process.send_signal(signal.SIGTERM)
                assert process.stdout.read() == b"done\n"
            finally:
                process.kill()


def test_signal_handlers_are_restored_when_removed_and_when_the_loop_closes(loop: Loop) -> None:
    before = signal.getsignal(signal.SIGUSR1)
    assert loop.remove_signal_handler(signal.SIGUSR1) is False
    loop.add_signal_handler(signal.SIGUSR1, lambda: None)
    assert signal.getsignal(signal.SIGUSR1) != before
    assert loop.remove_signal_handler(signal.SIGUSR1) is True
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL
    assert loop.remove_signal_handler(signal.SIGUSR1) is False
    loop.add_signal_handler(signal.SIGUSR1, lambda: None)
    loop.close()
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL
    assert signal.set_wakeup_fd(-1) == -1


def test_signal_that_cannot_be_handled_is_rejected(loop: Loop) -> None:
    for number, kind in ((signal.SIGKILL, OSError), (0, ValueError), (1000, ValueError)):
        with pytest.raises(kind):
            loop.add_signal_handler(number, loop.stop)
    # The C library refuses those that it uses itself, without a system call that a trace would see.
    kept = set(range(1, signal.NSIG)) - signal.valid_signals()
    for number in kept:
        with Trace() as calls, pytest.raises(ValueError, match=f"not {number}"):
            loop.add_signal_handler(number, loop.stop)
        assert not any(call.name == "rt_sigaction" for call in calls)
    assert kept or sys.platform != "linux"
    refused: list[BaseException] = []

    def elsewhere() -> None:
        try:
            loop.add_signal_handler(signal.SIGUSR1, loop.stop)
        except ValueError as error:
            refused.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert len(refused) == 1


# --- nobody else pays -----------------------------------------------------------------------------


def test_waker_is_invisible_and_removed_by_reset(loop: Loop) -> None:
    before = descriptors()
    loop.call_soon_threadsafe(lambda: None)
    turn(loop)
    assert len(descriptors() - before) >= 2
    assert loop.watched_sockets == 0
    assert dict(loop.descriptor_map) == {} and dict(loop.other_fds) == {}
    loop.reset()
    assert descriptors() <= before
    said: list[int] = []
    loop.call_soon_threadsafe(lambda: said.append(1))
    turn(loop)
    assert said == [1]


def test_program_that_wakes_no_loop_opens_no_waker(loop: Loop) -> None:
    with Trace() as calls:
        loop.call_soon(lambda: None)
        loop.add_timer(0, lambda: None)
        loop.stop()
        turn(loop)
    assert not {call.name for call in calls} & {"pipe2", "pipe", "write", "rt_sigaction"}
    assert loop._registry.waker is None


def test_forked_child_opens_its_own_waker_after_reset(loop: Loop) -> None:
    loop.call_soon_threadsafe(lambda: None)
    turn(loop)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            loop.reset()
            loop.call_soon_threadsafe(loop.stop)
            loop.run()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    said: list[int] = []
    loop.call_soon_threadsafe(lambda: said.append(1))
    turn(loop)
    assert said == [1]


def test_failure_to_open_a_waker_is_raised_and_the_next_attempt_succeeds(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:

        def refuse(*_: object) -> int:
            raise OSError(errno.EMFILE, "no descriptor")

        patch.setattr("danga_raw._waker.libc.pipe2", refuse)
        for attempt in (loop.call_soon_threadsafe, lambda f: loop.add_signal_handler(10, f)):
            with pytest.raises(OSError, match="no descriptor"):
                attempt(loop.stop)
    said: list[int] = []
    loop.call_soon_threadsafe(lambda: said.append(1))
    turn(loop)
    assert said == [1]


@pytest.mark.parametrize("name", ["pipe2", "pipe"])
def test_refused_pipe_is_reported_with_the_kernels_reason(
    loop: Loop, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        ctypes.set_errno(errno.ENFILE)
        return -1

    with monkeypatch.context() as patch:
        if name == "pipe":
            patch.delattr(libc, "pipe2")
        patch.setattr(libc, name, refuse)
        with pytest.raises(OSError, match=rf"{name}\(\)") as caught:
            loop.call_soon_threadsafe(loop.stop)
    assert caught.value.errno == errno.ENFILE and loop._registry.waker is None


def test_where_there_is_no_pipe2_a_waker_neither_blocks_nor_outlives_an_exec(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(libc, "pipe2")
    loop.call_soon_threadsafe(loop.stop)
    waker = loop._registry.waker
    assert waker is not None
    for fd in waker._ends:
        assert not os.get_inheritable(fd) and not os.get_blocking(fd)
    loop.run()


# --- never in the midst of a batch ----------------------------------------------------------------


@pytest.mark.parametrize("way", ["soon", "thread", "signal"])
def test_callback_requested_during_a_batch_runs_after_it(loop: Loop, way: str) -> None:
    said: list[str] = []
    ends = [socket.socketpair() for _ in range(3)]

    def ask() -> None:
        if way == "soon":
            loop.call_soon(lambda: said.append("called"))
        elif way == "signal":
            signal.raise_signal(signal.SIGUSR1)
        else:
            thread = threading.Thread(
                target=loop.call_soon_threadsafe, args=(lambda: said.append("called"),)
            )
            thread.start()
            thread.join()

    class Asks(Socket):
        def event_read(self) -> None:
            self.read(10)
            if not said:
                ask()
            said.append("read")

    if way == "signal":
        loop.add_signal_handler(signal.SIGUSR1, lambda: said.append("called"))
    for here, there in ends:
        here.setblocking(False)
        Asks(here, loop).watch_read(True)
        there.send(b"x")
    for _ in range(3):
        turn(loop)
    assert said == ["read"] * 3 + ["called"]
    for here, there in ends:
        here.close()
        there.close()


# --- from signals' handlers of Python's own -------------------------------------------------------


@pytest.fixture
def usual_usr1() -> Iterator[None]:
    before = signal.getsignal(signal.SIGUSR1)
    yield
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("used", [True, False], ids=["used before", "first use"])
def test_python_signal_handler_may_use_call_soon_threadsafe(
    loop: Loop, used: bool, usual_usr1: None
) -> None:
    """It interrupts the wait, and runs before the wait resumes, so even its first use ends it."""
    said: list[int] = []

    def handler(*_: object) -> None:
        loop.call_soon_threadsafe(lambda: said.append(threading.get_ident()))
        loop.call_soon_threadsafe(loop.stop)

    signal.signal(signal.SIGUSR1, handler)
    if used:
        loop.call_soon_threadsafe(lambda: None)
        turn(loop)
    # Whether it is waiting by then or not, it must be woken.
    main = threading.main_thread().ident
    assert main is not None
    timer = threading.Timer(0.05, signal.pthread_kill, (main, signal.SIGUSR1))
    timer.start()
    loop.run()
    timer.join()
    assert said == [main]


def test_stop_in_a_python_signal_handler_ends_the_wait(loop: Loop, usual_usr1: None) -> None:
    main = threading.main_thread().ident
    assert main is not None
    loop.call_soon_threadsafe(lambda: None)
    signal.signal(signal.SIGUSR1, lambda *_: loop.stop())
    for _ in range(20):
        thread = threading.Thread(target=signal.pthread_kill, args=(main, signal.SIGUSR1))
        loop.call_soon(thread.start)
        loop.run()
        thread.join()


# --- signals, and what was there before -----------------------------------------------------------


def test_default_sigint_handler_is_restored_on_removal(loop: Loop) -> None:
    said: list[str] = []
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    loop.add_signal_handler(signal.SIGINT, lambda: said.append("interrupt"))
    signal.raise_signal(signal.SIGINT)
    turn(loop)
    turn(loop)
    assert said == ["interrupt"]
    assert loop.remove_signal_handler(signal.SIGINT) is True
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("end", ["remove", "reset"])
@pytest.mark.parametrize("set_since", ["a program's own", "another loop's"])
def test_signal_handler_set_later_outlives_the_loop(
    loop: Loop, usual_usr1: None, set_since: str, end: str
) -> None:
    """A forked child that sets its signals, and then calls `reset`, has them."""
    said: list[str] = []
    with Loop() as other:
        loop.add_signal_handler(signal.SIGUSR1, lambda: said.append("old"))
        if set_since == "another loop's":
            other.add_signal_handler(signal.SIGUSR1, lambda: said.append("new"))
        else:
            signal.signal(signal.SIGUSR1, lambda *_: said.append("new"))
        newest = signal.getsignal(signal.SIGUSR1)
        if end == "remove":
            assert loop.remove_signal_handler(signal.SIGUSR1) is True
            assert loop.remove_signal_handler(signal.SIGUSR1) is False
        else:
            loop.reset()
        assert signal.getsignal(signal.SIGUSR1) == newest
        signal.raise_signal(signal.SIGUSR1)
        turn(other)
        assert said == ["new"]


@pytest.mark.parametrize("way", ["remove", "reset", "close"])
def test_previous_wakeup_fd_is_restored(loop: Loop, way: str) -> None:
    theirs, written = os.pipe()
    os.set_blocking(written, False)
    os.set_blocking(theirs, False)
    before = signal.set_wakeup_fd(written)
    try:
        loop.add_signal_handler(signal.SIGUSR1, lambda: None)
        loop.add_signal_handler(signal.SIGUSR2, lambda: None)
        if way == "remove":
            loop.remove_signal_handler(signal.SIGUSR1)
            signal.raise_signal(signal.SIGUSR2)
            with pytest.raises(BlockingIOError):
                os.read(theirs, 10)
            loop.remove_signal_handler(signal.SIGUSR2)
        else:
            getattr(loop, way)()
        assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL
        assert signal.getsignal(signal.SIGUSR2) == signal.SIG_DFL
        assert signal.set_wakeup_fd(written) == written
    finally:
        signal.set_wakeup_fd(before)
        os.close(theirs)
        os.close(written)


def test_wakeup_fd_set_by_someone_else_meanwhile_is_left_alone(loop: Loop) -> None:
    theirs, written = os.pipe()
    os.set_blocking(written, False)
    try:
        loop.add_signal_handler(signal.SIGUSR1, lambda: None)
        signal.set_wakeup_fd(written)
        loop.close()
        assert signal.set_wakeup_fd(-1) == written
    finally:
        signal.set_wakeup_fd(-1)
        os.close(theirs)
        os.close(written)


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("theirs", [True, False])
def test_loops_with_signal_handlers_may_close_in_any_order(
    loop: Loop, first: int, theirs: bool
) -> None:
    """The descriptor that signals wrote to before may belong to a loop that is closed by now."""
    ends = os.pipe()
    os.set_blocking(ends[1], False)
    before = ends[1] if theirs else -1
    signal.set_wakeup_fd(before)
    numbers = (signal.SIGUSR1, signal.SIGUSR2)
    said: list[int] = []
    try:
        with Loop(loop.backend) as another:
            loops = (loop, another)
            for each, number in zip(loops, numbers):
                each.add_signal_handler(number, partial(said.append, number))
            loops[first].close()
            woken = loops[1 - first]._registry.waker
            written = signal.set_wakeup_fd(-1)
            signal.set_wakeup_fd(written, warn_on_full_buffer=False)
            assert woken is not None and written == woken._ends[1]
            signal.raise_signal(numbers[1 - first])
            turn(loops[1 - first])
            assert said == [numbers[1 - first]]
            loops[1 - first].close()
            assert signal.set_wakeup_fd(-1) == before
    finally:
        signal.set_wakeup_fd(-1)
        for end in ends:
            os.close(end)


def test_previous_wakeup_fd_is_not_restored_once_it_is_closed(loop: Loop) -> None:
    ends = os.pipe()
    os.set_blocking(ends[1], False)
    signal.set_wakeup_fd(ends[1])
    try:
        loop.add_signal_handler(signal.SIGUSR1, lambda: None)
        for end in ends:
            os.close(end)
        loop.close()
        assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL
    finally:
        assert signal.set_wakeup_fd(-1) == -1


def test_waker_that_could_not_be_registered_is_registered_in_the_next_run(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop.call_soon_threadsafe(lambda: None)

    def refuse(self: object, fd: int, events: int) -> None:
        raise OSError(errno.ENOMEM, "no memory")

    with monkeypatch.context() as patched:
        patched.setattr(POLLERS[loop.backend], "register", refuse)
        with pytest.raises(OSError, match="no memory"):
            turn(loop)
    turn(loop)
    waker = loop._registry.waker
    assert waker is not None and loop._registry.open().holds(waker.fileno(), 1)
    thread = threading.Thread(target=lambda: loop.call_soon_threadsafe(loop.stop))
    thread.start()
    loop.run()
    thread.join()


def test_waker_pipe_is_closed_exactly_once_even_if_close_fails(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before = descriptors()
    loop.call_soon_threadsafe(lambda: None)
    closed: list[int] = []

    def close(fd: int) -> None:
        closed.append(fd)
        os.close(fd)
        raise OSError(errno.EIO, "on purpose")

    with monkeypatch.context() as patched:
        patched.setattr(libc, "close", close)
        loop.close()
    assert len(closed) == len(set(closed)) and descriptors() == before
    assert caplog.text.count("close(") == len(closed)


def test_signal_handler_rejected_in_another_thread_leaves_the_existing_one(
    loop: Loop, usual_usr1: None
) -> None:
    loop.add_signal_handler(signal.SIGUSR1, lambda: None)
    refused: list[bool] = []

    def elsewhere() -> None:
        with pytest.raises(ValueError):
            loop.add_signal_handler(signal.SIGUSR1, lambda: None)
        refused.append(True)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    loop.close()
    assert refused and signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL


def test_loop_whose_pipe_is_filled_by_signals_can_still_be_woken(loop: Loop) -> None:
    loop.call_soon_threadsafe(lambda: None)
    turn(loop)
    waker = loop._registry.waker
    assert waker is not None
    with pytest.raises(BlockingIOError):
        while True:
            os.write(waker._ends[1], bytes(4096))
    said: list[int] = []
    loop.call_soon_threadsafe(lambda: said.append(1))
    turn(loop)
    assert said == [1]


def test_nested_run_may_be_the_first_to_handle_a_wake_up(
    loop: Loop,
) -> None:
    class Nested(Socket):
        def event_read(self) -> None:
            self.read(10)
            loop.run()  # A turn, as that around it.

    near, far = socket.socketpair()
    near.setblocking(False)
    obj = Nested(near, loop)
    obj.watch_read(True)
    far.sendall(b"x")
    said: list[int] = []
    loop.call_soon_threadsafe(lambda: said.append(1))
    poller = loop._registry.poller
    turn(loop)
    assert said == [1] and loop._registry.poller is poller
    obj.close()
    far.close()


def test_new_signal_handler_replaces_the_old_one(loop: Loop) -> None:
    said: list[str] = []
    loop.add_signal_handler(signal.SIGUSR1, lambda: said.append("old"))
    loop.add_signal_handler(signal.SIGUSR1, lambda: said.append("new"))
    signal.raise_signal(signal.SIGUSR1)
    turn(loop)
    turn(loop)
    assert said == ["new"]
    assert loop.remove_signal_handler(signal.SIGUSR1) is True
    assert loop.remove_signal_handler(signal.SIGUSR1) is False


@pytest.mark.parametrize("way", ["soon", "thread", "signal"])
@pytest.mark.parametrize("on_exception", [True, False])
def test_exception_in_a_callback_is_treated_like_that_of_any_handler(
    loop: Loop, way: str, on_exception: bool
) -> None:
    def broken() -> None:
        raise RuntimeError("on purpose")

    told: list[tuple[object, str]] = []
    if on_exception:
        loop.on_exception = lambda obj, error: told.append((obj, str(error)))
    if way == "soon":
        loop.call_soon(broken)
    elif way == "thread":
        loop.call_soon_threadsafe(broken)
    else:
        loop.add_signal_handler(signal.SIGUSR1, broken)
        signal.raise_signal(signal.SIGUSR1)
    if on_exception:
        turn(loop)
        assert told == [(None, "on purpose")]
    else:
        with pytest.raises(RuntimeError, match="on purpose"):
            turn(loop)
    said: list[int] = []
    loop.set_post_loop_callback(None)
    loop.call_soon_threadsafe(lambda: said.append(1))
    turn(loop)
    assert said == [1], "the loop can be run again"


# --- forks, and closing ---------------------------------------------------------------------------


def test_waking_a_child_does_not_wake_its_parent(loop: Loop) -> None:
    heard: list[int] = []
    loop.add_signal_handler(signal.SIGUSR1, lambda: heard.append(os.getpid()))
    turn(loop)
    waker = loop._registry.waker
    assert waker is not None
    child = os.fork()
    if child == 0:
        status = 1
        try:
            loop.reset()
            loop.add_signal_handler(signal.SIGUSR1, loop.stop)
            signal.raise_signal(signal.SIGUSR1)
            loop.run()
            loop.call_soon_threadsafe(loop.stop)
            loop.run()
            loop.close()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    with pytest.raises(BlockingIOError):
        os.read(waker.fileno(), 1)
    signal.raise_signal(signal.SIGUSR1)
    turn(loop)
    turn(loop)
    assert heard == [os.getpid()]


@pytest.mark.parametrize("way", ["reset", "close"])
def test_reset_and_close_drop_the_waker_and_pending_callbacks(loop: Loop, way: str) -> None:
    before = descriptors()
    said: list[str] = []
    loop.call_soon(lambda: said.append("soon"))
    loop.call_soon_threadsafe(lambda: said.append("thread"))
    with Trace() as calls:
        getattr(loop, way)()
    assert [call.name for call in calls].count("close") >= 2
    assert descriptors() <= before
    turn(loop)
    assert said == []


def test_waker_is_not_counted_and_survives_the_replacement_of_other_fds(loop: Loop) -> None:
    """Nor do the manual's class methods count it."""
    loop.call_soon_threadsafe(lambda: None)
    turn(loop)
    assert "0 sockets, 0 other fds" in repr(loop)
    seen: list[tuple[int, int]] = []

    def after(sockets: Mapping[int, Socket], others: Mapping[int, object]) -> bool:
        seen.append((len(sockets), len(others)))
        return False

    loop.set_post_loop_callback(after)
    loop.call_soon_threadsafe(lambda: None)
    loop.run()
    loop.other_fds = {}
    loop.set_post_loop_callback(None)
    assert seen == [(0, 0)] and loop.to_close == []
    woken: list[int] = []
    loop.call_soon_threadsafe(lambda: woken.append(1))
    turn(loop)
    assert woken == [1], "what replaces all other fds leaves it alone"


def test_waking_a_closed_loop_never_writes_to_a_reused_fd(loop: Loop) -> None:
    """The number of the pipe's end may belong to another file by then."""
    loop.call_soon_threadsafe(lambda: None)
    turn(loop)
    turn(loop)
    waker = loop._registry.waker
    assert waker is not None
    loop.close()
    pipes = [os.pipe() for _ in range(4)]
    with Trace() as calls:
        waker.wake()
    assert list(calls) == []
    for end in (end for pipe in pipes for end in pipe):
        os.close(end)


def test_wake_up_that_races_with_close_never_writes_to_a_reused_fd(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the check that the pipe is open and the write, another thread may close it."""
    before = descriptors()
    loop.call_soon_threadsafe(lambda: None)
    turn(loop)
    writes, closed = threading.Event(), threading.Event()

    def late(fd: int, data: bytes) -> int:
        writes.set()
        assert closed.wait(PATIENCE)
        return os.write(fd, data)

    monkeypatch.setattr(libc, "write", late)
    thread = threading.Thread(target=loop.call_soon_threadsafe, args=(lambda: None,))
    thread.start()
    assert writes.wait(PATIENCE)
    loop.close()
    pipes = [os.pipe() for _ in range(4)]
    closed.set()
    thread.join()
    assert select.select([end for end, _ in pipes], [], [], 0) == ([], [], [])
    for end in (end for pipe in pipes for end in pipe):
        os.close(end)
    loop.close()
    assert descriptors() <= before, "who came last has closed the pipe"


def test_reset_waits_for_another_thread_that_is_registering_the_waker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watches, was_reset = threading.Event(), threading.Event()
    control = libc.epoll_ctl

    def late(epfd: int, op: int, fd: int, event: bytes) -> int:
        watches.set()
        was_reset.wait(0.2)  # It ends only if it does not wait for this thread.
        return control(epfd, op, fd, event)

    failures: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", failures.append)
    with Loop("epoll") as loop:
        turn(loop)
        monkeypatch.setattr(libc, "epoll_ctl", late)
        thread = threading.Thread(target=loop.call_soon_threadsafe, args=(lambda: None,))
        thread.start()
        assert watches.wait(PATIENCE)
        loop.reset()
        was_reset.set()
        thread.join()
        assert not failures


def test_wake_up_that_races_with_a_reset_is_not_lost(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The waker that it uses is closed, and nothing checks for callbacks added after the reset."""
    asks, waits = threading.Event(), threading.Event()
    said: list[str] = []
    timers: list[Timer] = []

    class Late(Loop):
        def call_soon(self, callback: Callable[[], object]) -> None:
            if threading.current_thread() is thread:
                asks.set()
                assert waits.wait(PATIENCE)
            super().call_soon(callback)

    late = Late(loop.backend)

    def forget() -> None:
        assert asks.wait(PATIENCE)
        late.reset()
        timers.append(late.add_timer(PATIENCE, late.stop))
        name = "poll" if loop.backend == "poll" else "epoll_wait"
        wait = getattr(libc, name)

        def waiting(*arguments: object) -> object:
            if arguments[-1] != 0:
                waits.set()
            return wait(*arguments)

        monkeypatch.setattr(libc, name, waiting)

    def heard() -> None:
        said.append("heard")
        late.stop()

    thread = threading.Thread(target=late.call_soon_threadsafe, args=(heard,))
    thread.start()
    late.call_soon(forget)
    late.run()
    thread.join()
    assert said == ["heard"] and timers[0].callback is not None
    late.close()


def test_waker_that_reuses_the_fd_of_an_object_still_ends_the_wait() -> None:
    """The poller may have an old entry for the number, but only the loop's own thread, which waits
    on that poller, may repair this."""
    near, far = socket.socketpair()
    near.setblocking(False)
    own = Loop("epoll")
    said: list[str] = []
    kept: list[int] = []

    def wake() -> None:
        time.sleep(0.1)  # By then the loop is most likely waiting.
        kept.append(os.dup(near.fileno()))  # So its entry stays.
        os.close(near.fileno())
        own.call_soon_threadsafe(lambda: said.append("heard"))
        own.call_soon_threadsafe(own.stop)

    with own, far:
        Socket(near, own).watch_read(True)
        turn(own)
        timer = own.add_timer(PATIENCE, own.stop)
        thread = threading.Thread(target=wake)
        thread.start()
        own.run()
        thread.join()
        assert said == ["heard"] and timer.callback is not None
        far.send(b"for who has the old entry")
        turn(own)
        with Trace() as calls:
            turn(own)
        waits = "epoll_wait", "epoll_pwait"  # The C library chooses which.
        assert [call.result for call in calls if call.name in waits] == [0]
    os.close(kept[0])


def test_close_in_another_thread_leaves_no_wakeup_fd_that_may_be_reused(
    loop: Loop, usual_usr1: None
) -> None:
    """Only the main thread can tell Python to write to another descriptor when a signal comes."""
    loop.add_signal_handler(signal.SIGUSR1, lambda: None)
    thread = threading.Thread(target=loop.close)
    thread.start()
    thread.join()
    here, there = socket.socketpair()  # with the lowest free numbers
    here.setblocking(False)
    with here, there:
        there.setblocking(False)
        signal.raise_signal(signal.SIGUSR1)
        for end in (here, there):
            with pytest.raises(BlockingIOError):
                end.recv(10)
    written = signal.set_wakeup_fd(-1)
    assert written >= 0 and stat.S_ISFIFO(os.fstat(written).st_mode)


def test_unused_features_cost_no_imports_and_no_calls() -> None:
    code = """
import socket, sys
from danga_raw import Loop, Socket
from danga_raw._libc import libc
from danga_raw.trace import Trace
import danga_raw.trace
before = set(sys.modules)
here, there = socket.socketpair()
here.setblocking(False)
class Echo(Socket):
    def event_read(self):
        data = self.read(10)
        if data is None:
            self.close("end")
            self.loop.stop()
        else:
            self.write(data)
            there.close()
there.send(b"x")
with Trace() as calls, Loop("epoll") as loop:
    Echo(here, loop).watch_read(True)
    loop.add_timer(0, lambda: None)
    loop.run()
print(*[call.name for call in calls if call.name != "clock_gettime"])
print(*sorted(name for name in set(sys.modules) if name in (
    "danga_raw._waker", "signal", "fcntl", "threading") and name not in before))
"""
    command = [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert result.returncode == 0, result.stderr
    calls, modules = result.stdout.splitlines()
    wait = asked("epoll_wait", HERE).name
    assert calls == (
        f"epoll_create1 epoll_ctl epoll_ctl {wait} read write {wait} read epoll_ctl close close"
    )
    assert modules == ""
