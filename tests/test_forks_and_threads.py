"""A fork within a handler, and loops in several threads."""

from __future__ import annotations

import errno
import os
import random
import signal
import socket
import threading
from functools import partial

import pytest

from danga_raw import Listener, Loop, Socket, default_loop
from danga_raw._libc import libc
from danga_raw.trace import Call, Trace

BACKENDS = ["epoll", "poll"]

LOOPS = 4
CONNECTIONS = 200
ROUNDS = 20


class Echo(Socket):
    """Sends back what it receives."""

    __slots__ = ()

    def event_read(self) -> None:
        data = self.read(4096)
        if data is None:
            self.close("end")
        elif data:
            self.write(data)

    def event_err(self) -> None:
        self.close("error")

    event_hup = event_err


def echo_on(loop: Loop) -> tuple[Echo, socket.socket]:
    near, far = socket.socketpair()
    near.setblocking(False)
    far.settimeout(60)
    echo = Echo(near, loop)
    echo.watch_read(True)
    return echo, far


class Forker(Echo):
    """Forks when it receives something; the child serves its own connection on the loop."""

    __slots__ = ("child",)

    def event_read(self) -> None:
        data = self.read(4096)
        if not data:
            self.close("end")
            return
        self.child = os.fork()
        if not self.child:
            status = 1
            try:
                status = self.in_child()
            finally:
                os._exit(status)
        self.write(data)

    def in_child(self) -> int:
        """Reset the loop, serve one connection, and end; 0 if it was served."""
        loop = self.loop
        loop.reset()
        _, far = echo_on(loop)
        far.sendall(b"in the child")
        loop.set_post_loop_callback(lambda *_: False)
        loop.set_loop_timeout(60_000)
        loop.run()
        return 0 if far.recv(100) == b"in the child" and loop.watched_sockets == 1 else 2


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("backend", BACKENDS)
def test_child_that_resets_the_loop_leaves_the_parents_registrations_intact(backend: str) -> None:
    with Loop(backend) as loop:
        echo, far = echo_on(loop)
        near, forks = socket.socketpair()
        near.setblocking(False)
        forker = Forker(near, loop)
        forker.watch_read(True)
        loop.set_post_loop_callback(lambda *_: False)
        with far, forks:
            forks.sendall(b"fork")
            loop.run()
            assert forks.recv(100) == b"fork"
            _, status = os.waitpid(forker.child, 0)
            assert os.waitstatus_to_exitcode(status) == 0
            # The child has reset its loop and ended; the parent still gets all its events.
            far.sendall(b"x")
            loop.run()
            assert far.recv(100) == b"x"
        while loop.watched_sockets:
            loop.run()
        assert echo.closed and forker.closed


def serve(backend: str, seed: int, done: list[str]) -> None:
    """One thread: hundreds of connections on a loop, with rounds of bytes through each."""
    chooser = random.Random(seed)
    with Loop(backend) as loop:
        pairs = [echo_on(loop) for _ in range(CONNECTIONS)]
        fired: list[int] = []
        for number in range(100):
            loop.add_timer(number / 10_000, partial(fired.append, number))
        sent = {far: b"" for _, far in pairs}
        got = {far: b"" for _, far in pairs}
        rounds = 0

        def turn(*_: object) -> bool:
            nonlocal rounds
            for far in got:
                far.setblocking(False)
                try:
                    got[far] += far.recv(1 << 16)
                except BlockingIOError:
                    pass
            if rounds < ROUNDS:
                rounds += 1
                for far in got:
                    data = chooser.randbytes(chooser.randint(1, 200))
                    sent[far] += data
                    far.send(data)
            return rounds < ROUNDS or got != sent or len(fired) < 100

        loop.set_post_loop_callback(turn)
        loop.set_loop_timeout(1)
        loop.run()
        assert fired == list(range(100))
        for echo, far in pairs:
            assert not echo.closed
            echo.close("end")
            far.close()
    done.append(threading.current_thread().name)


