"""Timers: their order, their deadlines, how long the loop waits, and what cancelling frees."""

from __future__ import annotations

import ctypes
import gc
import random
import sys
import time
import weakref
from collections.abc import Iterator
from errno import EINTR
from functools import partial

import pytest

from danga_raw import Loop, Timer
from danga_raw._libc import libc
from danga_raw.timers import Timers
from tests.world import REAL, Recorder, World, real_only


class FakeTime:
    """A clock that advances only during waits, and their timeouts."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.waits: list[int] = []
        patch.setattr(libc, "clock_gettime", self.clock_gettime)
        patch.setattr(libc, "epoll_wait", self.epoll_wait)
        patch.setattr(libc, "poll", self.poll)

    def clock_gettime(self, clock: int) -> float:
        assert clock == time.CLOCK_MONOTONIC
        return self.now

    def epoll_wait(self, epfd: int, events: object, most: int, timeout: int) -> int:
        return self.poll(events, most, timeout)

    def poll(self, fds: object, count: object, timeout: int) -> int:
        ms = ctypes.c_int(timeout).value
        self.waits.append(ms)
        if ms < 0:
            # Nothing would ever happen, so return as after a signal.
            ctypes.set_errno(EINTR)
            return -1
        self.now += ms / 1000
        return 0


@pytest.fixture
def fake(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTime]:
    yield FakeTime(monkeypatch)


@real_only
def test_timer_fires_once_when_it_is_due(world: World, fake: FakeTime) -> None:
    fired: list[float] = []
    world.loop.add_timer(0.25, lambda: fired.append(fake.now))
    world.loop.add_timer(1, world.loop.stop)
    world.loop.run()
    assert len(fired) == 1 and 1000.25 <= fired[0] < 1000.252


@real_only
@pytest.mark.parametrize(
    ("seconds", "ms"),
    [(0.25, 251), (2**-14, 1), (2**-7, 8), (0.125, 126), (1, 1001), (0.0625, 63), (60.5, 60501)],
)
def test_wait_is_rounded_up_past_the_deadline(
    world: World, fake: FakeTime, seconds: float, ms: int
) -> None:
    fake.now = 1024.0
    world.loop.add_timer(seconds, world.loop.stop)
    world.loop.run()
    assert fake.waits == [ms]


@real_only
@pytest.mark.parametrize("seconds", [2.0**31, 1e300, sys.float_info.max])
def test_wait_for_a_distant_timer_is_capped_at_the_largest_c_int(
    world: World, fake: FakeTime, seconds: float
) -> None:
    world.loop.add_timer(seconds, lambda: None)
    world.turn()
    world.loop.add_timer(0.25, world.loop.stop)
    world.loop.run()
    world.loop.set_post_loop_callback(lambda *_: False)
    world.loop.run()
    assert fake.waits == [0, 251, 2**31 - 1]


@real_only
@pytest.mark.parametrize(
    ("loop_timeout", "timer", "wait"),
    [(-1, None, -1), (0, None, 0), (70, None, 70), (-1, 0.25, 251), (0, 0.25, 0), (70, 0.25, 70),
     (70, 0.0625, 63), (2**31 - 1, 0.25, 251), (-1, -5.0, 0), (70, -5.0, 0)],
)  # fmt: skip
def test_wait_is_the_lesser_of_loop_timeout_and_next_timer(
    world: World, fake: FakeTime, loop_timeout: int, timer: float | None, wait: int
) -> None:
    fake.now = 1024.0
    loop = world.loop
    assert loop.set_loop_timeout(loop_timeout) == loop_timeout
    if timer is not None and timer > 0:
        loop.add_timer(timer, lambda: None)
    elif timer is not None:
        # Added by a timer, so that it is due at the wait.
        loop.add_timer(0, lambda: loop.add_timer(timer, lambda: None))
    loop.set_post_loop_callback(lambda *_: False)
    loop.run()
    assert fake.waits == [wait]


@real_only
def test_loop_waits_forever_by_default(world: World, fake: FakeTime) -> None:
    world.loop.set_post_loop_callback(lambda *_: False)
    world.loop.run()
    assert fake.waits == [-1]


@real_only
def test_slow_timer_shortens_the_wait_for_the_next(world: World, fake: FakeTime) -> None:
    fake.now = 1024.0

    def slow() -> None:
        fake.now += 0.5

    world.loop.add_timer(0, slow)
    world.loop.add_timer(0.75, world.loop.stop)
    world.loop.run()
    assert fake.waits == [251]


@real_only
def test_timer_never_fires_early(world: World, fake: FakeTime) -> None:
    dice = random.Random(1)
    loop = world.loop
    late: list[float] = []

    def add(seconds: float) -> None:
        due = fake.now + seconds
        loop.add_timer(seconds, lambda: late.append(fake.now - due))

    for _ in range(300):
        add(dice.uniform(0, 3))
    loop.add_timer(4, loop.stop)
    loop.run()
    assert len(late) == 300
    assert all(0 <= x < 0.0021 for x in late)
    assert all(wait > 0 for wait in fake.waits)


def test_timers_fire_by_deadline_and_equal_ones_in_order_of_adding(world: World) -> None:
    dice = random.Random(2)
    fired: list[tuple[float, int]] = []
    loop = world.loop
    now = libc.clock_gettime(time.CLOCK_MONOTONIC)
    with pytest.MonkeyPatch.context() as patch:
        # All are added at the same time.
        patch.setattr(libc, "clock_gettime", lambda clock: now)
        wanted = []
        for number in range(500):
            seconds = dice.choice((-1.0, -0.5, 0.0, 0.001, 0.002, 0.003))
            wanted.append((seconds, number))
            loop.add_timer(seconds, partial(fired.append, (seconds, number)))
        loop.add_timer(0.004, loop.stop)
    loop.run()
    assert fired == sorted(wanted)


def test_timers_run_before_the_wait_and_post_loop_callbacks_after_it(world: World) -> None:
    order: list[str] = []
    one, two = world.socketpair()
    two.send(b"x")
    obj = Recorder(one, world.loop, read=lambda obj: order.append("read"))
    obj.watch_read(True)

    def after(sockets: object, others: object) -> bool:
        order.append("callback")
        return False

    world.loop.set_post_loop_callback(after)
    world.loop.add_timer(0, lambda: order.append("timer"))
    world.loop.run()
    assert order == ["timer", "read", "callback"]


def test_timer_callback_gets_no_arguments(world: World) -> None:
    given: list[tuple[object, ...]] = []
    world.loop.add_timer(0, lambda *arguments: given.append(arguments))
    world.turn()
    assert given == [()]


def test_stop_in_a_timer_ends_the_loop_before_it_waits_again(world: World) -> None:
    world.loop.add_timer(0, world.loop.stop)
    with world.calls() as calls:
        world.loop.run()
    assert calls == []


def test_all_due_timers_fire_even_if_the_first_stops_the_loop(world: World) -> None:
    fired: list[int] = []
    world.loop.add_timer(0, world.loop.stop)
    world.loop.add_timer(0, lambda: fired.append(1))
    world.loop.run()
    assert fired == [1]


def test_timer_added_by_a_timer_waits_for_the_next_turn(world: World) -> None:
    loop = world.loop
    fired: list[int] = []
    turns: list[int] = []

    def again() -> None:
        fired.append(len(turns))
        loop.add_timer(0, again)

    loop.add_timer(0, again)

    def after(sockets: object, others: object) -> bool:
        turns.append(1)
        return len(turns) < 4

    loop.set_post_loop_callback(after)
    loop.run()
    assert fired == [0, 1, 2, 3]


@pytest.mark.parametrize("by", ["a timer", "call_soon"])
def test_loop_timeout_set_before_the_wait_applies_to_it(world: World, by: str) -> None:
    loop = world.loop

    def limit() -> None:
        loop.set_loop_timeout(3)

    if by == "a timer":
        loop.add_timer(0, limit)
    else:
        loop.call_soon(limit)
    with world.calls() as calls:
        loop.set_post_loop_callback(lambda *_: len(calls) < 2)
        loop.run()
    assert calls == ([("wait", 3)] * 2 if by == "a timer" else [("wait", 0), ("wait", 3)])


def test_timer_added_by_call_soon_limits_the_next_wait(world: World) -> None:
    loop = world.loop
    loop.call_soon(lambda: loop.add_timer(0.001, loop.stop))
    loop.run()


@pytest.mark.parametrize("seconds", [0, -1, -1e9])
def test_timer_that_keeps_adding_itself_starves_neither_timers_nor_events(
    world: World, seconds: float
) -> None:
    loop = world.loop
    fired: list[str] = []

    def again() -> None:
        fired.append("again")
        if len(fired) > 1000:
            loop.stop()
        loop.add_timer(seconds, again)

    again()
    loop.add_timer(0, lambda: fired.append("other"))
    one, two = world.socketpair()
    obj = Recorder(one, loop)
    obj.watch_read(True)
    two.send(b"x")
    world.turn()
    assert fired == ["again", "again", "other"] if seconds else sorted(fired)[-1] == "other"
    assert obj.got == b"x"


def test_timer_can_cancel_another_that_is_due_in_the_same_turn(world: World) -> None:
    fired: list[str] = []
    loop = world.loop
    timers: list[Timer] = []
    loop.add_timer(-2, lambda: timers[0].cancel())
    timers.append(loop.add_timer(-1, lambda: fired.append("cancelled")))
    loop.add_timer(0, lambda: fired.append("last"))
    world.turn()
    assert fired == ["last"]


def test_cancel_during_or_after_the_callback_or_twice_does_nothing(world: World) -> None:
    loop = world.loop
    fired: list[str] = []
    timers: list[Timer] = []

    def own() -> None:
        timers[0].cancel()
        fired.append("own")

    timers.append(loop.add_timer(0, own))
    world.turn()
    timers[0].cancel()
    timers[0].cancel()
    loop.add_timer(0, lambda: fired.append("other"))
    world.turn()
    assert fired == ["own", "other"]


def test_cancelled_timer_neither_fires_nor_shortens_the_wait(world: World) -> None:
    fired: list[int] = []
    loop = world.loop
    timer = loop.add_timer(0.001, lambda: fired.append(1))
    timer.cancel()
    loop.set_loop_timeout(5)
    loop.set_post_loop_callback(lambda *_: False)
    with world.calls() as calls:
        loop.run()
    assert fired == [] and calls == [("wait", 5)]


def test_cancel_releases_the_callback_at_once(world: World) -> None:
    class Owner:
        def method(self) -> None: ...

    thing = Owner()
    gone = weakref.ref(thing)
    timer = world.loop.add_timer(3600, thing.method)
    del thing
    assert gone() is not None
    timer.cancel()
    gc.collect()
    assert gone() is None


def test_fired_timer_releases_its_callback(world: World) -> None:
    class Owner:
        def method(self) -> None: ...

    thing = Owner()
    gone = weakref.ref(thing)
    timer = world.loop.add_timer(0, thing.method)
    del thing
    world.turn()
    gc.collect()
    assert gone() is None
    timer.cancel()


def test_timers_cancelled_and_added_endlessly_use_bounded_memory(world: World) -> None:
    timers = world.loop._timers
    alive = [world.loop.add_timer(3600, print) for _ in range(50)]
    for _ in range(10_000):
        alive.pop(0).cancel()
        alive.append(world.loop.add_timer(3600, print))
    assert len(timers.heap) < 400


def test_fired_timers_do_not_prevent_removal_of_cancelled_ones(world: World) -> None:
    for _ in range(1000):
        world.loop.add_timer(-1, lambda: None)
    world.turn()
    for _ in range(1000):
        world.loop.add_timer(3600, print).cancel()
    assert len(world.loop._timers.heap) < 200


@pytest.mark.parametrize("world", REAL[:1], indirect=True, ids=str)
def test_hundred_thousand_timers_fire_in_order(world: World) -> None:
    dice = random.Random(3)
    loop = world.loop
    fired: list[int] = []
    order = list(range(100_000))
    dice.shuffle(order)
    now = libc.clock_gettime(time.CLOCK_MONOTONIC)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(libc, "clock_gettime", lambda clock: now)
        timers = [loop.add_timer(n / 1e9 - 1, partial(fired.append, n)) for n in order]
    for timer in timers[::2]:
        timer.cancel()
    loop.add_timer(0, loop.stop)
    loop.run()
    assert fired == sorted(order[1::2])


def test_cost_of_adding_a_timer_grows_little_with_their_number(world: World) -> None:
    class Counted(float):
        compared = 0

        def __lt__(self, other: float) -> bool:
            Counted.compared += 1
            return float(self) < other

        def __add__(self, other: float) -> Counted:
            return Counted(float(self) + other)

    dice = random.Random(5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(libc, "clock_gettime", lambda clock: Counted(1000.0))
        for _ in range(20_000):
            world.loop.add_timer(dice.random(), print)
    # A sorted list searched from the front would have compared 100 million times.
    assert Counted.compared < 20 * 20_000


def test_exception_in_a_timer_leaves_the_rest_for_the_next_run(world: World) -> None:
    fired: list[str] = []
    loop = world.loop

    def dies() -> None:
        fired.append("dies")
        raise KeyError

    loop.add_timer(-2, dies)
    loop.add_timer(-1, lambda: fired.append("second"))
    with pytest.raises(KeyError):
        loop.run()
    assert fired == ["dies"]
    world.turn()
    assert fired == ["dies", "second"]


def test_on_exception_receives_a_timers_error_and_others_fire_in_the_same_turn(
    world: World,
) -> None:
    fired: list[str] = []
    told: list[tuple[object, type[Exception]]] = []
    loop = world.loop
    loop.on_exception = lambda obj, error: told.append((obj, type(error)))

    def dies() -> None:
        raise KeyError

    loop.add_timer(-2, dies)
    loop.add_timer(-1, lambda: fired.append("second"))
    loop.add_timer(0, loop.stop)
    loop.run()
    assert told == [(None, KeyError)] and fired == ["second"]


def test_reset_in_a_timer_drops_the_others(world: World) -> None:
    fired: list[int] = []
    loop = world.loop

    def reset() -> None:
        loop.reset()
        loop.stop()

    loop.add_timer(-2, reset)
    timer = loop.add_timer(-1, lambda: fired.append(1))
    loop.run()
    timer.cancel()
    loop.add_timer(0, loop.stop)
    loop.run()
    assert fired == []


@pytest.fixture
def clear_outs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many timers were left after each removal of the cancelled ones."""
    counts: list[int] = []
    clear_out = Timers.clear_out

    def note(timers: Timers) -> None:
        clear_out(timers)
        counts.append(len(timers.heap))

    monkeypatch.setattr(Timers, "clear_out", note)
    return counts


