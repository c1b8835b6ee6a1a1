"""The audit as a library: what it records, and that it leaves nothing behind when it is off."""

from __future__ import annotations

import errno
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
import warnings
import weakref
from _ctypes import CFuncPtr
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.instructions import total, valgrind
from benchmarks.processes import environment
from danga_raw import Loop, Socket
from danga_raw import trace as trace_module
from danga_raw._kernel import HERE, asked
from danga_raw._libc import libc
from danga_raw._strace import CALLS, Event, KernelEvent, Length, Pointer, PollFd, Timespec, quoted
from danga_raw.trace import Call, Trace
from danga_raw.types import Handle
from tests.simkernel import SimKernel

WAIT = asked("epoll_wait", HERE).name

ROOT = Path(__file__).parent.parent


class Taker(Socket):
    """Reads what arrives, and closes at the end."""

    __slots__ = ("got",)

    def __init__(self, sock: socket.socket, loop: Loop) -> None:
        super().__init__(sock, loop)
        self.got = b""
        self.watch_read(True)

    def event_read(self) -> None:
        data = self.read(100)
        if data is None:
            self.close("end")
        else:
            self.got += data

    def event_hup(self) -> None:
        self.close("hang-up")


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    near, far = socket.socketpair()
    with near, far:
        near.setblocking(False)
        yield near, far


@pytest.fixture
def loop() -> Iterator[Loop]:
    with Loop("epoll") as loop:
        loop.set_post_loop_callback(lambda *_: False)
        loop.set_loop_timeout(0)
        yield loop


@pytest.fixture(autouse=True)
def real_functions_are_restored() -> Iterator[None]:
    """However a test ends, the door has the very same objects as before."""
    before = dict(vars(libc))
    yield
    after = vars(libc)
    assert after.keys() == before.keys()
    assert all(after[name] is before[name] for name in before)
    assert all(f.errcheck is None for f in after.values() if isinstance(f, CFuncPtr))


Pair = tuple[socket.socket, socket.socket]


def names(calls: list[Call]) -> list[str]:
    return [call.name for call in calls]


# --- what is recorded ---------------------------------------------------------------------------


def test_calls_are_recorded_in_order_with_their_arguments(pair: Pair, loop: Loop) -> None:
    near, far = pair
    before = time.time()
    with Trace() as calls:
        taker = Taker(near, loop)
        far.send(b"hello")
        loop.run()
        taker.write(bytearray(b"answer"))
    fd, epfd = near.fileno(), loop._registry.open().fileno()
    create, add, mod, wait, read, write = calls
    assert create[:4] == ("epoll_create1", (os.O_CLOEXEC,), epfd, 0)
    assert add[:4] == ("epoll_ctl", (epfd, 1, fd, Event(0x38, fd)), 0, 0)
    assert mod[:4] == ("epoll_ctl", (epfd, 3, fd, Event(0x39, fd)), 0, 0)
    assert (wait.name, wait.result, wait.errno) == (WAIT, 1, 0)
    assert wait.args[:4] == (epfd, (Event(1, fd),), 1000, 0)
    assert read[:4] == ("read", (fd, b"hello", 100), 5, 0)
    assert write[:4] == ("write", (fd, b"answer", 6), 6, 0)
    assert before <= create.time <= write.time <= time.time()
    assert str(read) == f'read({fd}, "hello", 100)'.ljust(40) + "= 5"


def test_failing_call_records_its_error_and_the_caller_gets_its_errno(
    pair: Pair, loop: Loop
) -> None:
    near, _ = pair
    taker = Taker(near, loop)
    with Trace() as calls:
        assert taker.read(10) == b""
        with pytest.raises(FileExistsError) as caught:
            Socket(near, loop)
        taker.tcp_cork(True)
    read, add, cork = calls
    assert caught.value.errno == errno.EEXIST
    assert (read.result, read.errno, read.error) == (-1, errno.EAGAIN, "EAGAIN")
    assert read.args[1] == Pointer(None)
    assert (add.result, add.error) == (-1, "EEXIST")
    # Python has two names for this number.
    assert cork.line().endswith(f"= -1 EOPNOTSUPP ({os.strerror(errno.EOPNOTSUPP)})")
    assert taker.fd is not None and not taker.corked


