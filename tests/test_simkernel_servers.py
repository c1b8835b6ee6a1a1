"""Random servers on the simulated kernel, and proof that their checks can fail."""

from __future__ import annotations

import errno
import re
import socket
import sys
from collections.abc import Callable
from functools import partial
from heapq import heappop

import pytest

from danga_raw import _epoll, _kqueue, _sockopt, listener
from danga_raw import socket as danga_socket
from danga_raw._connecting import Connecting
from danga_raw._registry import Registry
from danga_raw._waker import Waker
from danga_raw.loop import Loop
from danga_raw.socket import Socket
from danga_raw.timers import Timer, Timers
from danga_raw.types import Accepted, AnySocket, Handle
from tests.needs import REQUIRED
from tests.simkernel.__main__ import Failure, attempt, main, run_all
from tests.simkernel.world import BACKENDS, Backend, World

WORLDS = 20 if REQUIRED else 10
HERE = BACKENDS if sys.maxsize > 2**32 else BACKENDS[:2]
"""The simulated kqueue has the layouts of 64-bit machines."""
lp64 = pytest.mark.skipif(HERE != BACKENDS, reason="its kqueue has the layouts of LP64")


@pytest.mark.parametrize("seed", range(WORLDS))
def test_random_servers_keep_every_promise_with_the_same_bytes_on_every_backend(
    seed: int,
) -> None:
    told, fine = run_all(HERE, seed, 16)
    assert fine, told


def test_same_seed_repeats_a_run_exactly() -> None:
    assert World(3, "epoll").run() == World(3, "epoll").run() != World(4, "epoll").run()


def test_command_prints_the_seed_the_calls_and_the_faults(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--seed", "5", "--connections", "40", "--backend", HERE[-1]]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"seed 5\n{HERE[-1]} ")
    assert "calls" in out and "faults survived" in out
    assert "100%" in err


def never_unwatch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Socket, "_Socket__unwatch_write", lambda self: None)


def never_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Socket, "_Socket__watch_write_for_now", lambda self: None)


