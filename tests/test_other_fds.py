"""Descriptors without an object: listeners, pipes and the like, each with a callback."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest

from danga_raw import Loop
from danga_raw.types import Poller
from tests.world import HUP, IN, POLLERS, Recorder, World, drain, only, readiness_only


def test_other_fd_is_registered_at_once_and_its_callback_gets_the_event_mask(world: World) -> None:
    one, two = world.socketpair()
    states: list[int] = []

    def ready(state: int) -> None:
        states.append(state)
        drain(one)

    with world.calls() as calls:
        world.loop.add_other_fds({one.fileno(): ready})
    assert calls == [("register", one.fileno(), IN)]
    world.turn()
    assert states == []
    two.send(b"x")
    world.turn()
    world.turn()
    assert states == [IN]
    two.close()
    world.turn()
    assert len(states) == 2 and states[1] & IN


def test_second_run_registers_nothing_again(world: World) -> None:
    one, two = world.socketpair()
    calls_made: list[int] = []
    world.loop.add_other_fds({one.fileno(): calls_made.append})
    two.send(b"x")
    world.turn()
    with world.calls() as calls:
        world.turn()
    assert only(calls, "register") == [] and len(calls_made) == 2


def test_other_fds_can_be_added_while_the_loop_runs(world: World) -> None:
    one, two = world.socketpair()
    hit: list[int] = []
    two.send(b"x")
    world.loop.add_timer(0, lambda: world.loop.add_other_fds({one.fileno(): hit.append}))
    world.until(lambda: hit)
    assert hit == [IN]


def test_add_other_fds_adds_and_assignment_replaces(world: World) -> None:
    a, b, c = (world.socketpair()[0].fileno() for _ in range(3))
    loop = world.loop

    def callback(state: int) -> None: ...

    assert loop.add_other_fds({a: callback}) == {a: callback}
    assert loop.add_other_fds({b: callback}) == {a: callback, b: callback}
    assert loop.other_fds == {a: callback, b: callback}
    with world.calls() as calls:
        loop.other_fds = {b: callback, c: callback}
    assert loop.other_fds == {b: callback, c: callback}
    assert calls == [("register", c, IN), ("unregister", a, IN)]
    with world.calls() as calls:
        loop.other_fds = {}
    assert sorted(calls) == sorted([("unregister", b, IN), ("unregister", c, IN)])
    assert loop.other_fds == {}


def test_new_callback_for_a_watched_fd_makes_no_call(world: World) -> None:
    one, two = world.socketpair()
    two.send(b"x")
    hit: list[str] = []
    world.loop.add_other_fds({one.fileno(): lambda state: hit.append("old")})
    with world.calls() as calls:
        world.loop.add_other_fds({one.fileno(): lambda state: hit.append("new")})
    assert calls == []
    world.turn()
    assert hit == ["new"]


def test_replaced_fds_are_never_closed(world: World) -> None:
    one, two = world.socketpair()
    world.loop.add_other_fds({one.fileno(): lambda state: None})
    two.send(b"x")
    world.loop.other_fds = {}
    world.turn()
    world.loop.reset()
    assert world.is_open(one.fileno())
    assert drain(one) == b"x"


def test_reset_drops_other_fds_and_leaves_them_open(world: World) -> None:
    one, two = world.socketpair()
    hit: list[int] = []
    world.loop.add_other_fds({one.fileno(): hit.append})
    world.loop.reset()
    assert world.loop.other_fds == {}
    two.send(b"x")
    world.turn()
    assert hit == [] and world.is_open(one.fileno())


def test_other_fd_removed_while_its_event_is_pending_gets_none_and_stays_open(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    things = [world.socketpair() for _ in range(4)]
    hit: list[int] = []

    def drop_all(state: int) -> None:
        hit.append(state)
        world.loop.other_fds = {}

    world.loop.add_other_fds({one.fileno(): drop_all for one, two in things})
    for one, two in things:
        two.send(b"x")
    with world.calls() as calls:
        world.turn()
    assert hit == [IN]
    assert only(calls, "close") == [] and caplog.text == ""
    assert all(world.is_open(one.fileno()) for one, two in things)
    world.turn()
    assert hit == [IN]


def test_other_fd_may_become_an_object_while_its_event_is_pending(world: World) -> None:
    pairs = [world.socketpair() for _ in range(3)]
    objects: list[Recorder] = []

    def adopt(state: int) -> None:
        world.loop.other_fds = {}
        for one, _ in pairs:
            objects.append(Recorder(one, world.loop))
            objects[-1].watch_read(True)

    world.loop.add_other_fds({one.fileno(): adopt for one, _ in pairs})
    for _, two in pairs:
        two.send(b"x")
    world.turn()
    world.until(lambda: all(obj.got == b"x" for obj in objects))
    assert len(objects) == 3 and not any(obj.closed for obj in objects)


def test_fd_of_an_object_is_rejected(world: World) -> None:
    one, two = world.socketpair()
    obj = Recorder(one, world.loop)
    with pytest.raises(FileExistsError):
        world.loop.add_other_fds({one.fileno(): lambda state: None})
    assert world.loop.other_fds == {}
    obj.watch_read(True)
    two.send(b"x")
    world.until(lambda: obj.got)


def test_object_over_an_other_fd_is_rejected(world: World) -> None:
    one, two = world.socketpair()
    hit: list[int] = []
    world.loop.add_other_fds({one.fileno(): hit.append})
    with pytest.raises(FileExistsError):
        Recorder(one, world.loop)
    assert world.loop.watched_sockets == 0
    two.send(b"x")
    world.turn()
    assert hit == [IN]


def test_add_other_fds_adds_none_if_one_cannot_be_added(world: World) -> None:
    world.lenient()
    good, peer = world.socketpair()
    hit: list[int] = []
    with pytest.raises(OSError):
        world.loop.add_other_fds({good.fileno(): hit.append, 999_999: hit.append})
    assert world.loop.other_fds == {}
    peer.send(b"x")
    world.turn()
    assert hit == []
    world.loop.add_other_fds({good.fileno(): hit.append})
    world.turn()
    assert hit == [IN]


def test_assignment_changes_nothing_if_one_fd_cannot_be_added(world: World) -> None:
    world.lenient()
    old, peer = world.socketpair()
    new, _ = world.socketpair()
    hit: list[int] = []
    world.loop.add_other_fds({old.fileno(): hit.append})
    before = dict(world.loop.other_fds)
    with pytest.raises(OSError):
        world.loop.other_fds = {new.fileno(): hit.append, 999_999: hit.append}
    assert world.loop.other_fds == before
    peer.send(b"x")
    world.turn()
    assert hit == [IN]


def test_assignment_changes_nothing_if_a_kept_fd_cannot_be_watched_again(world: World) -> None:
    world.lenient()
    gone, _ = world.socketpair()
    other, peer = world.socketpair()
    hit: list[int] = []
    world.loop.add_other_fds({gone.fileno(): hit.append, other.fileno(): hit.append})
    kept = {gone.fileno(): hit.append}
    before = dict(world.loop.other_fds)
    gone.close()
    with pytest.raises(OSError):
        world.loop.other_fds = kept
    assert world.loop.other_fds == before
    peer.send(b"x")
    world.turn()
    assert hit == [IN]


@readiness_only
def test_fd_reused_by_a_regular_file_is_rejected_and_none_is_added(world: World) -> None:
    gone, _ = world.socketpair()
    other, _ = world.socketpair()
    fd = gone.fileno()
    world.loop.add_other_fds({fd: print})
    gone.close()
    while world.file().fileno() != fd:
        pass
    with world.calls() as calls, pytest.raises(PermissionError):
        world.loop.add_other_fds({other.fileno(): print, fd: print})
    assert only(calls, "unregister") == [("unregister", other.fileno(), IN)]
    assert world.loop.other_fds == {fd: print}


def test_fd_added_before_one_that_rebuilds_the_poller_is_still_watched(
    world: World,
) -> None:
    world.lenient()
    one, _ = world.socketpair()
    first, peer = world.socketpair()
    fd = one.fileno()
    Recorder(one, world.loop)
    one.close()
    second, another = world.socketpair()
    if second.fileno() != fd:
        second, another = another, second
    assert second.fileno() == fd
    hit: list[str] = []
    callbacks = {
        first.fileno(): lambda state: hit.append("first"),
        fd: lambda state: hit.append("second"),
    }
    world.loop.add_other_fds(callbacks)
    peer.send(b"x")
    another.send(b"x")
    world.turn()
    assert sorted(hit) == ["first", "second"]


@readiness_only
def test_fd_taken_over_by_an_object_is_left_to_it(world: World) -> None:
    world.lenient()
    one, _ = world.socketpair()
    fd = one.fileno()
    world.loop.add_other_fds({fd: lambda state: None})
    one.close()
    world.turn()  # poll must notice first
    three, four = world.socketpair()
    handle, peer = (three, four) if three.fileno() == fd else (four, three)
    assert handle.fileno() == fd
    obj = Recorder(handle, world.loop)
    obj.watch_read(True)
    world.loop.other_fds = {}
    peer.send(b"x")
    world.turn()
    assert obj.got == b"x"


def test_other_fd_closed_by_its_owner_can_be_removed(world: World) -> None:
    world.lenient()
    one, _ = world.socketpair()
    world.loop.add_other_fds({one.fileno(): lambda state: None})
    one.close()
    world.loop.other_fds = {}
    assert world.loop.other_fds == {}
    world.turn()


def test_falsy_callable_is_a_valid_callback(world: World) -> None:
    class Falsy:
        hits = 0

        def __bool__(self) -> bool:
            return False

        def __call__(self, state: int) -> None:
            self.hits += 1

    one, two = world.socketpair()
    callback = Falsy()
    world.loop.add_other_fds({one.fileno(): callback})
    two.send(b"x")
    world.turn()
    assert callback.hits == 1 and world.is_open(one.fileno())


def test_exception_in_a_callback_leaves_run_which_can_run_again(world: World) -> None:
    one, two = world.socketpair()
    hit: list[int] = []

    def dies(state: int) -> None:
        hit.append(state)
        if len(hit) == 1:
            raise ZeroDivisionError

    world.loop.add_other_fds({one.fileno(): dies})
    two.send(b"x")
    with pytest.raises(ZeroDivisionError) as caught:
        world.loop.run()
    assert caught.value.__context__ is None
    world.turn()
    assert hit == [IN, IN]


def test_on_exception_receives_a_callbacks_error_and_the_callback_stays(world: World) -> None:
    one, two = world.socketpair()
    told: list[tuple[object, type[Exception]]] = []

    def dies(state: int) -> None:
        raise ZeroDivisionError

    world.loop.on_exception = lambda obj, error: told.append((obj, type(error)))
    world.loop.add_other_fds({one.fileno(): dies})
    two.send(b"x")
    world.turn()
    world.turn()
    assert told == [(None, ZeroDivisionError)] * 2
    assert world.is_open(one.fileno())


def test_callback_may_accept_connections_and_make_objects(world: World) -> None:
    # Like servers do: the callback makes objects while the loop runs.
    one, two = world.socketpair()
    made: list[Recorder] = []
    pairs = []

    def accept(state: int) -> None:
        drain(one)
        here, there = world.socketpair()
        there.send(b"hello")
        pairs.append(there)
        made.append(Recorder(here, world.loop))
        made[-1].watch_read(True)

    world.loop.add_other_fds({one.fileno(): accept})
    for count in range(1, 4):
        two.send(b"x")
        while len(made) < count or not made[-1].got:
            world.turn()
    assert [bytes(obj.got) for obj in made] == [b"hello"] * 3


# --- descriptors that nobody knows ----------------------------------------------------------------


@pytest.mark.parametrize("profiling", [False, True], ids=["plain", "profiling"])
@pytest.mark.parametrize("woken", [False, True], ids=["no waker", "a waker"])
def test_unknown_fd_is_reported_removed_and_closed(
    world: World, woken: bool, profiling: bool, caplog: pytest.LogCaptureFixture
) -> None:
    if woken:
        world.loop.call_soon_threadsafe(lambda: None)
        world.turn()
    if profiling:
        world.loop.enable_profiling()
    one, two = world.socketpair()
    fd = one.fileno()
    world.loop._registry.open().register(fd, IN)
    two.send(b"x")
    one.detach()
    with caplog.at_level(logging.WARNING), world.calls() as calls:
        world.turn()
    assert f"returned fd {fd} with state {IN}" in caplog.text
    assert only(calls, "unregister", "close") == [("unregister", fd, IN), ("close", fd)]
    assert not world.is_open(fd)
    caplog.clear()
    world.turn()
    assert caplog.text == ""


def test_fd_that_poll_finds_closed_is_reported_and_dropped(
    world: World, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    world.lenient()
    one, two = world.socketpair()
    obj = Recorder(one, world.loop)
    obj.watch_read(True)
    one.close()
    world.turn()
    if world.backend == "poll":
        assert "closed. removing." in caplog.text
    caplog.clear()
    world.turn()
    assert caplog.text == "" and obj.events == []
    obj.close()
    capfd.readouterr()


def test_removed_other_fd_is_forgotten_after_the_batch(world: World) -> None:
    """Also in a turn in which nothing else is due."""
    one, two = world.socketpair()
    leaving: list[bool] = []

    def take_off(state: int) -> None:
        drain(one)
        world.loop.other_fds = {}

    def behind(*_: object) -> bool:
        leaving.append(bool(world.loop._registry.leaving))
        if len(leaving) == 2:
            two.send(b"x")
        return bool(world.loop.other_fds)

    world.loop.add_other_fds({one.fileno(): take_off})
    world.loop.set_loop_timeout(0)
    world.loop.set_post_loop_callback(behind)
    world.loop.run()
    assert leaving == [False] * 3


def test_fd_is_unknown_again_after_the_run_in_which_it_left(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = world.socketpair()
    inner: list[int] = []

    def act(obj: Recorder) -> None:
        obj.close()
        world.turn()
        inner.append(1)

    obj = Recorder(one, world.loop, read=act)
    obj.watch_read(True)
    two.send(b"x")
    fd = one.fileno()
    world.turn()
    assert inner == [1] and not world.is_open(fd)
    three, four = world.socketpair()
    handle, peer = (three, four) if three.fileno() == fd else (four, three)
    world.loop._registry.open().register(fd, IN)
    handle.detach()
    peer.send(b"x")
    world.turn()
    assert f"returned fd {fd}" in caplog.text and not world.is_open(fd)


def test_hang_up_of_a_pipe_is_reported(world: World) -> None:
    one, two = world.pipe()
    states: list[int] = []
    loop: Loop = world.loop
    loop.add_other_fds({one.fileno(): states.append})
    two.close()
    world.turn()
    assert states and states[0] & HUP


def test_other_fd_is_unregistered_once_if_a_signal_interrupts_its_addition(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = world.socketpair()
    poller = POLLERS[world.backend]
    register: Callable[..., object] = getattr(poller, "register")  # noqa: B009

    def interrupted(self: Poller, fd: int, events: int) -> None:
        register(self, fd, events)
        raise KeyboardInterrupt

    with world.calls() as calls, monkeypatch.context() as patch:
        patch.setattr(poller, "register", interrupted)
        with pytest.raises(KeyboardInterrupt):
            world.loop.add_other_fds({one.fileno(): print})
    assert only(calls, "unregister") == [("unregister", one.fileno(), IN)]
    assert not world.loop.other_fds and not world.loop._registry.stale_entries