@pytest.mark.parametrize("backend", BACKENDS)
def test_loops_in_threads_do_not_disturb_each_other(backend: str) -> None:
    before = os.listdir("/proc/self/fd")
    done: list[str] = []
    threads = [
        threading.Thread(target=serve, args=(backend, seed, done), name=str(seed))
        for seed in range(LOOPS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == ["0", "1", "2", "3"]
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("backend", BACKENDS)
def test_tracing_may_be_toggled_by_other_threads_while_loops_run(backend: str) -> None:
    over = threading.Event()
    done: list[str] = []

    def switch() -> None:
        while not over.is_set():
            with Trace():
                pass

    switching = [threading.Thread(target=switch) for _ in range(2)]
    running = [threading.Thread(target=serve, args=(backend, seed, done)) for seed in range(2)]
    for thread in switching + running:
        thread.start()
    for thread in running:
        thread.join()
    over.set()
    for thread in switching:
        thread.join()
    assert len(done) == 2 and libc.read is os.read


def test_loop_can_be_stopped_from_another_thread() -> None:
    with Loop() as loop:
        loop.set_loop_timeout(10)
        stopper = threading.Timer(0.05, loop.stop)
        stopper.start()
        loop.run()
        stopper.join()


def test_trace_reports_each_call_in_its_own_thread_before_that_thread_continues() -> None:
    told: dict[int, list[bytes]] = {}
    early: list[bool] = []

    def sink(call: Call) -> None:
        if call.name == "write" and isinstance(text := call.args[1], bytes):
            told[threading.get_ident()].append(text)

    def work() -> None:
        mine = told.setdefault(threading.get_ident(), [])
        with Loop("epoll") as loop:
            echo, far = echo_on(loop)
            with far:
                for number in range(200):
                    echo.write(b"%d" % number)
                    early.append(mine[-1:] != [b"%d" % number])
                    far.recv(100)
            echo.close()

    trace = Trace(sink)
    trace.start()
    threads = [threading.Thread(target=work) for _ in range(LOOPS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    trace.stop()
    assert len(early) == 200 * LOOPS and not any(early)
    texts = [text for texts in told.values() for text in texts]
    assert sorted(texts) == sorted(LOOPS * [b"%d" % number for number in range(200)])


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_reset_in_a_child_changes_no_registration_whatever_the_loops_state(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A paused listener, a pending connect, pending closes, other fds, signals: all of this is in
    the poller that parent and child share."""
    here, there = os.pipe()
    read: list[bytes] = []

    def refuse(sock: socket.socket) -> None:
        raise OSError(errno.EMFILE, "no descriptor")

    with Loop("epoll") as loop, socket.create_server(("127.0.0.1", 0)) as sock:
        monkeypatch.setattr(libc, "accept", refuse)
        listener = Listener(sock, lambda *_: None, loop)
        client = Echo.connect(sock.getsockname(), loop, timeout=60)
        pushed, other = echo_on(loop)
        pushed.push_back_read(b"again")
        closing, far = echo_on(loop)
        loop.add_other_fds({here: lambda state: read.append(os.read(here, 100))})
        loop.add_signal_handler(signal.SIGUSR1, lambda: None)
        loop.call_soon_threadsafe(lambda: None)
        loop.set_loop_timeout(60_000)
        loop.set_post_loop_callback(lambda *_: listener.event_watch & 1 != 0)
        loop.run()
        closing.close()
        child = os.fork()
        if not child:
            status = 1
            try:
                with Trace() as calls:
                    loop.reset()
                names = {call.name for call in calls}
                status = 0 if names == {"close", "rt_sigaction"} else 2
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        os.write(there, b"still watched")
        loop.set_post_loop_callback(lambda *_: not read)
        loop.run()
        assert read == [b"still watched"]
        for each in (client, listener, pushed, other, far):
            each.close()
    os.close(here)
    os.close(there)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("way", ["poller", "waker", "default loop"])
def test_child_does_not_wait_for_a_thread_that_was_not_forked(
    monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """At the fork, another thread may be opening something that any thread may open."""
    opens, forked = threading.Event(), threading.Event()
    name = {"poller": "epoll_create1", "waker": "pipe2"}.get(way)
    real: object = getattr(libc, name) if name else Loop

    def slowly(*arguments: object) -> object:
        opens.set()
        assert forked.wait(60)
        assert callable(real)
        return real(*arguments)

    if name:
        monkeypatch.setattr(libc, name, slowly)
    else:
        monkeypatch.setattr("danga_raw.socket.Loop", slowly)
        monkeypatch.setattr("danga_raw.socket._default_loop", None)
    loop = Loop("epoll")
    loop.set_loop_timeout(0)
    loop.set_post_loop_callback(lambda *_: False)
    work = {
        "poller": loop.run,
        "waker": lambda: loop.call_soon_threadsafe(print),
        "default loop": default_loop,
    }[way]
    thread = threading.Thread(target=work)
    thread.start()
    assert opens.wait(60)
    child = os.fork()
    if not child:
        status = 1
        try:
            signal.alarm(10)  # Ends a child that waits.
            forked.set()
            loop.reset()
            loop.call_soon_threadsafe(loop.stop)
            loop.run()
            status = 0 if default_loop() is default_loop() else 2
        finally:
            os._exit(status)
    forked.set()
    thread.join()
    loop.close()
    assert os.waitpid(child, 0)[1] == 0