def test_record_does_not_change(pair: Pair, loop: Loop) -> None:
    near, far = pair
    taker = Taker(near, loop)
    buffer = bytearray(b"first")
    with Trace() as calls:
        taker.write(memoryview(buffer))
        buffer[:] = b"other"
        far.send(b"x")
        loop.run()
        loop.run()
    assert calls[0].args[1] == b"first"
    wait, read, empty = calls[1:]
    assert wait.args[1] == (Event(1, near.fileno()),)
    assert empty.args[1] == ()
    with pytest.raises(AttributeError):
        setattr(read, "result", 0)
    assert hash(wait)


def test_reading_the_clock_is_not_a_system_call(loop: Loop) -> None:
    loop._registry.open()
    with Trace() as calls:
        loop.add_timer(0, loop.stop)
        loop.run()
    assert names(calls) == []


def test_all_loops_and_threads_are_traced(pair: Pair) -> None:
    near, far = pair
    with Trace() as calls:

        def other() -> None:
            with Loop("poll") as loop:
                Taker(near, loop)

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        with Loop("epoll") as loop:
            far.setblocking(False)
            Taker(far, loop)
    assert names(calls)[1:] == ["epoll_create1", "epoll_ctl", "epoll_ctl", "close"]
    assert calls[0].args[0] == near.fileno() or near.fileno() == -1


def test_simulated_kqueue_gives_the_same_records() -> None:
    for platform, read, write in [("freebsd", -1, -2), ("netbsd", 0, 1), ("netbsd9", 0, 1)]:
        kernel = SimKernel(0, platform=platform)
        with kernel.installed(), Trace() as calls, Loop("kqueue") as loop:
            near, far = kernel.socketpair()
            near.setblocking(False)

            class Reader(Socket[Handle]):
                def event_read(self) -> None:
                    self.read(10)

            reader = Reader(near, loop)
            reader.watch_read(True)
            far.send(b"abc")
            loop.set_loop_timeout(1500)
            loop.set_post_loop_callback(lambda *_: False)
            loop.run()
            reader.close()
            loop.reset()
        fd, kq = 3, 5
        table = (
            KernelEvent(fd, read, 1, 0, 0),
            KernelEvent(fd, read, 8, 0, 0),
            KernelEvent(fd, write, 1, 0, 0),
            KernelEvent(fd, write, 8, 0, 0),
        )
        told = calls[5].args[3]
        assert isinstance(told, tuple) and isinstance(told[0], KernelEvent)
        lines = [str(call) for call in calls]
        if platform == "freebsd":
            assert lines[5] == (
                "kevent(5, NULL, 0, [{ident=3, filter=EVFILT_READ, flags=0, fflags=0, data=3, "
                "udata=NULL}], 1000, {tv_sec=1, tv_nsec=500000000}) = 1"
            )
        assert [call[:3] for call in calls] == [
            ("getpid", (), os.getpid()),
            ("kqueue", (), kq),
            ("fcntl", (kq, 2, 1), 0),
            ("kevent", (kq, table, 4, None, 0, None), 0),
            ("kevent", (kq, (KernelEvent(fd, read, 4, 0, 0),), 1, None, 0, None), 0),
            ("kevent", (kq, None, 0, told, 1000, Timespec(1, 500_000_000)), 1),
            ("read", (fd, b"abc", 10), 3),
            ("kevent", (kq, (KernelEvent(fd, read, 2, 0, 0),), 1, None, 0, None), 0),
            ("kevent", (kq, (KernelEvent(fd, write, 2, 0, 0),), 1, None, 0, None), 0),
            ("getpid", (), os.getpid()),
            ("close", (kq,), 0),
        ]
        assert (told[0].ident, told[0].filter, told[0].data) == (fd, read, 3)