def test_cancels_after_a_clear_out_trigger_no_other_until_half_are_spent(
    world: World, clear_outs: list[int]
) -> None:
    added = [world.loop.add_timer(3600, print) for _ in range(1000)]
    for timer in added:
        timer.cancel()
    assert 1 <= len(clear_outs) <= 10


def test_spent_timers_ahead_of_as_many_others_are_removed_in_one_pass(
    world: World, clear_outs: list[int]
) -> None:
    early = [world.loop.add_timer(3600, print) for _ in range(40)]
    late = [world.loop.add_timer(3700, print) for _ in range(40)]
    for timer in early:
        timer.cancel()
    world.turn()
    assert clear_outs == [40] and len(world.loop._timers.heap) == len(late)


@pytest.mark.parametrize("cancelled", ["before", "behind"])
def test_timers_from_before_a_reset_cost_later_ones_nothing(
    world: World, cancelled: str, clear_outs: list[int]
) -> None:
    old = [world.loop.add_timer(3600, print) for _ in range(2000)]
    if cancelled == "before":
        for timer in old[:900]:
            timer.cancel()
    world.loop.reset()
    new = [world.loop.add_timer(3600, print) for _ in range(1000)]
    if cancelled == "behind":
        for timer in old:
            timer.cancel()
    new[0].cancel()
    assert clear_outs == [] and all(timer.callback is None for timer in old)


