"""A descriptor's number stands for one object, or one callback of an other fd, from its
registration to its removal, and for nothing else: whatever a batch in hand, the poller or a former
owner says."""

from __future__ import annotations

import errno
import gc
import logging
import os
import socket
from collections.abc import Callable
from typing import TypeVar, cast

import pytest

from danga_raw import Loop, Socket, _backends, _registry
from danga_raw.types import Poller
from tests.simkernel.handles import Handle as SimulatedHandle
from tests.test_fairness import run_for
from tests.test_loop import batch, fd_of
from tests.world import (
    HUP,
    IN,
    OUT,
    POLLERS,
    AnyHandle,
    Descriptor,
    Recorder,
    World,
    drain,
    only,
    real_only,
)

T = TypeVar("T")


def socket_with_fd(world: World, fd: int, tcp: bool = False) -> tuple[AnyHandle, AnyHandle]:
    """A new socket with the number `fd`, which must be free, and its other end."""
    one, two = world.socketpair(tcp)
    if fd not in (one.fileno(), two.fileno()):  # With real TCP, the listener got the number.
        os.dup2(one.fileno(), fd, inheritable=False)
        one.close()
        one = cast(AnyHandle, socket.socket(fileno=fd))
        world.stack.callback(one.close)
    if one.fileno() != fd:
        one, two = two, one
    assert one.fileno() == fd
    return one, two


def dup(world: World, thing: AnyHandle) -> AnyHandle:
    """Another descriptor of the same file, such as a forked child's."""
    copy = thing.dup() if isinstance(thing, SimulatedHandle) else cast(socket.socket, thing).dup()
    world.stack.callback(copy.close)
    return cast(AnyHandle, copy)


def record_and_drain(heard: list[T], what: T, thing: AnyHandle) -> None:
    heard.append(what)
    drain(thing)


# --- within a batch -------------------------------------------------------------------------------


def steal(world: World, obj: Recorder, thing: AnyHandle) -> None:
    obj.steal_socket()
    thing.close()


def close_behind_the_back(world: World, obj: Recorder, thing: AnyHandle) -> None:
    thing.close()


def close_then_close_handle(world: World, obj: Recorder, thing: AnyHandle) -> None:
    obj.close()
    thing.close()


WAYS_TO_LEAVE = [steal, close_behind_the_back, close_then_close_handle]


@pytest.mark.parametrize("leaves", WAYS_TO_LEAVE)
@pytest.mark.parametrize("becomes", ["an object", "an other fd"])
@pytest.mark.parametrize("state", [IN, HUP, IN | OUT | HUP])
def test_fd_reused_in_the_batch_after_an_object_left_gets_only_its_own_events(
    world: World,
    leaves: Callable[[World, Recorder, AnyHandle], None],
    becomes: str,
    state: int,
    capfd: pytest.CaptureFixture[str],
) -> None:
    world.lenient()
    heard: list[int] = []
    newcomers: list[Recorder] = []
    peers: list[AnyHandle] = []

    def act(obj: Recorder) -> None:
        leaves(world, old, three)
        thing, peer = socket_with_fd(world, fd)
        peers.append(peer)
        if becomes == "an object":
            newcomers.append(Recorder(thing, world.loop))
            newcomers[0].watch_read(True)
        else:
            world.loop.add_other_fds({fd: lambda state: record_and_drain(heard, state, thing)})

    one, _ = world.socketpair()
    three, _ = world.socketpair()
    first, old = Recorder(one, world.loop, read=act), Recorder(three, world.loop)
    fd = fd_of(old)
    batch(world, (fd_of(first), IN), (fd, state))
    world.turn()
    assert heard == [] and not any(obj.events for obj in newcomers)
    assert world.is_open(fd)
    old.close()
    world.turn()
    peers[0].send(b"x")
    if becomes == "an object":
        world.until(lambda: newcomers[0].got == b"x")
        assert newcomers[0].events == ["read"]
    else:
        world.until(lambda: heard)
        assert heard == [IN]
    assert world.is_open(fd) and "read" not in old.events
    capfd.readouterr()