def test_values_that_strace_never_shows_are_formatted() -> None:
    change = KernelEvent(3, -1, 0x4041, 54, -7)
    assert str(change) == (
        "{ident=3, filter=EVFILT_READ, flags=EV_ADD|EV_ERROR|0x40, "
        "fflags=0x36 /* NOTE_??? */, data=-7, udata=NULL}"
    )
    assert str(Length(28, 28)) == "[28]"
    assert str(PollFd(3, 1, 0)) == "{fd=3, events=POLLIN}"
    assert quoted(bytes(range(256))).count("\\") == 33 + 2 + 129
    call = Call("read", (3, Pointer(None), 5), -1, 4095, 0.0)
    assert "= -1 ERRNO_4095 (" in str(call)


# --- on and off ---------------------------------------------------------------------------------


def test_trace_can_start_and_stop_in_a_running_loop(pair: Pair) -> None:
    near, far = pair
    trace = Trace()
    turns: list[bool] = []

    def turn(*_: object) -> bool:
        turns.append(trace.on)
        if len(turns) == 2:
            trace.start()
        if len(turns) == 4:
            trace.stop()
        far.send(b"x")
        return len(turns) < 6

    with Loop("epoll") as loop:
        taker = Taker(near, loop)
        loop.set_post_loop_callback(turn)
        far.send(b"x")
        loop.run()
        assert turns == [False, False, True, True, False, False]
        assert names(trace.calls) == [WAIT, "read"] * 2
        assert taker.got == b"x" * 6


def test_starting_or_stopping_twice_is_not_an_error() -> None:
    trace = Trace()
    trace.stop()
    trace.start()
    trace.start()
    trace.stop()
    assert not trace.on
    trace.stop()


def test_each_of_several_traces_gets_every_call(pair: Pair, loop: Loop) -> None:
    near, _ = pair
    streamed: list[Call] = []
    with Trace() as outer:
        taker = Taker(near, loop)
        inner = Trace(streamed.append)
        with inner as gathered:
            taker.read(1)
        taker.read(2)
        inner.start()
        first, second = Trace(), Trace()
        first.start()
        second.start()
        first.stop()
        taker.read(3)
        second.stop()
        inner.stop()
    assert gathered == []
    assert streamed == [outer[3], outer[5]]
    assert second.calls == [outer[5]]
    assert first.calls == []
    assert names(outer) == ["epoll_create1", "epoll_ctl", "epoll_ctl", "read", "read", "read"]


def test_function_replaced_during_a_trace_stays_replaced() -> None:
    before = libc.getpid
    with Trace():
        vars(libc)["getpid"] = other = lambda: 5
    assert libc.getpid is other
    vars(libc)["getpid"] = before


def test_exception_in_the_block_ends_the_trace(pair: Pair, loop: Loop) -> None:
    trace = Trace()
    with pytest.raises(ZeroDivisionError), trace:
        1 / 0
    assert not trace.on


# --- sinks --------------------------------------------------------------------------------------


def test_sink_must_be_callable() -> None:
    with pytest.raises(TypeError, match="takes a callable or None, not 5"):
        Trace(5)  # type: ignore[arg-type]


class Boom(Exception):
    pass


@pytest.mark.parametrize("number", range(8))
def test_raising_sink_ends_its_trace_and_leaves_the_loop_intact(number: int, pair: Pair) -> None:
    near, far = pair
    seen: list[Call] = []

    def sink(call: Call) -> None:
        seen.append(call)
        if len(seen) > number:
            raise Boom

    with Loop("epoll") as loop, Trace() as calls:
        loop.set_post_loop_callback(lambda *_: False)
        taker = Taker(near, loop)
        far.send(b"a")
        trace = Trace(sink)
        trace.start()
        raised = 0
        for step in (loop.run, lambda: taker.write(b"b"), lambda: far.send(b"c"), loop.run,
                     lambda: taker.watch_write(True), lambda: taker.watch_write(False),
                     taker.close, loop.run):  # fmt: skip
            loop.set_loop_timeout(0)
            try:
                step()
            except Boom:
                raised += 1
                assert not trace.on
        loop.run()
        # The calls were made; another trace has all of them, and nothing was closed twice.
        assert raised == (number < len(calls) and number < 8)
        assert len(seen) == number + 1
        assert loop.watched_sockets == 0
        assert names(calls).count("close") == 1
    assert near.fileno() == -1