def test_timer_may_cancel_many_others_as_it_fires(world: World) -> None:
    loop = world.loop
    fired: list[int] = []
    timers: list[Timer] = []

    def cancel_most() -> None:
        for timer in timers[:-1]:
            timer.cancel()

    loop.add_timer(-2, cancel_most)
    for number in range(1000):
        timers.append(loop.add_timer(-1, partial(fired.append, number)))
    loop.add_timer(0, loop.stop)
    loop.run()
    assert fired == [999]


def test_timer_may_close_and_add_objects(world: World) -> None:
    one, two = world.socketpair()
    three, four = world.socketpair()
    loop = world.loop
    obj = Recorder(one, loop)
    obj.watch_read(True)
    two.send(b"x")
    four.send(b"y")
    later: list[Recorder] = []

    def swap() -> None:
        obj.close()
        later.append(Recorder(three, loop))
        later[0].watch_read(True)

    loop.add_timer(0, swap)
    world.turn()
    assert obj.events == ["close None"] and later[0].got == b"y"


def test_wait_of_a_loop_without_timers_or_descriptors_ends_by_its_timeout(world: World) -> None:
    loop: Loop = world.loop
    loop.set_loop_timeout(1)
    loop.set_post_loop_callback(lambda *_: False)
    with world.calls() as calls:
        loop.run()
    assert calls == [("wait", 1)]


def test_loop_with_only_timers_waits_for_them_without_spinning(
    world: World,
) -> None:
    loop = world.loop
    loop.add_timer(0.002, lambda: None)
    loop.add_timer(0.02, loop.stop)
    with world.calls() as calls:
        loop.run()
    assert len(calls) <= 4  # one per timer, and a wait may end a little early


def test_timer_raising_in_a_later_turn_does_not_delay_others_that_are_due(world: World) -> None:
    """Only a timer that an exception cut short is left: the heap is empty."""
    loop = world.loop
    order: list[str] = []

    def dies() -> None:
        order.append("dies")
        raise ZeroDivisionError

    def after(sockets: object, others: object) -> bool:
        order.append("turn")
        if len(order) == 2:
            loop.add_timer(-2, dies)
            loop.add_timer(-1, lambda: order.append("fires"))
        return len(order) < 5

    loop.on_exception = lambda obj, error: None
    loop.set_loop_timeout(0)
    loop.set_post_loop_callback(after)
    loop.run()
    assert order == ["turn", "turn", "dies", "fires", "turn"]