@pytest.mark.parametrize("taken_off", [True, False], ids=["taken off", "closed behind the back"])
@pytest.mark.parametrize("becomes", ["an object", "an other fd"])
def test_fd_reused_in_the_batch_after_an_other_fd_left_gets_only_its_own_events(
    world: World, taken_off: bool, becomes: str
) -> None:
    world.lenient()
    heard: list[str] = []
    newcomers: list[Recorder] = []
    peers: list[AnyHandle] = []

    def act(obj: Recorder) -> None:
        if taken_off:
            world.loop.other_fds = {}
        three.close()
        thing, peer = socket_with_fd(world, fd)
        peers.append(peer)
        if becomes == "an object":
            newcomers.append(Recorder(thing, world.loop))
            newcomers[0].watch_read(True)
        else:
            world.loop.add_other_fds({fd: lambda state: record_and_drain(heard, "new", thing)})

    one, _ = world.socketpair()
    three, _ = world.socketpair()
    fd = three.fileno()
    first = Recorder(one, world.loop, read=act)
    world.loop.add_other_fds({fd: lambda state: heard.append("old")})
    batch(world, (fd_of(first), IN), (fd, HUP))
    world.turn()
    assert heard == [] and not any(obj.events for obj in newcomers)
    peers[0].send(b"x")
    if becomes == "an object":
        world.until(lambda: newcomers[0].got == b"x")
        assert newcomers[0].events == ["read"] and heard == []
    else:
        world.until(lambda: heard)
        assert heard == ["new"]


# --- who had it before ----------------------------------------------------------------------------