def boom_at(name: str) -> Trace:
    """A trace whose sink raises at the first call with that name."""

    def sink(call: Call) -> None:
        if call.name == name:
            raise Boom

    trace = Trace(sink)
    trace.start()
    return trace


def test_data_read_when_a_sink_raised_can_still_be_read(pair: Pair, loop: Loop) -> None:
    near, far = pair
    taker = Taker(near, loop)
    far.send(b"hello")
    boom_at("read")
    with pytest.raises(Boom):
        taker.read(100)
    far.send(b", world")
    assert (taker.read(100), taker.read(100)) == (b"hello", b", world")
    boom_at("read")
    with pytest.raises(Boom):
        taker.read(100)
    assert not taker.closed and taker.read(100) == b""


@pytest.mark.parametrize("queued", [False, True], ids=["new", "queued"])
def test_data_written_when_a_sink_raised_is_not_written_again(
    pair: Pair, loop: Loop, queued: bool
) -> None:
    near, far = pair
    taker = Taker(near, loop)
    data = bytes(range(256)) * 8000
    got = b""
    if queued:
        taker.write(data)
        got = far.recv(1 << 20)
    boom_at("write")
    with pytest.raises(Boom):
        taker.write(None if queued else data)
    assert not taker.closed and taker.event_watch & 4
    while len(got) < len(data):
        got += far.recv(1 << 20)
        taker.event_write()
    assert got == data and taker.write_buf_size == 0


@pytest.mark.parametrize("backend", ["epoll", "kqueue"])
def test_raising_sink_leaves_no_poller_open(backend: str) -> None:
    kernel = SimKernel(0, "freebsd" if backend == "kqueue" else "linux")
    with kernel.installed():
        with Loop(backend) as loop:
            boom_at({"epoll": "epoll_create1", "kqueue": "kqueue"}[backend])
            with pytest.raises(Boom):
                loop._registry.open()
            assert not kernel.table.files
            assert {loop._registry.open().fileno()} == set(kernel.table.files)
        assert not kernel.table.files


def test_interrupted_sink_ends_its_trace(pair: Pair, loop: Loop) -> None:
    def interrupted(call: Call) -> None:
        raise KeyboardInterrupt

    taker = Taker(pair[0], loop)
    trace = Trace(interrupted)
    trace.start()
    with pytest.raises(KeyboardInterrupt):
        taker.write(b"x")
    assert not trace.on and not taker.closed and pair[1].recv(10) == b"x"


def test_signal_handler_may_toggle_a_trace_at_any_time() -> None:
    trace = Trace(lambda call: None)

    going_on = True

    def switch(*_: object) -> None:
        (trace.stop if trace.on else trace.start)()
        if going_on:
            signal.setitimer(signal.ITIMER_REAL, 0.0005)

    before = signal.signal(signal.SIGALRM, switch)
    try:
        switch()
        for _ in range(2000):
            with Trace():
                pass
    finally:
        going_on = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        trace.stop()
    assert libc.read is os.read
    assert getattr(libc.poll, "errcheck") is None


def test_errcheck_of_a_call_in_progress_outlives_its_trace() -> None:
    """Another thread may turn a trace off while a loop waits. When the wait ends, ctypes calls the
    errcheck that was set when it began, without holding a reference to it."""
    with Trace():
        reference = weakref.ref(getattr(libc.poll, "errcheck"))
    gc.collect()
    assert getattr(libc.poll, "errcheck") is None
    assert reference() is not None


def test_child_forked_while_a_thread_toggles_traces_can_end_its_own() -> None:
    trace = Trace()
    over = threading.Event()

    def switch() -> None:
        while not over.is_set():
            with Trace():
                pass

    thread = threading.Thread(target=switch)
    thread.start()
    try:
        for _ in range(50):
            with warnings.catch_warnings():  # about threads, which the child doesn't need
                warnings.simplefilter("ignore", DeprecationWarning)
                pid = os.fork()
            if pid == 0:
                signal.alarm(20)
                trace.start()
                trace.stop()
                os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0
    finally:
        over.set()
        thread.join()


