"""What wakes a loop that waits: other threads, signals, and the loop itself; and that nobody else pays
for it."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial

import pytest

from danga_raw import Loop, Socket
from danga_raw.trace import Trace
from tests.clients import PATIENCE
from tests.needs import ROOT

BACKENDS = ["epoll", "poll"]


@pytest.fixture(params=BACKENDS)
def loop(request: pytest.FixtureRequest) -> Iterator[Loop]:
    with Loop(request.param) as loop:
        # A test that would hang ends, and fails by what it finds.
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


def test_call_soon_is_called_in_the_next_turn_in_order_and_once(loop: Loop) -> None:
    said: list[int] = []
    for number in range(3):
        loop.call_soon(partial(said.append, number))
    assert said == []
    turn(loop)
    assert said == [0, 1, 2]
    turn(loop)
    assert said == [0, 1, 2]


def test_what_call_soon_adds_to_itself_waits_for_the_next_turn(loop: Loop) -> None:
    said: list[str] = []

    def again() -> None:
        said.append("soon")
        loop.call_soon(again)

    loop.call_soon(again)
    for turns in (1, 2, 3):
        turn(loop)
        assert said == ["soon"] * turns


def test_a_callback_that_raises_loses_none_behind_it(loop: Loop) -> None:
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


@pytest.mark.parametrize("callback", [None, 5, "name"])
def test_what_cannot_be_called_is_refused_where_it_is_given(loop: Loop, callback: object) -> None:
    for give in (
        loop.call_soon,
        loop.call_soon_threadsafe,
        lambda given: loop.add_signal_handler(signal.SIGUSR1, given),
    ):
        with pytest.raises(TypeError, match="callable"):
            give(callback)  # type: ignore[arg-type]  # what is asked here
    assert loop._registry.waker is None


# --- other threads --------------------------------------------------------------------------------


def test_another_thread_ends_the_wait(loop: Loop) -> None:
    said: list[int] = []

    def work() -> None:
        loop.call_soon_threadsafe(lambda: said.append(threading.get_ident()))
        loop.call_soon_threadsafe(loop.stop)

    thread = threading.Thread(target=work)
    loop.call_soon(thread.start)
    loop.run()
    thread.join()
    assert said == [threading.get_ident()]


def test_a_loop_that_waits_already_is_woken_for_the_first_time(loop: Loop) -> None:
    """On poll nothing that is added later could end a wait that has begun."""
    waits = threading.Event()
    here, there = socket.socketpair()

    def work() -> None:
        waits.wait(PATIENCE)
        # It says so before it waits, so leave it the time to be really there.
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


def test_every_call_of_many_threads_arrives_once_and_in_its_threads_order(loop: Loop) -> None:
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


def test_any_number_of_calls_before_the_loop_looks_cost_one_write(loop: Loop) -> None:
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


def test_stop_from_another_thread_ends_a_wait_once_there_is_a_waker(loop: Loop) -> None:
    loop.call_soon_threadsafe(lambda: None)
    thread = threading.Thread(target=loop.stop)
    loop.call_soon(thread.start)
    loop.run()
    thread.join()


# --- signals --------------------------------------------------------------------------------------


def test_a_signals_callback_runs_between_two_batches(loop: Loop) -> None:
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


def test_a_signal_ends_the_wait_whenever_it_comes() -> None:
    """Also between the last look and the wait, which no handler of Python's own would end."""
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


def test_signals_end_with_the_loop_and_are_as_they_were(loop: Loop) -> None:
    before = signal.getsignal(signal.SIGUSR1)
    loop.add_signal_handler(signal.SIGUSR1, lambda: None)
    assert signal.getsignal(signal.SIGUSR1) != before
    assert loop.remove_signal_handler(signal.SIGUSR1) is True
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL
    assert loop.remove_signal_handler(signal.SIGUSR1) is False
    loop.add_signal_handler(signal.SIGUSR1, lambda: None)
    loop.close()
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL
    assert signal.set_wakeup_fd(-1) == -1


def test_a_signal_that_cannot_be_handled_is_refused(loop: Loop) -> None:
    for number, kind in ((signal.SIGKILL, OSError), (0, ValueError), (1000, ValueError)):
        with pytest.raises(kind):
            loop.add_signal_handler(number, loop.stop)
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


def test_a_waker_is_invisible_and_goes_with_reset(loop: Loop) -> None:
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


def test_a_program_that_wakes_no_loop_has_no_waker(loop: Loop) -> None:
    with Trace() as calls:
        loop.call_soon(lambda: None)
        loop.add_timer(0, lambda: None)
        loop.stop()
        turn(loop)
    assert not {call.name for call in calls} & {"pipe2", "pipe", "write", "rt_sigaction"}
    assert loop._registry.waker is None


def test_a_child_makes_a_waker_of_its_own_after_reset(loop: Loop) -> None:
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


def test_no_descriptor_for_a_waker_is_told_and_tried_again(
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
