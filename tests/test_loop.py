"""The loop: its turns, how it ends, and what exceptions, signals, forks and threads do to it."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from errno import EINTR, EINVAL
from pathlib import Path
from types import FrameType

import pytest

from danga_raw import Loop, Socket, default_loop
from danga_raw._backends import backends
from danga_raw._libc import libc
from danga_raw.types import AnySocket, Poller
from tests.test_bad_input import state
from tests.world import (
    ERR,
    HUP,
    IN,
    OUT,
    PATIENCE,
    POLLERS,
    AnyHandle,
    Recorder,
    World,
    drain,
    only,
    readiness_only,
    real_only,
)

ROOT = Path(__file__).parents[1]


QUIET: Mapping[str, Callable[[Recorder], object]] = {
    event: lambda obj: None for event in ("read", "write", "err", "hup")
}


def batch(world: World, *events: tuple[int, int]) -> pytest.MonkeyPatch:
    """The next wait reports exactly these events, later ones what they find."""
    patch = world.stack.enter_context(pytest.MonkeyPatch.context())
    poller = POLLERS[world.backend]
    wait: Callable[..., object] = getattr(poller, "wait_bare")  # noqa: B009
    told: list[int] = []

    def once(self: Poller, timeout: int) -> object:
        if told:
            return wait(self, timeout)
        told.append(1)
        self.batch = [fd for fd, _ in events]
        self.pairs = zip(self.batch, [mask for _, mask in events])
        return None

    patch.setattr(poller, "wait_bare", once)
    return patch


def fd_of(obj: AnySocket) -> int:
    assert obj.fd is not None
    return obj.fd


# --- the order of things --------------------------------------------------------------------------


@pytest.mark.parametrize("profiling", [False, True], ids=["plain", "profiling"])
def test_events_of_one_fd_are_dispatched_in_order_read_write_err_hup(
    world: World, profiling: bool
) -> None:
    one, _ = world.socketpair()
    obj = Recorder(one, world.loop, actions=QUIET)
    if profiling:
        world.loop.enable_profiling()
    batch(world, (fd_of(obj), IN | OUT | ERR | HUP))
    world.turn()
    assert obj.events == ["read", "write", "err", "hup"]


@pytest.mark.parametrize("profiling", [False, True], ids=["plain", "profiling"])
@pytest.mark.parametrize("closer", ["read", "write", "err", "hup"])
def test_object_closed_by_its_handler_gets_no_further_events(
    world: World, closer: str, profiling: bool
) -> None:
    one, _ = world.socketpair()
    actions = {**QUIET, closer: lambda obj: obj.close("closer")}
    obj = Recorder(one, world.loop, actions=actions)
    if profiling:
        world.loop.enable_profiling()
    batch(world, (fd_of(obj), IN | OUT | ERR | HUP))
    world.turn()
    order = ["read", "write", "err", "hup"]
    assert obj.events == [*order[: order.index(closer) + 1], "close closer"]


@pytest.mark.parametrize("profiling", [False, True], ids=["plain", "profiling"])
@pytest.mark.parametrize("closer", ["read", "write", "err"])
def test_object_reopened_by_its_handler_gets_no_events_of_its_old_descriptor(
    world: World, closer: str, profiling: bool
) -> None:
    """An object that connects again when it is refused would be hung up at once."""
    one, _ = world.socketpair()
    other, _ = world.socketpair()

    def reconnect(obj: Recorder) -> None:
        obj.close("reconnects")
        Recorder.__init__(obj, other, world.loop, events=obj.events, actions=QUIET)

    obj = Recorder(one, world.loop, actions={**QUIET, closer: reconnect})
    if profiling:
        world.loop.enable_profiling()
    batch(world, (fd_of(obj), IN | OUT | ERR | HUP))
    world.turn()
    order = ["read", "write", "err", "hup"]
    assert obj.events == [*order[: order.index(closer) + 1], "close reconnects"]
    assert obj.fd == other.fileno() and not obj.closed


@pytest.mark.parametrize("profiling", [False, True], ids=["plain", "profiling"])
@pytest.mark.parametrize("how", ["moved", "reset"])
def test_object_that_left_loop_in_handler_gets_no_further_events(
    world: World, how: str, profiling: bool
) -> None:
    """The other loop may run in another thread."""
    one, _ = world.socketpair()
    other = world.new_loop()

    def leaves(obj: Recorder) -> None:
        if how == "moved":
            obj.steal_socket()
            Recorder.__init__(obj, one, other, events=obj.events, actions=QUIET)
        else:
            world.loop.reset()

    obj = Recorder(one, world.loop, actions={**QUIET, "read": leaves})
    if profiling:
        world.loop.enable_profiling()
    batch(world, (fd_of(obj), IN | OUT | ERR | HUP))
    world.turn()
    assert obj.events == ["read"] and not obj.closed


@pytest.mark.parametrize("mask", [IN, OUT, ERR, HUP, IN | HUP])
@pytest.mark.parametrize("profiling", [False, True], ids=["plain", "profiling"])
def test_object_closed_by_another_of_same_batch_gets_no_event(
    world: World, mask: int, profiling: bool, caplog: pytest.LogCaptureFixture
) -> None:
    events: list[str] = []
    one, _ = world.socketpair()
    three, _ = world.socketpair()
    first = Recorder(one, world.loop, events=events, read=lambda obj: second.close("by first"))
    second = Recorder(three, world.loop, events=events)
    if profiling:
        world.loop.enable_profiling()
    batch(world, (fd_of(first), IN), (fd_of(second), mask))
    world.turn()
    assert events == ["read", "close by first"] and caplog.text == ""


def test_events_are_dispatched_in_order_of_poller(world: World) -> None:
    order: list[int] = []
    objects: list[Recorder] = []
    for number in range(5):
        one, _ = world.socketpair()
        objects.append(Recorder(one, world.loop, read=lambda obj: order.append(objects.index(obj))))
    batch(world, *((fd_of(objects[n]), IN) for n in (3, 0, 4, 1, 2)))
    world.turn()
    assert order == [3, 0, 4, 1, 2]


def test_hang_up_is_reported_without_interest_in_it(world: World) -> None:
    one, two = world.socketpair()
    obj = Recorder(one, world.loop)
    obj.watch_read(True)
    two.close()
    world.until(lambda: obj.closed)
    assert obj.events in (["read", "close end"], ["hup", "close None"])


@readiness_only
def test_hang_up_is_reported_to_object_with_no_interest_at_all(world: World) -> None:
    one, two = world.socketpair()
    obj = Recorder(one, world.loop)
    two.close()
    world.until(lambda: obj.closed)
    assert obj.events == ["hup", "close None"]


def test_connection_reset_by_peer_is_reported_as_readable(world: World) -> None:
    obj = Recorder(world.reset_by_peer(), world.loop)
    obj.watch_read(True)
    world.until(lambda: obj.closed)
    assert "read" in obj.events


def test_all_events_of_large_batches_are_handled(world: World) -> None:
    objects, peers = [], []
    for _ in range(200):
        one, two = world.socketpair()
        objects.append(Recorder(one, world.loop))
        objects[-1].watch_read(True)
        peers.append(two)
        two.send(b"x")
    world.until(lambda: all(obj.got for obj in objects))
    assert all(obj.events == ["read"] for obj in objects)
    assert world.loop.watched_sockets == 200


# --- post-loop callbacks --------------------------------------------------------------------------


def test_post_loop_callback_gets_both_maps_and_ends_loop_by_returning_false(world: World) -> None:
    one, _ = world.socketpair()
    two, _ = world.socketpair()
    obj = Recorder(one, world.loop)

    def other(state: int) -> None: ...

    world.loop.add_other_fds({two.fileno(): other})
    given: list[tuple[object, object]] = []

    def after(sockets: object, others: object) -> int:
        given.append((sockets, others))
        return len(given) < 3

    world.loop.set_loop_timeout(0)
    world.loop.set_post_loop_callback(after)
    world.loop.run()
    assert given == [({one.fileno(): obj}, {two.fileno(): other})] * 3


@pytest.mark.parametrize("false", [False, 0, None, "", []], ids=repr)
def test_any_false_value_from_post_loop_callback_ends_loop(world: World, false: object) -> None:
    world.loop.set_loop_timeout(0)
    world.loop.set_post_loop_callback(lambda *_: false)
    world.loop.run()


def test_object_callbacks_run_before_loop_callback_and_false_skips_rest(world: World) -> None:
    order: list[str] = []
    answers = {"a": True, "b": True, "global": True}
    turns: list[int] = []

    def callback(name: str) -> Callable[[object, object], bool]:
        def after(sockets: object, others: object) -> bool:
            order.append(name)
            return answers[name]

        return after

    objects = {}
    for name in "ab":
        objects[name] = Recorder(world.socketpair()[0], world.loop)
        objects[name].SetPostLoopCallback(callback(name))
    loop = world.loop
    loop.set_loop_timeout(0)
    loop.set_post_loop_callback(callback("global"))
    loop.add_timer(0, lambda: turns.append(1))
    answers["global"] = False
    loop.run()
    assert order == ["a", "b", "global"]
    order.clear()
    answers["b"] = False
    loop.run()
    assert order == ["a", "b"]
    order.clear()
    answers["a"] = False
    loop.run()
    assert order == ["a"]
    objects["a"].SetPostLoopCallback(None)
    order.clear()
    loop.run()
    assert order == ["b"]


def test_post_loop_callback_of_object_is_dropped_when_it_is_closed_or_stolen(world: World) -> None:
    order: list[str] = []
    for end in ("close", "steal_socket"):
        obj = Recorder(world.socketpair()[0], world.loop)
        obj.SetPostLoopCallback(lambda *_: order.append("never"))
        getattr(obj, end)()
        obj.SetPostLoopCallback(lambda *_: order.append("never"))
    world.turn()
    assert order == [] and not world.loop._registry.post_loop_callbacks


def test_post_loop_callback_may_close_object_whose_callback_is_next(world: World) -> None:
    order: list[str] = []
    a = Recorder(world.socketpair()[0], world.loop)
    b = Recorder(world.socketpair()[0], world.loop)

    def closes(sockets: object, others: object) -> bool:
        order.append("a")
        b.close()
        return True

    a.SetPostLoopCallback(closes)
    b.SetPostLoopCallback(lambda *_: order.append("b"))
    world.turn()
    assert order == ["a"]


def test_post_loop_callback_may_set_post_loop_callbacks(world: World) -> None:
    order: list[str] = []
    a = Recorder(world.socketpair()[0], world.loop)
    b = Recorder(world.socketpair()[0], world.loop)

    def sets(sockets: object, others: object) -> bool:
        order.append("a")
        b.SetPostLoopCallback(ends)
        a.SetPostLoopCallback(None)
        return True

    def ends(sockets: object, others: object) -> bool:
        order.append("b")
        return False

    a.SetPostLoopCallback(sets)
    world.loop.set_loop_timeout(0)
    world.loop.run()
    assert order == ["a", "b"]


def test_callable_that_is_falsy_is_still_called_as_post_loop_callback(world: World) -> None:
    class Falsy:
        calls = 0

        def __len__(self) -> int:
            return 0

        def __call__(self, sockets: object, others: object) -> bool:
            self.calls += 1
            return False

    own, overall = Falsy(), Falsy()
    world.loop.set_loop_timeout(0)
    world.loop.set_post_loop_callback(overall)
    world.loop.run()
    obj = Recorder(world.socketpair()[0], world.loop)
    obj.SetPostLoopCallback(own)
    world.loop.run()
    assert (own.calls, overall.calls) == (1, 1)


def test_post_loop_callbacks_run_after_deferred_closes(world: World) -> None:
    one, two = world.socketpair()
    fd = one.fileno()
    obj = Recorder(one, world.loop, read=lambda obj: obj.close())
    obj.watch_read(True)
    two.send(b"x")
    seen: list[bool] = []

    def after(sockets: object, others: object) -> bool:
        seen.append(world.is_open(fd))
        return False

    world.loop.set_post_loop_callback(after)
    world.loop.run()
    assert seen == [False]


def test_class_sets_post_loop_callback_of_default_loop_and_instance_its_own(world: World) -> None:
    loop = world.default_loop()
    order: list[str] = []

    def ends(name: str) -> Callable[[object, object], bool]:
        def after(sockets: object, others: object) -> bool:
            order.append(name)
            return name != "class"

        return after

    obj = Recorder(world.socketpair()[0], loop)
    Recorder.SetPostLoopCallback(ends("class"))
    obj.SetPostLoopCallback(ends("object"))
    loop.set_loop_timeout(0)
    Socket.EventLoop()
    assert order == ["object", "class"]
    Socket.SetPostLoopCallback(None)
    loop.add_timer(0, loop.stop)
    loop.run()
    assert order == ["object", "class"]


# --- stopping -------------------------------------------------------------------------------------


def test_stop_in_handler_ends_loop_after_batch(world: World) -> None:
    events: list[str] = []
    for _ in range(3):
        one, two = world.socketpair()
        two.send(b"x")
        Recorder(one, world.loop, events=events, read=lambda obj: obj.loop.stop()).watch_read(True)
    called: list[int] = []

    def after(sockets: object, others: object) -> bool:
        called.append(1)
        return True

    world.loop.set_post_loop_callback(after)
    world.loop.run()
    assert events == ["read"] * 3 and called == [1]


def test_stop_in_post_loop_callback_ends_loop(world: World) -> None:
    turns: list[int] = []

    def after(sockets: object, others: object) -> bool:
        turns.append(1)
        world.loop.stop()
        return True

    world.loop.set_loop_timeout(0)
    world.loop.set_post_loop_callback(after)
    world.loop.run()
    assert turns == [1]


def test_stop_before_run_prevents_only_that_run(world: World) -> None:
    fired: list[int] = []
    world.loop.stop()
    world.loop.add_timer(0, lambda: fired.append(1))
    with world.calls() as calls:
        world.loop.run()
    assert calls == [] and fired == []
    world.turn()
    assert fired == [1]


@pytest.mark.parametrize("raises", ["a handler", "the wait"])
def test_stop_is_not_lost_when_same_batch_raises(
    world: World, raises: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise OSError(12, "on purpose")

    def wait(*_: object) -> None:
        world.loop.stop()  # as a signal's handler may, just then
        fail()

    one, two = world.socketpair()
    obj = Recorder(one, world.loop)
    obj.watch_read(True)
    if raises == "a handler":
        world.loop.call_soon(world.loop.stop)
        world.loop.call_soon(fail)
    else:
        monkeypatch.setattr(POLLERS[world.backend], "wait_bare", wait)
    with pytest.raises(OSError, match="on purpose"):
        world.loop.run()
    monkeypatch.undo()
    with world.calls() as calls:
        world.loop.run()
    assert only(calls, "wait") == []
    two.send(b"x")
    world.until(lambda: obj.got == b"x")


@pytest.mark.parametrize("verb", ["reset", "close"])
@pytest.mark.parametrize("where", ["a handler", "a timer", "a post-loop callback", "an other fd"])
def test_run_returns_when_reset_or_close_leaves_nothing_to_wait_for(
    world: World, verb: str, where: str
) -> None:
    one, two = world.socketpair()
    two.send(b"x")

    def forget(*_: object) -> bool:
        getattr(world.loop, verb)()
        return True

    if where == "an other fd":
        world.loop.add_other_fds({one.fileno(): forget})
    else:
        Recorder(one, world.loop, read=forget if where == "a handler" else drain_it).watch_read(
            True
        )
    if where == "a timer":
        world.loop.add_timer(0, forget)
    if where == "a post-loop callback":
        world.loop.set_post_loop_callback(forget)
    world.loop.run()
    assert world.loop.descriptor_map == {} == world.loop.other_fds


def drain_it(obj: Recorder) -> None:
    obj.read(1000)


@pytest.mark.parametrize("new", ["a timer", "an object", "call_soon", "an other fd"])
@pytest.mark.parametrize("later", [False, True], ids=["at once", "by call_soon"])
def test_run_continues_with_whatever_was_added_after_reset(
    world: World, new: str, later: bool
) -> None:
    one, two = world.socketpair()
    three, four = world.socketpair()
    two.send(b"x")
    four.send(b"x")
    heard: list[object] = []

    def stop(*_: object) -> None:
        heard.append(new)
        world.loop.stop()

    def forget(obj: Recorder) -> None:
        world.loop.reset()
        if later:
            world.loop.call_soon(add)
        else:
            add()

    def add() -> None:
        if new == "a timer":
            world.loop.add_timer(0.001, stop)
        elif new == "an object":
            Recorder(three, world.loop, read=stop).watch_read(True)
        elif new == "call_soon":
            world.loop.call_soon(stop)
        else:
            world.loop.add_other_fds({three.fileno(): stop})

    Recorder(one, world.loop, read=forget).watch_read(True)
    world.loop.run()
    assert heard == [new]


@real_only
def test_run_goes_on_with_a_signal_handler_that_was_added_behind_a_reset(world: World) -> None:
    one, two = world.socketpair()
    two.send(b"x")
    heard: list[str] = []

    def heed() -> None:
        heard.append("signal")
        world.loop.stop()

    def send() -> None:
        time.sleep(0.05)  # By then the loop is most likely waiting.
        os.kill(os.getpid(), signal.SIGUSR1)

    thread = threading.Thread(target=send)

    def forget(obj: Recorder) -> None:
        world.loop.reset()
        world.loop.add_signal_handler(signal.SIGUSR1, heed)
        thread.start()

    Recorder(one, world.loop, read=forget).watch_read(True)
    world.loop.run()
    thread.join()
    assert heard == ["signal"]


def test_on_exception_receives_error_from_closing_handle(world: World) -> None:
    class Bad:
        def __init__(self, thing: AnyHandle) -> None:
            self.thing = thing

        def fileno(self) -> int:
            return self.thing.fileno()

        def close(self) -> None:
            raise RuntimeError("handle")

    told: list[tuple[object, str]] = []
    world.loop.on_exception = lambda obj, error: told.append((obj, str(error)))
    for _ in range(2):
        Socket(Bad(world.socketpair()[0]), world.loop).close()
    behind = Recorder(world.socketpair()[0], world.loop)
    fd = fd_of(behind)
    behind.close()
    world.turn()
    assert told == [(None, "handle")] * 2
    assert world.loop.watched_sockets == 0 and not world.is_open(fd)


@pytest.mark.parametrize("reason", ["a handler", "a failing write"])
def test_object_whose_close_raises_is_closed_anyway(world: World, reason: str) -> None:
    class Unclosable(Recorder):
        def close(self, reason: str | None = None) -> None:
            raise RuntimeError("close")

    def act(obj: Recorder) -> None:
        if reason == "a handler":
            raise KeyError("handler")
        obj.set_writer_func(refuse)
        obj.write(b"x")

    def refuse(data: object, count: int, offset: int) -> int:
        raise OSError(5, "on purpose")

    told: list[object] = []
    world.loop.on_exception = lambda obj, error: told.append(obj)
    one, two = world.socketpair()
    obj = Unclosable(one, world.loop, read=act)
    obj.watch_read(True)
    fd = fd_of(obj)
    two.send(b"x")
    world.turn()
    assert told == [obj] and obj.closed and obj.fd is None
    world.turn()
    assert world.loop.watched_sockets == 0 and not world.is_open(fd)


def test_loop_dropped_unclosed_releases_its_poller_and_warns(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = world.open_fds()
    loop = Loop(world.backend)
    loop.set_loop_timeout(0)
    loop.set_post_loop_callback(lambda *_: False)
    loop.run()
    with pytest.warns(ResourceWarning, match="unclosed loop <Loop on"):
        del loop
        gc.collect()
    assert world.open_fds() == before
    never_run = Loop(world.backend)
    never_run.call_soon_threadsafe(gc.collect)  # It has a waker, but no poller.
    with pytest.warns(ResourceWarning, match="unclosed loop <Loop on"):
        del never_run
        gc.collect()
    assert world.open_fds() == before
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        strict = Loop(world.backend)
        strict.call_soon_threadsafe(gc.collect)
        told: list[object] = []
        monkeypatch.setattr(sys, "unraisablehook", told.append)
        del strict
        gc.collect()
        assert len(told) == 1 and world.open_fds() == before
        unused = Loop(world.backend)
        del unused
        gc.collect()


def test_reset_clears_pending_stop(world: World) -> None:
    world.loop.stop()
    world.loop.reset()
    fired: list[int] = []
    world.loop.add_timer(0, lambda: fired.append(1))
    world.turn()
    assert fired == [1]


def test_stop_ends_only_innermost_run(world: World) -> None:
    order: list[str] = []
    loop = world.loop

    def nested() -> None:
        order.append("in")
        loop.add_timer(0, loop.stop)
        loop.run()
        order.append("out")

    loop.add_timer(0, nested)
    loop.set_loop_timeout(0)
    loop.set_post_loop_callback(lambda *_: False)
    loop.run()
    assert order == ["in", "out"]


# --- a run within a run ---------------------------------------------------------------------------


def test_handler_may_run_loop_until_data_arrives(world: World) -> None:
    one, two = world.socketpair()
    three, four = world.socketpair()
    inner = Recorder(three, world.loop)
    inner.watch_read(True)

    def waits(obj: Recorder) -> None:
        obj.take()
        four.send(b"answer")
        while not inner.got:
            world.turn()
        obj.got += inner.got

    outer = Recorder(one, world.loop, read=waits)
    outer.watch_read(True)
    two.send(b"question ")
    world.turn()
    assert outer.got == b"question answer"


def test_object_closed_in_nested_run_is_not_reported_unknown_by_outer_run(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = world.socketpair()
    three, four = world.socketpair()

    def closes(obj: Recorder) -> None:
        second.close()
        world.turn()

    first = Recorder(one, world.loop, read=closes)
    second = Recorder(three, world.loop)
    fd = fd_of(second)
    batch(world, (fd_of(first), IN), (fd, IN))
    with world.calls() as calls:
        world.turn()
    assert caplog.text == "" and len(only(calls, "unregister")) == 1
    assert not world.is_open(fd)


def test_event_of_outer_batch_is_not_delivered_to_new_owner_of_fd(
    world: World,
) -> None:
    one, two = world.socketpair()
    three, four = world.socketpair()
    fd = three.fileno()
    newcomers: list[Recorder] = []

    def closes(obj: Recorder) -> None:
        second.close()
        world.turn()
        for thing in world.socketpair():
            if thing.fileno() == fd:
                newcomers.append(Recorder(thing, world.loop))

    first = Recorder(one, world.loop, read=closes)
    second = Recorder(three, world.loop)
    batch(world, (fd_of(first), IN), (fd, HUP))
    world.turn()
    assert len(newcomers) == 1
    assert newcomers[0].events == [] and not newcomers[0].closed


def test_second_nested_run_also_drops_events_of_outer_batch(world: World) -> None:
    newcomers: list[Recorder] = []
    objects: list[Recorder] = []

    def act(obj: Recorder) -> None:
        other = objects[obj is objects[0]]
        fd = fd_of(other)
        for each in objects:
            each.watch_read(False)
        for _ in range(2):
            one, two = world.socketpair()
            two.send(b"y")
            Recorder(one, world.loop).watch_read(True)
        world.turn()  # has its own batch, and closes nothing
        other.close()
        world.turn()
        for thing in world.socketpair():
            if thing.fileno() == fd:
                newcomers.append(Recorder(thing, world.loop))

    for _ in range(2):
        one, two = world.socketpair()
        two.send(b"x")
        objects.append(Recorder(one, world.loop, read=act))
    for obj in objects:
        obj.watch_read(True)
    world.turn()
    assert len(newcomers) == 1 and newcomers[0].events == []


def test_exception_in_nested_run_propagates_through_outer_run(world: World) -> None:
    loop = world.loop

    def dies() -> None:
        raise KeyError("inner")

    def nested() -> None:
        loop.add_timer(0, dies)
        loop.run()

    loop.add_timer(0, nested)
    with pytest.raises(KeyError, match="inner"):
        loop.run()
    world.turn()


@pytest.mark.parametrize("what", ["pushed-back data", "timers"])
def test_outer_run_finishes_what_exception_interrupted_in_nested_run(
    world: World, what: str
) -> None:
    done: list[str] = []

    def dies(obj: Recorder | None = None) -> None:
        done.append("dies")
        if obj is not None:
            obj.take()
        raise ZeroDivisionError

    def goes_on(obj: Recorder | None = None) -> None:
        done.append("goes on")
        if obj is not None:
            obj.take()

    def nested(obj: Recorder) -> None:
        obj.take()
        if what == "timers":
            world.loop.add_timer(-2, dies)
            world.loop.add_timer(-1, goes_on)
        else:
            for each in others:
                each.push_back_read(b"again")
        with pytest.raises(ZeroDivisionError):
            world.turn()
        assert done == ["dies"]

    others = [Recorder(world.socketpair()[0], world.loop, read=each) for each in (dies, goes_on)]
    for each in others:
        each.watch_read(True)
    one, two = world.socketpair()
    Recorder(one, world.loop, read=nested).watch_read(True)
    two.send(b"x")
    world.turn()
    if what == "timers":
        world.turn()
    assert done == ["dies", "goes on"]


# --- exceptions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("event", ["read", "write", "err", "hup"])
@pytest.mark.parametrize("profiling", [False, True], ids=["plain", "profiling"])
def test_exception_leaves_run_after_deferred_closes_and_loses_no_event(
    world: World, event: str, profiling: bool
) -> None:
    def dies(obj: Recorder) -> None:
        closed.close()
        raise ZeroDivisionError

    closed = Recorder(world.socketpair()[0], world.loop)
    fd = fd_of(closed)
    one, _ = world.socketpair()
    three, four = world.socketpair()
    obj = Recorder(one, world.loop, actions={event: dies})
    last = Recorder(three, world.loop)
    last.watch_read(True)
    four.send(b"x")
    if profiling:
        world.loop.enable_profiling()
    mask = {"read": IN, "write": OUT, "err": ERR, "hup": HUP}[event]
    batch(world, (fd_of(obj), mask), (fd_of(last), IN))
    with pytest.raises(ZeroDivisionError):
        world.loop.run()
    assert not world.is_open(fd) and not obj.closed
    assert last.events == []
    world.turn()
    assert last.got == b"x"


@pytest.mark.parametrize("event", ["read", "write", "err", "hup"])
@pytest.mark.parametrize("profiling", [False, True], ids=["plain", "profiling"])
def test_on_exception_gets_object_and_error_and_batch_continues_after_its_close(
    world: World, event: str, profiling: bool
) -> None:
    told: list[tuple[object, Exception, bool]] = []
    error = ZeroDivisionError()

    def dies(obj: Recorder) -> None:
        raise error

    one, _ = world.socketpair()
    three, four = world.socketpair()
    fd = one.fileno()
    obj = Recorder(one, world.loop, actions={event: dies})
    last = Recorder(three, world.loop)
    last.watch_read(True)
    four.send(b"x")
    if profiling:
        world.loop.enable_profiling()
    world.loop.on_exception = tell = lambda o, e: told.append((o, e, obj.closed))
    assert world.loop.on_exception is tell
    mask = {"read": IN, "write": OUT, "err": ERR, "hup": HUP}[event]
    batch(world, (fd_of(obj), mask), (fd_of(last), IN))
    world.turn()
    assert told == [(obj, error, False)]
    assert obj.events == [event, "close exception"] and last.got == b"x"
    assert not world.is_open(fd)


def test_object_that_closed_itself_before_raising_keeps_its_close_reason(world: World) -> None:
    reasons: list[str | None] = []

    class Dies(Socket[AnyHandle]):
        def event_read(self) -> None:
            self.close("first")
            raise KeyError

        def close(self, reason: str | None = None) -> None:
            reasons.append(reason)
            super().close(reason)

    one, two = world.socketpair()
    Dies(one, world.loop).watch_read(True)
    two.send(b"x")
    world.loop.on_exception = lambda o, e: None
    world.turn()
    assert reasons == ["first"]


def test_on_exception_may_be_taken_off(world: World) -> None:
    world.loop.on_exception = lambda o, e: None
    world.loop.on_exception = None
    one, two = world.socketpair()

    def dies(obj: Recorder) -> None:
        raise ZeroDivisionError

    Recorder(one, world.loop, read=dies).watch_read(True)
    two.send(b"x")
    with pytest.raises(ZeroDivisionError):
        world.turn()


def test_other_fd_gets_its_whole_event_mask_even_while_profiling(world: World) -> None:
    one, _ = world.socketpair()
    heard: list[int] = []
    world.loop.add_other_fds({one.fileno(): heard.append})
    world.loop.enable_profiling()
    batch(world, (one.fileno(), IN | HUP))
    world.turn()
    assert heard == [IN | HUP] and world.loop.profiling_data == {}


def test_on_exception_receives_error_from_queued_callable(world: World) -> None:
    told: list[object] = []

    def dies() -> None:
        raise KeyError

    one, two = world.socketpair()
    obj = Recorder(one, world.loop)
    while obj.write(bytes(65536)):
        pass
    obj.write(dies)
    world.loop.on_exception = lambda o, e: told.append(o)

    def drained() -> object:
        drain(two)
        return told

    world.until(drained)
    assert told == [obj] and obj.closed


def test_on_exception_gets_errors_of_pushed_back_reads_and_post_loop_callbacks(
    world: World,
) -> None:
    told: list[tuple[object, str]] = []

    def act(obj: Recorder) -> None:
        if obj.read(10) == b"x":
            obj.push_back_read(b"y")
        else:
            raise KeyError("read")

    def callback(name: str) -> Callable[[object, object], object]:
        def after(sockets: object, others: object) -> object:
            raise KeyError(name)

        return after

    one, two = world.socketpair()
    obj = Recorder(one, world.loop, read=act)
    obj.watch_read(True)
    two.send(b"x")
    three, _ = world.socketpair()
    own = Recorder(three, world.loop)
    own.SetPostLoopCallback(callback("own"))
    loop = world.loop

    def note(obj: object, error: Exception) -> None:
        told.append((obj, str(error)))
        if len(told) == 4:
            loop.stop()

    loop.on_exception = note
    loop.set_loop_timeout(0)
    loop.set_post_loop_callback(callback("global"))
    loop.run()
    assert told[:3] == [(obj, "'read'"), (own, "'own'"), (None, "'global'")]
    assert obj.closed and own.closed
    assert told[3:] == [(None, "'global'")]


@pytest.mark.parametrize("own", [True, False])
def test_exception_in_post_loop_callback_leaves_run(world: World, own: bool) -> None:
    def dies(sockets: object, others: object) -> object:
        raise KeyError

    obj = Recorder(world.socketpair()[0], world.loop)
    (obj.SetPostLoopCallback if own else world.loop.set_post_loop_callback)(dies)
    world.loop.set_loop_timeout(0)
    with pytest.raises(KeyError):
        world.loop.run()
    (obj.SetPostLoopCallback if own else world.loop.set_post_loop_callback)(None)
    assert not obj.closed
    world.turn()


def test_no_exception_of_user_code_leaves_run_when_on_exception_is_set(world: World) -> None:
    """Whether a handler raises, a `close`, a handle's close, a callback or a writer function."""

    class Unclosable(Recorder):
        def close(self, reason: str | None = None) -> None:
            raise RuntimeError("close")

        def event_read(self) -> None:
            raise RuntimeError("handler")

    class Writes(Recorder):
        def event_read(self) -> None:
            super().event_read()
            self.set_writer_func(lambda data, count, offset: 1 // 0)
            self.write(b"data")

    told: list[str] = []
    world.loop.on_exception = lambda obj, error: told.append(str(error))
    pairs = [world.socketpair() for _ in range(2)]
    objects = [Unclosable(pairs[0][0], world.loop), Writes(pairs[1][0], world.loop)]
    for obj, (_, there) in zip(objects, pairs):
        obj.watch_read(True)
        there.send(b"x")
    world.loop.add_timer(0, lambda: print(1 // 0))
    world.loop.call_soon(lambda: print(1 // 0))
    objects[1].SetPostLoopCallback(lambda *_: 1 // 0)
    world.turn()
    world.turn()
    assert all(obj.closed and obj.fd is None for obj in objects)
    assert "handler" in told and len([error for error in told if "by zero" in error]) >= 3
    assert world.loop.watched_sockets == 0


def test_exception_raised_by_on_exception_leaves_run_and_object_is_closed(world: World) -> None:
    def dies(obj: object, error: Exception) -> None:
        raise LookupError from error

    def first(obj: Recorder) -> None:
        raise KeyError

    one, two = world.socketpair()
    obj = Recorder(one, world.loop, read=first)
    obj.watch_read(True)
    two.send(b"x")
    world.loop.on_exception = dies
    with pytest.raises(LookupError):
        world.loop.run()
    assert obj.closed and world.loop.watched_sockets == 0


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_on_exception_does_not_receive_keyboard_interrupt_or_system_exit(
    world: World, kind: type[BaseException]
) -> None:
    def dies(obj: Recorder) -> None:
        raise kind

    one, two = world.socketpair()
    obj = Recorder(one, world.loop, read=dies)
    obj.watch_read(True)
    two.send(b"x")
    world.loop.on_exception = lambda o, e: None
    with pytest.raises(kind):
        world.loop.run()
    assert not obj.closed


def test_missing_handler_error_names_class_and_event(world: World) -> None:
    class Bare(Socket[AnyHandle]):
        pass

    one, two = world.socketpair()
    obj = Bare(one, world.loop)
    for event in ("event_read", "event_err", "event_hup"):
        with pytest.raises(NotImplementedError, match=f"Bare.*{event}"):
            getattr(obj, event)()
    obj.watch_read(True)
    two.send(b"x")
    with pytest.raises(NotImplementedError, match="Bare has no event_read"):
        world.loop.run()


# --- the wait fails -------------------------------------------------------------------------------

WAITS = {"epoll": "epoll_wait", "poll": "poll", "kqueue": "kevent"}


def failing_wait(world: World, number: int) -> pytest.MonkeyPatch:
    """The next wait of the backend fails."""
    patch = world.stack.enter_context(pytest.MonkeyPatch.context())
    call = getattr(libc, WAITS[world.backend])
    failed: list[int] = []

    def fails(*arguments: object) -> object:
        if failed or (world.backend == "kqueue" and arguments[1] is not None):
            return call(*arguments)
        failed.append(1)
        ctypes.set_errno(number)
        return -1

    # The function's name identifies an older NetBSD.
    fails.__name__ = getattr(call, "__name__", "")
    patch.setattr(libc, WAITS[world.backend], fails)
    return patch


def test_signal_during_wait_yields_empty_batch(world: World) -> None:
    turns: list[int] = []

    def after(sockets: object, others: object) -> bool:
        turns.append(1)
        return False

    failing_wait(world, EINTR)
    world.loop.set_post_loop_callback(after)
    world.loop.run()
    assert turns == [1]


def test_any_other_failure_of_wait_is_raised(world: World) -> None:
    failing_wait(world, EINVAL)
    called: list[int] = []
    world.loop.set_post_loop_callback(lambda *_: called.append(1))
    with pytest.raises(OSError, match=WAITS[world.backend].split("_")[0]) as caught:
        world.loop.run()
    assert caught.value.errno == EINVAL and called == []
    world.loop.reset()
    world.turn()


@real_only
def test_signal_handler_runs_before_post_loop_callbacks(world: World) -> None:
    order: list[str] = []

    def handler(number: int, frame: FrameType | None) -> None:
        order.append("handler")

    def after(sockets: object, others: object) -> bool:
        order.append("callback")
        return "handler" not in order

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        # The signal arrives during the wait; or before it, which does no harm, as it is sent again.
        me = threading.get_ident()
        sender = Repeating(lambda: signal.pthread_kill(me, signal.SIGUSR1))
        with sender:
            world.loop.set_post_loop_callback(after)
            world.loop.run()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert order[0] == "handler" and order.count("callback") == 1


class Repeating:
    """Repeats an action in another thread until the block ends: a signal that arrives before the
    wait begins doesn't end it."""

    def __init__(self, action: Callable[[], object]) -> None:
        self._action = action
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._over.wait(0.01):
            self._action()

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


@real_only
def test_stop_in_signal_handler_ends_loop(world: World) -> None:
    def handler(number: int, frame: FrameType | None) -> None:
        world.loop.stop()

    me = threading.get_ident()
    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with Repeating(lambda: signal.pthread_kill(me, signal.SIGUSR1)):
            world.loop.run()
    finally:
        signal.signal(signal.SIGUSR1, before)


@real_only
def test_exception_from_signal_handler_leaves_run_after_deferred_closes(
    world: World,
) -> None:
    class Stop(BaseException):
        pass

    raised: list[int] = []

    def handler(number: int, frame: FrameType | None) -> None:
        if obj.closed and not raised:  # A signal may come before `run`, where nothing handles it.
            raised.append(1)
            raise Stop

    one, _ = world.socketpair()
    fd = one.fileno()
    obj = Recorder(one, world.loop)
    world.loop.add_timer(0, obj.close)
    me = threading.get_ident()
    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with Repeating(lambda: signal.pthread_kill(me, signal.SIGUSR1)):
            with pytest.raises(Stop):
                world.loop.run()
    finally:
        signal.signal(signal.SIGUSR1, before)
    world.turn()
    assert not world.is_open(fd)


# --- several loops --------------------------------------------------------------------------------


def test_two_loops_are_independent(world: World) -> None:
    first, second = world.new_loop(), world.new_loop()
    one, two = world.socketpair()
    a, b = Recorder(one, first), Recorder(two, second)
    for obj in (a, b):
        obj.watch_read(True)
    a.write(b"to b")
    world.turn(first)
    assert b.got == b"" and a.events == []
    world.turn(second)
    assert b.got == b"to b"
    assert first.descriptor_map == {one.fileno(): a}
    assert second.descriptor_map == {two.fileno(): b}
    first.reset()
    assert second.watched_sockets == 1
    b.write(b"back")
    assert one.recv(10) == b"back"


@real_only
def test_each_thread_can_run_its_own_loop(world: World) -> None:
    def ping_pong(result: list[int]) -> None:
        with Loop(world.backend) as loop:
            one, two = world.socketpair()

            class Player(Recorder):
                def event_read(self) -> None:
                    self.take()
                    if len(self.got) >= 100:
                        loop.stop()
                    self.write(b"x")

            a, b = Player(one, loop), Player(two, loop)
            a.watch_read(True)
            b.watch_read(True)
            a.write(b"x")
            loop.run()
            result.append(len(a.got) + len(b.got))
            a.close()
            b.close()

    results: list[list[int]] = [[] for _ in range(4)]
    threads = [threading.Thread(target=ping_pong, args=(result,)) for result in results]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [[199]] * 4


# --- reset, close, context manager ----------------------------------------------------------------


def test_reset_returns_loop_to_its_initial_state(world: World) -> None:
    loop = world.loop
    one, two = world.socketpair()
    three, four = world.socketpair()
    obj = Recorder(one, loop)
    obj.watch_read(True)
    obj.push_back_read(b"pushed")
    obj.SetPostLoopCallback(lambda *_: fired.append("own"))
    fired: list[str] = []
    loop.add_other_fds({three.fileno(): lambda state: fired.append("other")})
    loop.add_timer(0, lambda: fired.append("timer"))
    loop.set_loop_timeout(5)
    loop.set_post_loop_callback(lambda *_: fired.append("callback"))
    loop.on_exception = lambda o, e: None
    loop.enable_profiling()
    two.send(b"x")
    four.send(b"x")
    poller = loop._registry.open().fileno()
    loop.reset()
    assert poller == -1 or not world.is_open(poller)
    assert loop.watched_sockets == 0 and loop.descriptor_map == {} and loop.other_fds == {}
    assert loop.to_close == [] and loop.profiling_data == {}
    assert state(loop) == state(world.new_loop())
    with world.calls() as calls:
        loop.add_timer(0, loop.stop)
        loop.run()
    assert calls == [] and fired == []
    loop.set_post_loop_callback(lambda *_: False)
    loop.add_timer(0, lambda: loop.add_timer(0.001, lambda: None))
    with world.calls() as calls:
        loop.run()
    assert fired == [] and only(calls, "wait") != [("wait", 5)]
    assert world.is_open(one.fileno()) and world.is_open(three.fileno())
    # The descriptors can be watched again.
    again = Recorder(one, loop)
    again.watch_read(True)
    world.turn()
    assert again.got == b"x"
    # The old object isn't told.
    assert obj.events == []


@pytest.mark.parametrize("where", ["handler", "timer", "call_soon", "post-loop callback"])
def test_profiling_toggled_anywhere_takes_effect_with_next_batch(world: World, where: str) -> None:
    one, two = world.socketpair()
    two.send(b"1234")
    loop = world.loop
    switches: list[Callable[[], object]] = [
        loop.enable_profiling,
        list,
        loop.disable_profiling,
        list,
    ]
    counts: list[int] = []

    def act(obj: Recorder) -> None:
        obj.read(1)
        counts.append(sum(calls for _, _, calls in loop.profiling_data.values()))
        if where == "handler":
            switches.pop(0)()
        elif where == "timer":
            loop.add_timer(0, switches.pop(0))
        elif where == "call_soon":
            loop.call_soon(switches.pop(0))

    def after(*_: object) -> bool:
        if where == "post-loop callback":
            switches.pop(0)()
        return len(counts) < 4

    Recorder(one, loop, read=act).watch_read(True)
    loop.set_post_loop_callback(after)
    loop.run()
    assert counts == [0, 0, 1, 2]


def test_reset_disables_profiling(world: World) -> None:
    world.loop.enable_profiling()
    world.loop.reset()
    one, two = world.socketpair()
    obj = Recorder(one, world.loop)
    obj.watch_read(True)
    two.send(b"x")
    world.until(lambda: obj.got)
    assert world.loop.profiling_data == {}


def test_reset_unregisters_nothing(world: World) -> None:
    Recorder(world.socketpair()[0], world.loop)
    world.loop.add_other_fds({world.socketpair()[0].fileno(): lambda state: None})
    with world.calls() as calls:
        world.loop.reset()
    assert only(calls, "unregister", "modify", "register") == []


def test_object_from_before_reset_can_still_be_closed(world: World) -> None:
    one, _ = world.socketpair()
    fd = one.fileno()
    obj = Recorder(one, world.loop)
    world.loop.reset()
    with world.calls() as calls:
        obj.close()
        assert only(calls, "unregister") == []
    world.turn()
    assert not world.is_open(fd)


@pytest.mark.parametrize("close_first", [False, True], ids=["open", "closed in the batch"])
def test_reset_in_handler_abandons_rest_of_batch_cleanly(
    world: World, close_first: bool, caplog: pytest.LogCaptureFixture
) -> None:
    events: list[str] = []
    objects: list[Recorder] = []
    things = [world.socketpair() for _ in range(3)]

    def act(obj: Recorder) -> None:
        if close_first:
            for each in objects:
                each.close("reset")
        world.loop.reset()
        world.loop.stop()

    for one, two in things:
        objects.append(Recorder(one, world.loop, events=events, read=act))
        objects[-1].watch_read(True)
        two.send(b"x")
    fds = [one.fileno() for one, two in things]
    world.loop.add_other_fds({things[0][1].fileno(): lambda state: events.append("other")})
    with world.calls() as calls:
        world.loop.run()
    assert events.count("read") == 1 and caplog.text == ""
    assert only(calls, "unregister") == [
        ("unregister", fd, 57) for fd in (fds if close_first else [])
    ]
    assert [world.is_open(fd) for fd in fds] == [not close_first] * 3


def test_closed_loop_can_be_used_again(world: World) -> None:
    loop = world.loop
    loop.close()
    loop.close()
    one, two = world.socketpair()
    obj = Recorder(one, loop)
    obj.watch_read(True)
    two.send(b"x")
    world.turn()
    assert obj.got == b"x"


def test_context_manager_closes_poller_even_after_exception(world: World) -> None:
    with pytest.raises(KeyError):
        with Loop(world.backend) as loop:
            fd = loop._registry.open().fileno()
            raise KeyError
    assert fd == -1 or not world.is_open(fd)


@real_only
def test_child_program_does_not_inherit_poller(world: World) -> None:
    fd = world.loop._registry.open().fileno()
    assert fd == -1 or not os.get_inheritable(fd)


def test_new_loop_opens_no_descriptor_until_it_is_used(world: World) -> None:
    before = world.open_fds()
    loop = world.new_loop()
    loop.set_loop_timeout(0)
    loop.set_post_loop_callback(lambda *_: False)
    loop.add_timer(1, print)
    assert world.open_fds() == before
    loop.run()
    assert len(world.open_fds() - before) == (0 if world.backend == "poll" else 1)


# --- fork -----------------------------------------------------------------------------------------


@real_only
def test_reset_after_fork_leaves_parents_registrations_alone(world: World) -> None:
    loop = world.loop
    one, two = world.socketpair()
    three, four = world.socketpair()
    obj = Recorder(one, loop)
    obj.watch_read(True)
    hit: list[int] = []
    loop.add_other_fds({three.fileno(): lambda state: hit.append(len(drain(three)))})
    read_end, write_end = world.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        status = 1
        try:
            loop.reset()
            mine = Recorder(one, loop)
            mine.watch_read(True)
            two.send(b"x")
            world.until(lambda: mine.got)
            mine.close()
            obj.close()
            loop.reset()
            write_end.send(bytes(mine.got))
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0) == (child, 0)
    assert read_end.recv(10) == b"x"
    assert obj.got == b""
    two.send(b"for the parent")
    four.send(b"!")
    world.until(lambda: obj.got and hit)
    assert obj.got == b"for the parent" and hit == [1]


# --- backends -------------------------------------------------------------------------------------


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program on the package in a separate process."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        check=False,
        timeout=PATIENCE,
    )


def test_requested_backend_is_used(world: World) -> None:
    loop = world.loop
    assert loop.backend == world.backend
    assert isinstance(loop._registry.open(), POLLERS[world.backend])
    assert loop.have_epoll is (world.backend == "epoll")
    assert loop.have_kqueue is (world.backend == "kqueue")


def test_backends_are_preferred_in_order_kqueue_epoll_poll(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DANGA_RAW_BACKEND", raising=False)
    monkeypatch.delenv("DANGA_RAW_LIBKQUEUE", raising=False)
    names = backends()
    assert names == [name for name in ("kqueue", "epoll", "poll") if name in names]
    assert world.backend in names
    assert Loop().backend == names[0]


def test_environment_variable_forces_backend(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DANGA_RAW_BACKEND", world.backend)
    assert Loop().backend == world.backend
    monkeypatch.setenv("DANGA_RAW_BACKEND", "")
    assert Loop().backend == backends()[0]
    monkeypatch.setenv("DANGA_RAW_BACKEND", "select")
    assert Loop(world.backend).backend == world.backend
    with pytest.raises(ValueError, match="no backend 'select' here; there are .*poll"):
        Loop()


@pytest.mark.parametrize("name", ["select", "EPOLL", " poll", "kqueue "])
def test_unknown_backend_is_rejected_with_list_of_available_ones(world: World, name: str) -> None:
    with pytest.raises(ValueError) as caught:
        Loop(name)
    assert repr(name) in str(caught.value)
    for there in backends():
        assert there in str(caught.value)


def test_backend_of_another_system_is_rejected(world: World) -> None:
    absent = "epoll" if "epoll" not in backends() else "kqueue"
    with pytest.raises(ValueError, match=f"no backend '{absent}' here"):
        Loop(absent)


def test_default_loop_takes_backend_from_environment() -> None:
    code = "import danga_raw; print(danga_raw.default_loop().backend, danga_raw.Socket.HaveEpoll())"
    assert run(code, DANGA_RAW_BACKEND="poll").stdout == "poll False\n"


def test_threads_asking_for_default_loop_at_once_get_same_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    theirs: list[Loop] = []
    other = threading.Thread(target=lambda: theirs.append(default_loop()))

    def slowly() -> Loop:
        monkeypatch.setattr("danga_raw.socket.Loop", Loop)
        other.start()
        other.join(0.1)  # It ends only if it does not wait for this one.
        return Loop()

    monkeypatch.setattr("danga_raw.socket._default_loop", None)
    monkeypatch.setattr("danga_raw.socket.Loop", slowly)
    mine = default_loop()
    other.join()
    assert theirs == [mine]


def test_importing_package_opens_no_descriptor_and_does_not_import_socket() -> None:
    code = """
import os, sys
made = []
def audit(event, arguments):
    if event.startswith("socket.") or event == "select":
        made.append(event)
sys.addaudithook(audit)
import ctypes  # libffi keeps its own file open from 3.8 on
pipe = os.pipe()
os.close(pipe[0]); os.close(pipe[1])
import danga_raw
assert not {"socket", "selectors", "select", "asyncio", "ssl"} & set(sys.modules), sys.modules
again = os.pipe()
assert again == pipe, (again, pipe)
assert made == [], made
"""
    result = run(code)
    assert (result.returncode, result.stderr) == (0, "")


# --- fd 0 -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("other", [False, True], ids=["object", "other fd"])
def test_fd_0_works_like_any_other_descriptor(backend: str, other: bool) -> None:
    code = """
import os, socket, sys
import danga_raw
here, there = socket.socketpair()
os.dup2(here.fileno(), 0)
here.close()
zero = socket.socket(fileno=0)
zero.setblocking(False)
there.send(b"to zero")
got = []
class Zero(danga_raw.Socket):
    def event_read(self):
        got.append(self.read(100))
        self.push_back_read(b"again") if len(got) == 1 else self.close()
        self.tcp_cork(True)
loop = danga_raw.Loop(sys.argv[1])
if sys.argv[2] == "1":
    loop.add_other_fds({0: lambda state: got.append(os.read(0, 100))})
else:
    obj = Zero(zero, loop)
    obj.SetPostLoopCallback(lambda sockets, others: got.append("own") or True)
    obj.watch_read(True)
    assert obj.write(b"from zero") is True and loop.descriptor_map == {0: obj}
loop.set_post_loop_callback(lambda sockets, others: False)
loop.run()
print(got)
if sys.argv[2] == "1":
    loop.other_fds = {}
    zero.close()
else:
    print(there.recv(100), there.recv(100), obj.closed, loop.watched_sockets)
loop.close()
there.close()
"""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, backend, str(int(other))],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
        timeout=PATIENCE,
    )
    assert result.stderr == ""
    wanted = "[b'to zero']\n" if other else "[b'to zero', b'again']\nb'from zero' b'' True 0\n"
    assert result.stdout == wanted


# --- profiling ------------------------------------------------------------------------------------


def test_profiling_is_refused_where_python_lacks_resource_module(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = world.socketpair()
    obj = Recorder(one, world.loop)
    obj.watch_read(True)
    monkeypatch.setitem(sys.modules, "resource", None)
    with pytest.raises(ImportError, match="resource"):
        world.loop.enable_profiling()
    two.send(b"x")
    world.turn()
    assert obj.got == b"x" and not obj.closed and world.loop.profiling_data == {}


def test_profiling_counts_handlers_by_class_and_event(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def getrusage(who: int) -> tuple[float, float]:
        calls.append(who)
        return 0.5 * len(calls), 0.25 * len(calls)

    monkeypatch.setattr(libc, "getrusage", getrusage)
    one, _ = world.socketpair()
    obj = Recorder(one, world.loop, actions=QUIET)
    assert world.loop.enable_profiling() is True
    for mask in (IN, IN | OUT, IN | OUT | ERR | HUP):
        with batch(world, (fd_of(obj), mask)).context():
            world.turn()
    data = world.loop.profiling_data
    assert data == {
        "Recorder-read": (1.5, 0.75, 3),
        "Recorder-write": (1.0, 0.5, 2),
        "Recorder-err": (0.5, 0.25, 1),
        "Recorder-hup": (0.5, 0.25, 1),
    }
    assert len(calls) == 14
    world.loop.disable_profiling()
    with batch(world, (fd_of(obj), IN)).context():
        world.turn()
    assert world.loop.profiling_data["Recorder-read"] == (1.5, 0.75, 3) and len(calls) == 14
    world.loop.enable_profiling()
    assert world.loop.profiling_data == {}


def test_profiling_can_be_enabled_in_handler(world: World) -> None:
    one, two = world.socketpair()
    obj = Recorder(one, world.loop, read=lambda obj: obj.loop.enable_profiling())
    obj.watch_read(True)
    two.send(b"x")
    world.turn()
    world.turn()
    assert obj.events == ["read", "read"] and "Recorder-read" in world.loop.profiling_data


def test_nothing_is_profiled_unless_enabled(world: World) -> None:
    one, two = world.socketpair()
    obj = Recorder(one, world.loop)
    obj.watch_read(True)
    two.send(b"x")
    world.turn()
    assert obj.got == b"x" and world.loop.profiling_data == {}


def test_fixture_reports_open_descriptors_and_drains_sockets(world: World) -> None:
    one: AnyHandle
    one, two = world.socketpair()
    assert world.is_open(one.fileno()) and not world.is_open(999_999)
    assert drain(two) == b""