def test_os_error_of_a_sink_is_not_taken_for_that_of_the_call(pair: Pair, loop: Loop) -> None:
    near, _ = pair
    taker = Taker(near, loop)

    def full(call: Call) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with Trace(full), pytest.raises(RuntimeError, match="No space left") as caught:
        taker.write(b"abc")
    assert isinstance(caught.value.__cause__, OSError)
    assert taker.fd is not None and not taker.closed


def test_calls_made_by_a_sink_are_not_traced(pair: Pair, loop: Loop) -> None:
    near, far = pair
    far.setblocking(False)
    taker, other = Taker(near, loop), Taker(far, loop)
    with Trace() as all_calls, Trace(lambda call: other.write(b"!")):
        taker.write(b"abc")
    assert names(all_calls) == ["write"]
    assert near.recv(10) == b"!"


def test_sink_may_change_errno(pair: Pair, loop: Loop) -> None:
    near, _ = pair
    Taker(near, loop)

    def fail_otherwise(call: Call) -> None:
        assert libc.fcntl(-1, 2, 0) == -1

    with Trace(fail_otherwise), pytest.raises(FileExistsError):
        Socket(near, loop)


# --- what it costs ------------------------------------------------------------------------------


def microseconds_a_call(kind: str, rounds: int = 20_000) -> float:
    """What a trace adds to a call, measured over a turn that reads and writes."""

    def elapsed(trace: Trace | None) -> float:
        near, far = socket.socketpair()
        with near, far, Loop("epoll") as loop:
            near.setblocking(False)
            taker = Taker(near, loop)
            loop.set_post_loop_callback(lambda *_: False)
            if trace is not None:
                trace.start()
            begun = time.process_time()
            for _ in range(rounds):
                far.send(b"a request")
                loop.run()
                taker.write(b"an answer")
                far.recv(100)
            taken = time.process_time() - begun
            if trace is not None:
                trace.stop()
        return taken

    null = os.open(os.devnull, os.O_WRONLY)
    sinks = {
        "gathered": None,
        "printed": lambda call: os.write(null, (call.line() + "\n").encode()),
        "as JSON": lambda call: os.write(null, json.dumps([call.name, call.decoded]).encode()),
    }
    try:
        differences = [elapsed(Trace(sinks[kind])) - elapsed(None) for _ in range(3)]
    finally:
        os.close(null)
    return min(differences) / (3 * rounds) * 1e6


COST = """
import os, socket
from danga_raw import Loop, Socket
from danga_raw.trace import Trace
near, far = socket.socketpair()
near.setblocking(False)
class Taker(Socket):
    def event_read(self):
        self.write(self.read(100))
def turns(count):
    for _ in range(count):
        far.send(b"x")
        loop.run()
        far.recv(10)
def counted():
    turns(100)
    os.getppid()
    turns(400)
    os.getppid()
with Loop("epoll") as loop:
    Taker(near, loop).watch_read(True)
    loop.set_post_loop_callback(lambda *_: False)
    counted()
    with Trace():
        turns(1)
    counted()
"""


@pytest.mark.needs("valgrind")
def test_trace_that_is_off_costs_no_instructions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Starting takes long, so both are counted in one run, which getppid divides.
    out = tmp_path / "counts"
    program = [*valgrind(str(out)), "--dump-before=getppid", sys.executable, "-c", COST]
    subprocess.run(program, env=environment(ROOT), check=True)
    parts = {"never on": 2, "was on": 4}
    each = {how: total(f"{out}.{part}") / 400 for how, part in parts.items()}
    with capsys.disabled():
        print(f"\ninstructions a turn, by whether a trace was on before: {each}")
    # A free-threaded CPython doesn't do exactly the same work twice.
    within = 0.03 if sysconfig.get_config_var("Py_GIL_DISABLED") else 0.01
    assert each["was on"] == pytest.approx(each["never on"], rel=within)


