"""Random servers on the simulated kernel, and proof that what is asked of them can fail."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from heapq import heappop

import pytest

from danga_raw import _epoll, _kqueue, _sockopt
from danga_raw._registry import Registry
from danga_raw.socket import Socket
from danga_raw.timers import Timer, Timers
from danga_raw.types import AnySocket, Block, Handle
from tests.simkernel.__main__ import Failure, attempt, main, run_all
from tests.simkernel.world import BACKENDS, Backend, World

WORLDS = 20
HERE = BACKENDS if sys.maxsize > 2**32 else BACKENDS[:2]
"""The simulated kqueue has the layouts of 64-bit machines."""
lp64 = pytest.mark.skipif(HERE != BACKENDS, reason="its kqueue has the layouts of LP64")


@pytest.mark.parametrize("seed", range(WORLDS))
def test_a_world_of_random_servers_keeps_every_promise_with_the_same_bytes_on_every_backend(
    seed: int,
) -> None:
    told, fine = run_all(HERE, seed, 16)
    assert fine, told


def test_one_seed_repeats_a_run_to_the_last_call() -> None:
    assert World(3, "epoll").run() == World(3, "epoll").run() != World(4, "epoll").run()


def test_the_command_tells_the_seed_the_calls_and_the_faults(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--seed", "5", "--connections", "40", "--backend", HERE[-1]]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"seed 5\n{HERE[-1]} ")
    assert "calls" in out and "faults survived" in out
    assert "100%" in err


def never_unwatch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Socket, "_unwatch_write", lambda self: None)


def never_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Socket, "_watch_write_for_now", lambda self: None)


def forget_the_offset(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Socket._account

    def account(self: Socket, written: int, new: Block | None) -> None:
        original(self, written, new)
        self.write_buf_offset = 0

    monkeypatch.setattr(Socket, "_account", account)


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
        self.let_go()
        return left

    monkeypatch.setattr(Registry, "leave", leave)


def close_backwards(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Registry.let_go

    def let_go(self: Registry) -> None:
        self.leaving.reverse()
        original(self)

    monkeypatch.setattr(Registry, "let_go", let_go)


def stay_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_epoll.Epoll, "unregister", lambda self, fd, events: None)


def fire_early(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Timers.add
    monkeypatch.setattr(
        Timers, "add", lambda self, seconds, callback: original(self, seconds - 0.001, callback)
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
        (ignore_cancel, "cancelled timer|timers in the heap"),
        (lose_a_timer, "timers in the heap"),
    ],
)
def test_a_fault_in_the_package_is_found(
    sabotage: Callable[[pytest.MonkeyPatch], None],
    complaint: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sabotage(monkeypatch)
    results = [attempt(seed, "epoll", 16) for seed in range(6)]
    found = [result.trace for result in results if isinstance(result, Failure)]
    assert any(re.search(complaint, trace) for trace in found), found


def tell_ends_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        _kqueue.KQueue, "_in_time", lambda self, found: [(fd, s & 31) for fd, s in found.items()]
    )


def forget_what_the_kernel_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    original = _kqueue.KQueue.wait

    def wait(self: _kqueue.KQueue, timeout_ms: int) -> Iterable[tuple[int, int]]:
        self._dropped.clear()
        return original(self, timeout_ms)

    monkeypatch.setattr(_kqueue.KQueue, "wait", wait)


def raise_what_a_reset_says_of_a_cork(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_sockopt, "CONNECTION_GONE", set())


@lp64
@pytest.mark.parametrize(
    ("sabotage", "complaint"),
    [
        (tell_ends_early, "before the data"),
        (forget_what_the_kernel_dropped, "told but once|has no end"),
        (raise_what_a_reset_says_of_a_cork, "Connection reset"),
    ],
)
def test_a_fault_in_the_kqueue_backend_is_found(
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


def test_a_failure_tells_the_shortest_prefix_that_repeats_it(
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