def forget_the_offset(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Socket.on_incomplete_write

    def on_incomplete_write(self: Socket) -> None:
        original(self)
        self.write_buf_offset = 0

    monkeypatch.setattr(Socket, "on_incomplete_write", on_incomplete_write)


def drop_a_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Socket.push_back_read

    def push_back_read(self: Socket, buf: bytes) -> None:
        if len(buf) % 7:
            original(self, buf)

    monkeypatch.setattr(Socket, "push_back_read", push_back_read)


def close_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Registry.leave

    def leave(self: Registry, obj: AnySocket, sock: Handle | None) -> bool:
        left = original(self, obj, sock)
        self.finish_leaving(lambda error: False)
        return left

    monkeypatch.setattr(Registry, "leave", leave)


def close_backwards(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Registry.finish_leaving

    def finish_leaving(self: Registry, handled: Callable[[Exception], bool]) -> None:
        backwards = dict(reversed(self.leaving.items()))
        self.leaving.clear()
        self.leaving |= backwards
        original(self, handled)

    monkeypatch.setattr(Registry, "finish_leaving", finish_leaving)


def stay_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_epoll.Epoll, "unregister", lambda self, fd, events: None)


def fire_early(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Loop.add_timer
    monkeypatch.setattr(
        Loop, "add_timer", lambda self, seconds, callback: original(self, seconds - 0.001, callback)
    )


def ignore_cancel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Timer, "cancel", lambda self: None)


def lose_a_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Timers.run_due

    def run_due(self: Timers) -> int:
        if len(self.heap) > 2:
            heappop(self.heap)
        return original(self)

    monkeypatch.setattr(Timers, "run_due", run_due)


@pytest.mark.parametrize(
    ("sabotage", "complaint"),
    [
        (never_unwatch, "nobody asked for it"),
        (never_watch, "isn't watched"),
        (forget_the_offset, "received what was not written"),
        (drop_a_piece, "read what was not sent"),
        (close_at_once, "closes of its batch"),
        (close_backwards, "out of order"),
        (stay_registered, "the kernel watches"),
        (fire_early, "fired early"),
        (ignore_cancel, "cancelled timer|timers wait"),
        (lose_a_timer, "timers wait"),
    ],
)
def test_fault_in_the_package_is_detected(
    sabotage: Callable[[pytest.MonkeyPatch], None],
    complaint: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sabotage(monkeypatch)
    results = [attempt(seed, "epoll", 16) for seed in range(6)]
    found = [result.trace for result in results if isinstance(result, Failure)]
    assert any(re.search(complaint, trace) for trace in found), found


def never_wake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Waker, "wake", lambda self: None)


def wake_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Waker.wake

    def wake(self: Waker) -> None:
        self._woken = False
        original(self)

    monkeypatch.setattr(Waker, "wake", wake)


def leave_the_byte_in_the_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    def drain(self: Waker) -> None:
        self._woken = False

    monkeypatch.setattr(Waker, "drain", drain)


def call_backwards(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Loop._run_soon

    def run_soon(self: Loop) -> None:
        self._soon.reverse()
        original(self)

    monkeypatch.setattr(Loop, "_run_soon", run_soon)


def run_new_callbacks_in_the_same_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Loop._run_soon

    def run_soon(self: Loop) -> None:
        while self._soon:
            original(self)

    monkeypatch.setattr(Loop, "_run_soon", run_soon)


def call_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Loop.call_soon

    def call_soon(self: Loop, callback: Callable[[], object]) -> None:
        original(self, callback)
        if len(self._soon) % 3 == 0:
            original(self, callback)

    monkeypatch.setattr(Loop, "call_soon", call_soon)


def forget_a_callback(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Loop._run_soon

    def run_soon(self: Loop) -> None:
        if len(self._soon) > 2:
            self._soon.pop()
        original(self)

    monkeypatch.setattr(Loop, "_run_soon", run_soon)


def lose_callbacks_behind_a_raising_one(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Loop._run_soon

    def run_soon(self: Loop) -> None:
        try:
            original(self)
        except Exception:
            self._soon.clear()
            raise

    monkeypatch.setattr(Loop, "_run_soon", run_soon)


def never_remove_signal_handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Waker, "remove_signal", lambda self, number: number in self._handled)


def never_restore_the_wakeup_fd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Waker, "_leave_signals", lambda self: None)


def leave_the_waker_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Waker, "close", lambda self: None)


def mistake_a_hang_up_for_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    def finish(self: Connecting) -> None:
        self._outcome = [0]
        self._tell()

    monkeypatch.setattr(Connecting, "finish", finish)


def report_the_outcome_repeatedly(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Connecting._tell

    def tell(self: Connecting) -> None:
        obj = self._obj
        original(self)
        if obj is not None and obj.fd is not None:
            self._pending[obj.fd] = self
            self._told = False

    monkeypatch.setattr(Connecting, "_tell", tell)


def never_report_immediate_outcomes(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Connecting.start

    def start(self: Connecting, timeout: float | None) -> None:
        if not self._outcome:
            original(self, timeout)

    monkeypatch.setattr(Connecting, "start", start)


def never_time_out(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Connecting.start
    monkeypatch.setattr(Connecting, "start", lambda self, timeout: original(self, None))


def keep_the_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Connecting, "cancel", lambda self: None)


def deliver_events_while_connecting(monkeypatch: pytest.MonkeyPatch) -> None:
    def finish(self: Connecting) -> None:
        if self._obj is not None:
            self._obj.event_hup()

    monkeypatch.setattr(Connecting, "finish", finish)


def keep_failed_connections_open(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Socket.close_as

    def close_as(self: AnySocket, reason: str) -> None:
        if reason != "not connected":
            original(self, reason)

    monkeypatch.setattr(Socket, "close_as", close_as)


def keep_objects_whose_constructor_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Socket, "_withdraw", lambda self: None)


def keep_dropped_sockets_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(danga_socket, "drop", lambda sock: None)


def keep_rejected_connections_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "drop", lambda sock: None)


def replace_accepted(monkeypatch: pytest.MonkeyPatch, hand_over: Callable[..., None]) -> None:
    """Have each listener call `hand_over(accepted, connection, address)` for each connection."""
    original = listener.Listener.__init__

    def init(self: listener.Listener, sock: socket.socket, accepted: Accepted, loop: Loop) -> None:
        original(self, sock, partial(hand_over, accepted), loop)

    monkeypatch.setattr(listener.Listener, "__init__", init)


def lose_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    def hand_over(accepted: Accepted, connection: socket.socket, address: object) -> None:
        if connection.fileno() % 5:
            accepted(connection, address)

    replace_accepted(monkeypatch, hand_over)


def pass_connections_on_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    def hand_over(accepted: Accepted, connection: socket.socket, address: object) -> None:
        accepted(connection, address)
        accepted(connection, address)

    replace_accepted(monkeypatch, hand_over)


def resume_only_after_the_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    original = listener.Listener.begin_again

    def begin_again(self: listener.Listener) -> None:
        if self._retry is None or self._retry.callback is None:  # It has fired.
            original(self)

    monkeypatch.setattr(listener.Listener, "begin_again", begin_again)


def never_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener.Listener, "begin_again", lambda self: None)


def never_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener.Listener, "_Listener__pause", lambda self, error: None)


def share_an_fd_between_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Registry, "_drop_holder", lambda *_: False)