@pytest.mark.parametrize("reset", [False, True], ids=["", "from before a reset"])
def test_former_owner_of_an_fd_does_not_affect_the_new_one(
    world: World, reset: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    world.lenient()
    called: list[str] = []

    def callback(*_: object) -> bool:
        called.append("old")
        return True

    one, _ = world.socketpair(tcp=True)
    old = Recorder(one, world.loop)
    old.watch_read(True)
    old.tcp_cork(True)
    old.SetPostLoopCallback(callback)
    old.push_back_read(b"of the old")
    fd = fd_of(old)
    if reset:
        world.loop.reset()
    one.close()
    thing, peer = socket_with_fd(world, fd, tcp=True)
    new = Recorder(thing, world.loop)
    new.watch_read(True)
    new.tcp_cork(True)
    corked = new.corked  # NetBSD has no cork.
    new.push_back_read(b"of the new")
    with world.calls() as calls:
        old.push_back_read(b"more of the old")
        old.SetPostLoopCallback(callback)
        old.close()
        old.close()
        assert only(calls, "setsockopt", "unregister", "modify") == []
        world.turn()
        assert ("close", fd) not in calls
    assert called == [] and "read" not in old.events
    assert new.events == ["read"] and new.got == b"of the new"
    assert new.corked == corked and new.event_watch & IN and world.loop.descriptor_map == {fd: new}
    new.tcp_cork(False)
    peer.send(b"!")
    world.until(lambda: new.got == b"of the new!")
    del old
    gc.collect()
    assert world.is_open(fd)
    capfd.readouterr()


@pytest.mark.parametrize("first", ["new", "old"])
def test_object_from_before_a_reset_and_new_owner_of_its_fd_may_close_together(
    world: World, first: str
) -> None:
    one, _ = world.socketpair()
    old = Recorder(one, world.loop)
    fd = fd_of(old)
    world.loop.reset()
    one.close()
    thing, _ = socket_with_fd(world, fd)
    new = Recorder(thing, world.loop)
    for obj in (new, old) if first == "new" else (old, new):
        obj.close()
    assert [each for each in world.loop.to_close if each is thing] == [thing]
    world.turn()
    assert not world.is_open(fd) and world.loop.descriptor_map == {}


def test_rejected_object_does_not_change_the_order_of_closing(world: World) -> None:
    one, _ = world.socketpair()
    two, _ = world.socketpair()
    objects = [Recorder(one, world.loop), Recorder(two, world.loop)]
    with pytest.raises(FileExistsError):
        Recorder(two, world.loop)
    for obj in objects:
        obj.close()
    assert world.loop.to_close == [one, two]
    world.turn()


@real_only
@pytest.mark.parametrize("closed", [False, True], ids=["open", "closed in the batch"])
def test_stale_handle_never_closes_a_reused_fd(
    world: World, closed: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    """The owner has closed the number, without the handle's knowledge."""
    one, other = socket.socketpair()
    fd = one.fileno()
    old: Socket[socket.socket] = Socket(one, world.loop)
    if closed:
        old.close()
    os.close(fd)
    thing, peer = socket_with_fd(world, fd)
    new = Recorder(thing, world.loop)
    new.watch_read(True)
    old.close()
    world.turn()
    del old, one
    gc.collect()
    peer.send(b"x")
    world.until(lambda: new.got)
    assert world.is_open(fd) and new.got == b"x"
    other.close()
    capfd.readouterr()


def test_data_pushed_back_after_a_reset_causes_no_event(world: World) -> None:
    def act(obj: Recorder) -> None:
        obj.take()
        world.loop.reset()
        obj.push_back_read(b"again")
        obj.close()

    one, two = world.socketpair()
    obj = Recorder(one, world.loop, read=act)
    obj.watch_read(True)
    two.send(b"x")
    world.turn()
    world.turn()
    assert obj.events.count("read") == 1 and obj.closed


# --- who has it now -------------------------------------------------------------------------------


def test_fd_closed_behind_the_loops_back_can_be_reused_with_a_warning(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Whether or not the loop has had a turn in between."""
    world.lenient()
    for turns in (0, 1):
        caplog.clear()
        one, _ = world.socketpair()
        old = Recorder(one, world.loop)
        old.watch_read(True)
        fd = fd_of(old)
        one.close()
        for _ in range(turns):
            world.turn()
        thing, peer = socket_with_fd(world, fd)
        new = Recorder(thing, world.loop)
        new.watch_read(True)
        assert f"fd {fd} was closed behind the back of Recorder" in caplog.text
        assert old.closed and not new.closed
        with world.calls() as calls:
            assert old.write(b"of the old one") and old.read(10) is None
        assert only(calls, "read", "write") == []
        peer.send(b"x")
        world.until(lambda: new.got)
        assert old.events == [] and new.got == b"x"
        new.close()
        world.turn()


def another_handle(thing: AnyHandle) -> AnyHandle:
    """Another handle of the same descriptor."""
    fd = thing.fileno()
    if isinstance(thing, SimulatedHandle):
        return cast(AnyHandle, SimulatedHandle(thing.kernel, fd))
    return cast(AnyHandle, socket.socket(fileno=fd))


def test_detached_handle_no_longer_owns_its_fd(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Although the file is still registered with the kernel."""
    one, two = world.socketpair()
    old = Recorder(one, world.loop)
    old.watch_read(True)
    again = another_handle(one)
    one.detach()
    new = Recorder(again, world.loop)
    new.watch_read(True)
    assert "was closed behind the back of Recorder" in caplog.text and old.closed
    two.send(b"x")
    world.until(lambda: new.got)
    assert new.got == b"x" and not old.events
    new.close()
    world.turn()


class RaisesOnceClosed:
    """A handle whose fileno() raises once it is closed, like multiprocessing's connections."""

    def __init__(self, thing: AnyHandle, says: Exception) -> None:
        self.thing, self.says = thing, says

    def fileno(self) -> int:
        if self.thing.fileno() < 0:
            raise self.says
        return self.thing.fileno()

    def close(self) -> None:
        self.thing.close()


@pytest.mark.parametrize(
    "says", [ValueError("closed file"), OSError("handle is closed"), RuntimeError("gone")], ids=repr
)
def test_error_from_fileno_of_a_closed_handle_affects_no_other_object(
    world: World, says: Exception
) -> None:
    world.lenient()
    one, _ = world.socketpair()
    old = Socket(RaisesOnceClosed(one, says), world.loop)
    three, four = world.socketpair()
    other = Recorder(three, world.loop)
    other.watch_read(True)
    one.close()
    world.loop._registry.renew_poller()
    four.send(b"x")
    world.until(lambda: other.got)
    old.close()
    world.turn()
    assert other.got == b"x" and [*world.loop.descriptor_map] == [other.fd]


def test_exception_of_a_signal_handler_during_fileno_propagates(world: World) -> None:
    """It leaves, and no other object is forgotten because of it."""
    raises: list[Exception] = []

    class Interrupted(RaisesOnceClosed):
        def fileno(self) -> int:
            if raises:
                raise raises.pop()
            return super().fileno()

    class Reads(Socket[Interrupted]):
        got: bytes | None = b""

        def event_read(self) -> None:
            self.got = self.read(1)

    one, two = world.socketpair()
    obj = Reads(Interrupted(one, AssertionError()), world.loop)
    obj.watch_read(True)
    raises.append(TimeoutError("by a handler"))
    with pytest.raises(TimeoutError, match="by a handler"):
        world.loop._registry.renew_poller()
    two.send(b"x")
    world.until(lambda: obj.got)
    assert obj.got == b"x"
    obj.close()
    world.turn()


@real_only
def test_fd_reused_by_an_indistinguishable_file_is_registered_again(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """poll knows a file by its inode, which the ends of a pipe share."""
    one, two = world.pipe()
    old = Recorder(one, world.loop)
    fd = one.fileno()
    one.close()
    os.dup2(two.fileno(), fd, inheritable=False)
    other_end = Descriptor(fd)
    new = Recorder(other_end, world.loop, write=lambda obj: obj.close())
    assert "was closed behind the back of Recorder" in caplog.text and old.closed
    new.watch_write(True)
    world.until(lambda: new.closed)
    world.turn()
    assert "write" in new.events or "err" in new.events


def test_other_fd_that_was_closed_reopened_and_added_again_gets_events(world: World) -> None:
    world.lenient()
    one, _ = world.socketpair()
    fd = one.fileno()
    heard: list[str] = []
    world.loop.add_other_fds({fd: lambda state: heard.append("before")})
    one.close()
    thing, peer = socket_with_fd(world, fd)
    world.loop.add_other_fds({fd: lambda state: record_and_drain(heard, "behind", thing)})
    peer.send(b"x")
    world.until(lambda: heard)
    assert heard == ["behind"]


def test_other_fds_that_were_closed_and_reopened_can_be_assigned_again(world: World) -> None:
    world.lenient()
    one, _ = world.socketpair()
    fd = one.fileno()
    heard: list[str] = []
    world.loop.other_fds = {fd: lambda state: heard.append("before")}
    one.close()
    thing, peer = socket_with_fd(world, fd)
    world.loop.other_fds = {fd: lambda state: record_and_drain(heard, "behind", thing)}
    peer.send(b"x")
    world.until(lambda: heard)
    assert heard == ["behind"]


# --- an entry that outlives its number ------------------------------------------------------------


@pytest.fixture
def pollers(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The pollers that were made."""
    made: list[object] = []
    make = _backends.new_poller

    def note(backend: str) -> object:
        made.append(make(backend))
        return made[-1]

    monkeypatch.setattr(_registry, "new_poller", note)
    return made


def test_registration_kept_alive_by_a_dup_costs_one_new_poller_and_one_warning(
    world: World, pollers: list[object], caplog: pytest.LogCaptureFixture
) -> None:
    world.lenient()
    one, two = world.socketpair()
    obj = Recorder(one, world.loop)
    obj.watch_read(True)
    three, four = world.socketpair()
    other = Recorder(three, world.loop)
    other.watch_read(True)
    five, six = world.socketpair()
    heard: list[int] = []
    world.loop.add_other_fds({five.fileno(): lambda state: record_and_drain(heard, state, five)})
    before = world.open_fds()
    copy = dup(world, one)
    two.send(b"x")
    one.close()
    obj.close()
    with caplog.at_level(logging.WARNING, "danga_raw"):
        assert run_for(world, 0.02) < 10
    four.send(b"y")
    six.send(b"z")
    world.until(lambda: other.got and heard)
    assert other.got == b"y" and heard == [IN] and "read" not in obj.events
    assert len(pollers) == (2 if world.backend == "epoll" else 1)
    assert len(caplog.records) <= 1 and drain(copy) == b"x"
    copy.close()
    assert world.open_fds() < before, "the poller that was dropped is closed"


@pytest.mark.parametrize("told", [True, False], ids=["closed too", "closed behind the back only"])
@pytest.mark.parametrize("becomes", ["an object", "an other fd"])
def test_events_of_a_dup_are_not_delivered_to_the_new_owner_of_the_fd(
    world: World,
    told: bool,
    becomes: str,
    pollers: list[object],
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    world.lenient()
    one, two = world.socketpair()
    old = Recorder(one, world.loop)
    old.watch_read(True)
    three, four = world.socketpair()
    other = Recorder(three, world.loop)
    other.watch_read(True)
    fd = fd_of(old)
    dup(world, one)
    one.close()
    if told:
        old.close()
    two.send(b"of the dup")
    thing, peer = socket_with_fd(world, fd)
    heard: list[int] = []
    new: Recorder | None = None
    if becomes == "an object":
        new = Recorder(thing, world.loop)
        new.watch_read(True)
    else:
        world.loop.add_other_fds({fd: lambda state: record_and_drain(heard, state, thing)})
    with caplog.at_level(logging.WARNING, "danga_raw"):
        assert run_for(world, 0.02) < 10
    assert heard == [] and (new is None or new.events == [])
    peer.send(b"x")
    four.send(b"y")
    world.until(lambda: other.got and (heard or new is not None and new.got))
    assert other.got == b"y" and (new is None or new.got == b"x")
    assert len(caplog.records) <= 1
    assert len(pollers) == (2 if world.backend == "epoll" else 1)
    capfd.readouterr()


def test_later_events_of_a_dup_are_not_delivered_to_the_new_owner_of_the_fd(
    world: World, pollers: list[object], capfd: pytest.CaptureFixture[str]
) -> None:
    """Between the two, the loop has forgotten the first owner."""
    world.lenient()
    one, two = world.socketpair()
    old = Recorder(one, world.loop)
    old.watch_read(True)
    fd = fd_of(old)
    dup(world, one)
    one.close()
    old.close()
    world.turn()
    thing, peer = socket_with_fd(world, fd)
    new = Recorder(thing, world.loop)
    new.watch_read(True)
    two.send(b"of the dup")
    assert run_for(world, 0.02) < 10
    assert new.events == [] and len(pollers) <= 2
    peer.send(b"x")
    world.until(lambda: new.got)
    assert new.got == b"x"
    capfd.readouterr()


def test_registration_of_an_other_fd_kept_alive_by_a_dup_is_dropped_too(
    world: World, pollers: list[object], caplog: pytest.LogCaptureFixture
) -> None:
    world.lenient()
    one, two = world.socketpair()
    heard: list[int] = []
    world.loop.add_other_fds({one.fileno(): heard.append})
    dup(world, one)
    one.close()
    world.loop.other_fds = {}
    two.send(b"x")
    with caplog.at_level(logging.WARNING, "danga_raw"):
        assert run_for(world, 0.02) < 10
    assert heard == [] and len(caplog.records) <= 1
    if len(pollers) > 1:  # The real epoll's, whose entry nobody but the dup's owner could remove.
        assert "opening a new poller" in caplog.text


def test_many_registrations_kept_alive_by_dups_cost_one_new_poller_in_total(
    world: World, pollers: list[object], caplog: pytest.LogCaptureFixture
) -> None:
    world.lenient()
    pairs = [world.socketpair() for _ in range(5)]
    for one, two in pairs:
        Recorder(one, world.loop).watch_read(True)
        dup(world, one)
        two.send(b"x")
    objects = list(world.loop.descriptor_map.values())
    for one, _ in pairs:
        one.close()
    for obj in objects:
        obj.close()
    with caplog.at_level(logging.WARNING, "danga_raw"):
        assert run_for(world, 0.02) < 10
    assert len(caplog.records) <= 1 and len(pollers) <= 2


def test_poller_that_lacks_memory_to_watch_everything_is_closed_and_reopened(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = world.socketpair()
    obj = Recorder(one, world.loop)
    obj.watch_read(True)
    world.loop._registry._drop_poller()
    before = world.open_fds()

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOMEM, "no memory")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="no memory"):
        patch.setattr(POLLERS[world.backend], "register", refuse)
        world.turn()
    assert world.open_fds() == before
    two.send(b"x")
    world.until(lambda: obj.got)


def test_socket_stolen_and_wrapped_again_in_the_batch_costs_no_new_poller(
    world: World, pollers: list[object]
) -> None:
    """Its entry has been removed, so nothing is left of it."""
    one, two = world.socketpair()
    Recorder(one, world.loop).steal_socket()
    new = Recorder(one, world.loop)
    new.watch_read(True)
    two.send(b"x")
    world.until(lambda: new.got)
    assert len(pollers) == 1


def test_new_poller_omits_what_was_closed_behind_the_loops_back(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.lenient()
    gap, _ = world.socketpair()
    one, _ = world.socketpair()
    world.loop.add_other_fds({one.fileno(): lambda state: None})
    three, four = world.socketpair()
    obj = Recorder(three, world.loop)
    obj.watch_read(True)
    world.loop._registry._drop_poller()
    gap.close()  # The new poller is to have this number, and not that of the other fd.
    one.close()
    four.send(b"x")
    world.until(lambda: obj.got)
    assert os.strerror(errno.EBADF) in caplog.text


def test_two_loops_may_watch_one_fd_after_a_reset(world: World) -> None:
    one, two = world.socketpair()
    loop: Loop = world.new_loop()
    Recorder(one, world.loop)
    new = Recorder(one, loop)
    new.watch_read(True)
    world.loop.reset()
    two.send(b"x")
    world.until(lambda: new.got, loop)
    assert new.got == b"x"


# --- what the loop itself is given ----------------------------------------------------------------


@pytest.mark.parametrize("opened", [True, False], ids=["poller open", "poller not open yet"])
@pytest.mark.parametrize("who", ["an object", "an other fd"])
def test_fd_reused_by_the_loops_own_pipe_is_taken_from_its_former_owner(
    world: World, who: str, opened: bool
) -> None:
    world.lenient()
    one, _ = world.socketpair()
    fd = one.fileno()
    heard: list[int] = []
    obj = None
    if who == "an object":
        obj = Recorder(one, world.loop)
        obj.watch_read(True)
    else:
        world.loop.add_other_fds({fd: heard.append})
    if not opened:
        world.loop._registry._drop_poller()
    one.close()
    while (filler := world.file()).fileno() != fd:
        pass
    filler.close()
    called: list[int] = []
    world.loop.call_soon_threadsafe(lambda: called.append(1))
    waker = world.loop._registry.waker
    assert waker is not None and waker.fileno() == fd
    for _ in range(3):
        world.turn()
    assert called == [1] and heard == []
    assert obj is None or (obj.closed and obj.events == [])
    assert fd not in world.loop.descriptor_map and fd not in world.loop.other_fds


def test_former_owner_of_a_new_pollers_fd_does_not_close_it(world: World) -> None:
    world.lenient()
    one, _ = world.socketpair()
    obj = Recorder(one, world.loop)
    fd = fd_of(obj)
    world.loop._registry._drop_poller()
    one.close()
    while (filler := world.file()).fileno() != fd:
        pass
    filler.close()
    world.turn()
    if world.loop._registry.open().fileno() == fd:
        assert obj.closed and world.is_open(fd)
        assert fd not in world.loop.descriptor_map


def test_rejected_object_leaves_a_handle_to_its_next_owner(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was to be closed, but is not, as its descriptor has been wrapped again."""
    one, _ = world.socketpair()
    again = another_handle(one)
    Recorder(one, world.loop).close()

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOMEM, "no memory")

    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr(POLLERS[world.backend], "register", refuse)
        Recorder(again, world.loop)
    new = Recorder(again, world.loop)
    world.turn()
    assert not new.closed and world.is_open(fd_of(new))
    new.close()
    world.turn()
    one.detach()


def test_handle_waiting_to_be_closed_is_left_to_its_next_owner(world: World) -> None:
    one, two = world.socketpair()
    fd = one.fileno()
    Recorder(one, world.loop).close()
    new = Recorder(one, world.loop)
    new.watch_read(True)
    two.send(b"x")
    world.until(lambda: new.got)
    new.close()
    world.turn()
    assert not world.is_open(fd)


def test_former_owner_of_an_fd_is_dropped_even_if_the_new_one_is_rejected(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.lenient()
    one, _ = world.socketpair()
    obj = Recorder(one, world.loop)
    fd = fd_of(obj)
    one.close()
    thing, _ = socket_with_fd(world, fd)

    def renew_poller(self: _registry.Registry) -> None:
        raise OSError(errno.EMFILE, "no room")

    with monkeypatch.context() as patched:
        patched.setattr(_registry.Registry, "renew_poller", renew_poller)
        if world.backend == "epoll":
            with pytest.raises(OSError, match="no room"):
                Recorder(thing, world.loop)
            assert world.loop.watched_sockets == 0
        else:
            Recorder(thing, world.loop).steal_socket()
    assert obj.closed


def test_object_that_cannot_be_watched_for_lack_of_memory_gets_the_error(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not that the lost holder's entry, which left with its descriptor, isn't there."""
    world.lenient()
    one, _ = world.socketpair()
    fd = fd_of(Recorder(one, world.loop))
    one.close()
    thing, _ = socket_with_fd(world, fd)

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOMEM, "no memory")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="no memory"):
        patch.setattr(POLLERS[world.backend], "register", refuse)
        Recorder(thing, world.loop)


@pytest.mark.parametrize(
    ("holder", "newcomer"),
    [("an object", "an object"), ("an object", "an other fd"), ("an other fd", "an object")],
)
def test_interrupted_registration_takes_nothing_from_the_fds_owner(
    world: World, holder: str, newcomer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = world.socketpair()
    fd = one.fileno()
    heard: list[object] = []
    if holder == "an object":
        Recorder(one, world.loop, read=lambda obj: record_and_drain(heard, "read", one)).watch_read(
            True
        )
    else:
        world.loop.add_other_fds({fd: lambda state: record_and_drain(heard, state, one)})
    again = another_handle(one)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(POLLERS[world.backend], "register", interrupted)
        if newcomer == "an object":
            Recorder(again, world.loop)
        else:
            world.loop.add_other_fds({fd: lambda state: None})
    again.detach()
    two.send(b"x")
    world.until(lambda: heard)
    assert len(heard) == 1


def test_interrupted_other_fd_is_not_watched_in_place_of_its_former_owner(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = world.socketpair()
    Recorder(one, world.loop).steal_socket()
    poller = POLLERS[world.backend]
    register = poller.register

    def interrupted(self: Poller, fd: int, events: int) -> None:
        register(self, fd, events)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(poller, "register", interrupted)
        world.loop.add_other_fds({one.fileno(): lambda state: None})
    two.send(b"x")
    for _ in range(2):
        world.turn()
    assert world.is_open(one.fileno()) and caplog.text == ""


def test_object_interrupted_in_close_writes_nothing_to_the_new_owner_of_its_fd(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.lenient()
    one, _ = world.socketpair()
    old = Recorder(one, world.loop)
    fd = fd_of(old)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(POLLERS[world.backend], "unregister", interrupted)
        old.close()
    one.close()
    thing, _ = socket_with_fd(world, fd)
    new = Recorder(thing, world.loop)
    with world.calls() as calls:
        old.write(b"x")
    assert only(calls, "write") == [] and old.fd is None
    world.turn()
    assert not new.closed and world.is_open(fd)


def test_fd_reused_while_no_poller_was_open_belongs_to_the_new_object(world: World) -> None:
    world.lenient()
    one, _ = world.socketpair()
    old = Recorder(one, world.loop)
    old.watch_read(True)
    fd = fd_of(old)
    world.loop._registry._drop_poller()  # As if another could not be opened.
    one.close()
    thing, far = socket_with_fd(world, fd)
    obj = Recorder(thing, world.loop)
    obj.watch_read(True)
    far.send(b"x")
    world.turn()
    assert old.closed and old.events == []
    assert obj.events == ["read"] and world.loop.descriptor_map[fd] is obj