# --- what importing costs -----------------------------------------------------------------------

IMPORT = """
import os, sys
before = set(os.listdir("/proc/self/fd"))
import danga_raw, danga_raw.trace
assert set(os.listdir("/proc/self/fd")) == before
assert len(os.listdir("/proc/self/task")) == 1
new = set(sys.modules) - set(had)
assert not {"socket", "selectors", "threading", "asyncio"} & new, new
"""


def test_importing_opens_no_descriptor_and_starts_no_thread() -> None:
    # ctypes imports threading from 3.14 on, and its libffi keeps its own file open from 3.8 on.
    code = "import ctypes, sys; had = list(sys.modules)\n" + IMPORT
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.needs("strace")
def test_importing_opens_none_even_temporarily(tmp_path: Path) -> None:
    out = tmp_path / "calls"
    births = (
        "epoll_create epoll_create1 socket socketpair pipe pipe2 eventfd2 clone clone3 fork vfork"
    ).split()
    traced = "trace=" + ",".join(f"?{name}" for name in births)
    options = ["-f", "-qq", "-o", str(out), "-e", traced]
    program = [sys.executable, "-c", "import danga_raw, danga_raw.trace"]
    subprocess.run(["strace", *options, *program], cwd=ROOT, check=True)
    assert out.read_text() == ""


def test_every_function_but_the_clock_is_traced() -> None:
    functions = {name for name, value in vars(libc).items() if callable(value)}
    assert functions - set(CALLS) == {"clock_gettime"}


if __name__ == "__main__":
    for kind in ("gathered", "printed", "as JSON"):
        print(f"{kind}: {microseconds_a_call(kind):.2f} microseconds a call")


def test_child_forked_in_a_sink_is_traced_after_the_sink_but_not_within_it(
    pair: Pair, loop: Loop
) -> None:
    near, _ = pair
    taker = Taker(near, loop)
    told: list[str] = []
    pids: list[int] = []

    def forks(call: Call) -> None:
        told.append(call.name)
        if not pids:
            pids.append(os.fork())
            if pids == [0]:
                signal.alarm(20)
            taker.write(b"in the sink")

    with Trace(forks):
        taker.write(b"first")
        taker.write(b"second")
    if pids == [0]:
        os._exit(0 if told == ["write", "write"] else 1)
    assert os.waitpid(pids[0], 0)[1] == 0 and told == ["write", "write"]


def test_child_does_not_mistake_its_threads_for_those_in_a_sink(pair: Pair, loop: Loop) -> None:
    """The number of a thread that has ended may be reused."""
    near, _ = pair
    taker = Taker(near, loop)
    in_sink, go_on = threading.Event(), threading.Event()

    def waits(call: Call) -> None:
        in_sink.set()
        go_on.wait(20)

    trace = Trace(waits)
    with trace:
        thread = threading.Thread(target=taker.write, args=(b"x",))
        thread.start()
        in_sink.wait(20)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            os._exit(len(trace_module._in_sinks))
        go_on.set()
        thread.join()
    assert os.waitpid(pid, 0)[1] == 0


WAITS = {"epoll_wait", "epoll_pwait", "poll", "ppoll", "ppoll_time64"}


@pytest.mark.parametrize("backend", ["epoll", "poll"])
@pytest.mark.parametrize("timeout", [0x7FFFFFFF, 0x7FFFFFFE, -1, 0])
def test_longest_timeout_is_recorded_unchanged(pair: Pair, backend: str, timeout: int) -> None:
    near, far = pair
    with Loop(backend) as loop, Trace() as calls:
        Taker(near, loop).watch_read(True)
        far.send(b"x")
        loop.set_loop_timeout(timeout)
        loop.set_post_loop_callback(lambda *_: False)
        loop.run()
    [wait] = [str(call) for call in calls if call.name in WAITS]
    if "tv_sec" not in wait:  # Unless the C library makes a ppoll(2) for poll.
        assert f", {timeout}" in wait and "= 1" in wait