def keep_stale_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Registry.__init__

    def init(self: Registry, backend: str) -> None:
        original(self, backend)
        setattr(self, "entries_outlive_fds", False)

    monkeypatch.setattr(Registry, "__init__", init)


def reject_reused_fds(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Registry.register

    def register(self: Registry, fd: int, events: int, obj: AnySocket | None = None) -> None:
        if (holder := self.objects.get(fd)) is not None and not holder.closed:
            raise OSError(errno.EEXIST, "it is there")
        original(self, fd, events, obj)

    monkeypatch.setattr(Registry, "register", register)


FAULTS = [
    (share_an_fd_between_objects, "takes it for its own"),
    (keep_stale_entries, "is another's|nothing comes of|hang-up of another"),
    (reject_reused_fds, "it is there"),
    (never_wake, "ms late"),
    (wake_each_time, "several wake-ups have cost more than one"),
    (
        leave_the_byte_in_the_pipe,
        "several wake-ups have cost more than one|of which nothing comes",
    ),
    (call_backwards, "callbacks ran out of order"),
    (run_new_callbacks_in_the_same_pass, "in the pass in which it was given"),
    (call_twice, "nobody had given, or twice"),
    (forget_a_callback, "out of order|ms late"),
    (lose_callbacks_behind_a_raising_one, "out of order|ms late"),
    (never_remove_signal_handlers, "handled still"),
    (never_restore_the_wakeup_fd, "a signal writes to|signals write to"),
    (leave_the_waker_open, "left open"),
    (mistake_a_hang_up_for_a_connection, "told to be connected, and it is not"),
    (report_the_outcome_repeatedly, "told twice"),
    (never_time_out, "did not time out|timers of connects"),
    (keep_the_timeout, "timers of connects"),
    (deliver_events_while_connecting, "before the outcome of a connect"),
    (keep_failed_connections_open, "has failed, and its object is open"),
    (keep_objects_whose_constructor_raised, "the map has"),
    (keep_dropped_sockets_open, "has left its socket"),
    (keep_rejected_connections_open, "left open"),
    (lose_a_connection, "accepted and lost"),
    (pass_connections_on_twice, "handed over twice"),
    (resume_only_after_the_pause, "though something was closed"),
    (never_resume, "does not begin again"),
    (never_pause, "does not rest"),
]


@pytest.mark.parametrize(("sabotage", "complaint"), FAULTS if REQUIRED else FAULTS[::2])
def test_fault_in_waking_connecting_listening_or_fd_reuse_is_detected(
    sabotage: Callable[[pytest.MonkeyPatch], None],
    complaint: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sabotage(monkeypatch)
    others = []
    for seed in range(100):
        result = attempt(seed, "epoll", 16)
        if isinstance(result, Failure):
            if re.search(complaint, result.trace):
                return
            others.append(result.trace)
    pytest.fail(f"a hundred worlds found no more than this: {others[:3]}")


def report_hang_ups_before_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        _kqueue.KQueue, "_in_time", lambda self, found: {fd: s & 31 for fd, s in found.items()}
    )


def forget_dropped_filters(monkeypatch: pytest.MonkeyPatch) -> None:
    original = _kqueue.KQueue.wait_bare

    def wait_bare(self: _kqueue.KQueue, timeout_ms: int) -> None:
        self._dropped.clear()
        original(self, timeout_ms)

    monkeypatch.setattr(_kqueue.KQueue, "wait_bare", wait_bare)


def raise_cork_errors_after_a_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_sockopt, "CONNECTION_GONE", set())


@lp64
@pytest.mark.parametrize(
    ("sabotage", "complaint"),
    [
        (report_hang_ups_before_the_data, "before the data"),
        (forget_dropped_filters, "told but once|has no end"),
        (raise_cork_errors_after_a_reset, "Connection reset"),
        (never_report_immediate_outcomes, "was not told|did not time out"),
    ],
)
def test_fault_in_the_kqueue_backend_is_detected(
    sabotage: Callable[[pytest.MonkeyPatch], None],
    complaint: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sabotage(monkeypatch)
    for seed in range(100):
        result = attempt(seed, "kqueue-freebsd", 16)
        if isinstance(result, Failure):
            assert re.search(complaint, result.trace), result.trace
            return
    pytest.fail("a hundred worlds found nothing")


def test_failure_prints_the_shortest_prefix_that_reproduces_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    never_unwatch(monkeypatch)
    backend: Backend = "poll"
    assert main(["--seed", "1", "--connections", "64", "--backend", backend]) == 1
    repeat = capsys.readouterr().out.rpartition("repeat: python -m tests.simkernel ")[2].split()
    assert main(repeat) == 1
    fewer = [*repeat]
    at = fewer.index("--connections") + 1
    fewer[at] = str(int(fewer[at]) - 1)
    assert main(fewer) == 0
