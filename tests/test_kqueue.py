"""Where kqueue behaves differently from epoll and a program must not notice: the order of the two
filters, hang-ups before the end of the data, filters that the kernel refuses or drops."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from errno import EBADF, ECONNREFUSED, ECONNRESET, EEXIST, ENOENT, ENOMEM

import pytest

from danga_raw import _kqueue
from danga_raw._kqueue import EV_ENABLE, EV_EOF, EV_ERROR, KQueue, load_libkqueue
from danga_raw._poll import POLLERR, POLLHUP, POLLIN, POLLNVAL, POLLOUT
from tests.simkernel import SimKernel
from tests.simkernel.kqueue import LAYOUTS
from tests.simkernel.sockets import StreamSocket
from tests.world import WORLDS, AnyHandle, Kind, Recorder, SimulatedWorld, World, fill

_KINDS = [kind for kind in WORLDS if kind.backend == "kqueue"]
on_kqueue = pytest.mark.parametrize("world", _KINDS, indirect=True, ids=str)
simulated = pytest.mark.parametrize(
    "world", [kind for kind in _KINDS if kind.platform], indirect=True, ids=str
)
"""For what libkqueue on Linux doesn't do: it keeps the filters of a closed descriptor, and reports
no end for a local shutdown."""

SOCKET = POLLERR | POLLHUP | POLLNVAL
"""The mask with which a Socket is registered."""


def watched(
    world: World, one: AnyHandle, read: Callable[[Recorder], object] = Recorder.take
) -> Recorder:
    obj = Recorder(one, world.loop, read=read)
    obj.watch_read(True)
    obj.watch_write(True)
    return obj


# --- hang-ups -------------------------------------------------------------------------------------


def test_hang_up_in_the_same_batch_as_the_last_data_is_reported_after_it(world: World) -> None:
    # The write filter fires before anything has arrived, so it comes before the read filter from
    # then on.
    one, two = world.socketpair()
    obj = watched(world, one)
    world.turn()
    assert obj.events == ["write"]
    two.send(b"last words")
    two.close()
    world.until(lambda: obj.closed)
    assert obj.got == b"last words"
    assert obj.events[:3] == ["write", "read", "write"]


@on_kqueue
def test_hang_up_is_not_reported_before_all_data_is_read(world: World) -> None:
    def read_a_byte(obj: Recorder) -> None:
        obj.got += obj.read(1) or b""

    one, two = world.socketpair()
    obj = watched(world, one, read=read_a_byte)
    world.turn()
    two.send(b"abc")
    two.close()
    world.until(lambda: obj.closed)
    assert obj.got == b"abc"
    assert obj.events == ["write", *["read", "write"] * 3, "read", "write", "hup", "close None"]


@simulated
def test_error_is_not_reported_before_all_data_is_read(world: World) -> None:
    def read_a_byte(obj: Recorder) -> None:
        obj.got += obj.read(1) or b""

    assert isinstance(world, SimulatedWorld)
    one, two = world.kernel.socketpair(tcp=True)
    one.setblocking(False)
    world.stack.callback(one.close)
    obj = Recorder(one, world.loop, read=read_a_byte)
    obj.watch_read(True)
    two.send(b"abc")
    two.reset()
    world.until(lambda: obj.closed)
    assert obj.got == b"abc"
    assert obj.events[:3] == ["read"] * 3 and obj.events[-1] == "close None"


def test_hang_up_is_reported_to_an_object_that_does_not_read(world: World) -> None:
    one, two = world.socketpair()
    obj = Recorder(one, world.loop)
    obj.watch_write(True)
    two.close()
    world.until(lambda: obj.closed)
    assert "hup" in obj.events and "read" not in obj.events


@simulated
def test_hang_up_known_only_to_the_write_filter_is_reported(world: World) -> None:
    # As after a local shutdown(SHUT_WR), where the read filter reports nothing.
    one, _ = world.socketpair(tcp=True)
    obj = watched(world, one)
    one.shutdown(1)
    world.until(lambda: obj.closed)
    assert "hup" in obj.events and "read" not in obj.events


@on_kqueue
def test_error_is_reported_as_an_error_and_not_as_a_hang_up(world: World) -> None:
    obj = Recorder(world.reset_by_peer(), world.loop, read=lambda obj: None)
    obj.watch_read(True)
    world.turn()
    assert obj.events == ["read", "err", "close None"]


@on_kqueue
@pytest.mark.parametrize("room", [2, 3, 5])
def test_full_batch_loses_no_data_to_a_hang_up(
    world: World, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_kqueue, "MAX_EVENTS", room)
    objects = []
    for number in range(5):
        one, two = world.socketpair()
        objects.append(watched(world, one))
        # These are ready before its read filter.
        for _ in range(number):
            noise, _ = world.socketpair()
            Recorder(noise, world.loop).watch_write(True)
        world.turn()
        two.send(b"last words")
        two.close()
    world.until(lambda: all(obj.closed for obj in objects))
    assert [bytes(obj.got) for obj in objects] == [b"last words"] * 5


class ScriptedLibrary:
    """A library whose waits report the given batches, one after the other."""

    def __init__(self, platform: str, *batches: Sequence[tuple[int, ...]]) -> None:
        self.layout = LAYOUTS[platform]
        self.batches = list(batches)

    def kqueue(self) -> int:
        return 99

    def kevent(
        self, kq: int, changes: object, n: object, events: object, room: object, limit: object, /
    ) -> int:
        if changes is not None:
            return 0
        view = memoryview(events).cast("B")  # type: ignore[arg-type]
        batch = self.batches.pop(0)
        for i, (ident, filter, flags, fflags, data) in enumerate(batch):
            self.layout.fields.pack_into(
                view, i * self.layout.size, ident, filter, flags, fflags, data, 0
            )
        return len(batch)


def test_wait_reports_each_fd_once_and_delays_a_hang_up_until_data_is_read() -> None:
    told = ScriptedLibrary(
        "darwin",
        [(5, -2, EV_EOF, 0, 0), (6, -1, 0, 0, 3), (5, -1, EV_EOF, 0, 3), (6, -2, 0, 0, 9)],
        # A write filter alone may have been checked before the data arrived, and the read filter
        # may be queued after the events that fit into one wait.
        [(5, -2, EV_EOF, 0, 0)],
        [(5, -2, EV_EOF, 0, 0)],
        [(5, -2, EV_EOF, ECONNRESET, 0), (5, -1, EV_EOF, ECONNRESET, 1)],
        [(5, -2, EV_EOF, 0, 0)],
        [(5, -2, EV_EOF, 0, 0), (5, -1, EV_EOF, 0, 0)],
        [(5, -2, EV_EOF, ECONNRESET, 0), (5, -1, EV_EOF, ECONNRESET, 0)],
    )
    poller = KQueue(told, "darwin")
    poller.open()
    for fd in (5, 6):
        poller.register(fd, SOCKET | POLLIN | POLLOUT)
    both = POLLIN | POLLOUT
    assert list(poller.wait(0)) == [(5, both), (6, both)]
    assert list(poller.wait(0)) == [(5, POLLOUT)]
    assert list(poller.wait(0)) == [(5, POLLOUT | POLLHUP)]
    assert list(poller.wait(0)) == [(5, both)]
    assert list(poller.wait(0)) == [(5, POLLOUT)]
    assert list(poller.wait(0)) == [(5, both | POLLHUP)]
    assert list(poller.wait(0)) == [(5, both | POLLERR)]
    poller.modify(5, SOCKET | both, SOCKET | POLLOUT)
    told.batches.append([(5, -2, EV_EOF, 0, 0)])
    assert list(poller.wait(0)) == [(5, POLLOUT | POLLHUP)], "nobody asks for the data"


def test_disabled_filter_that_fires_anyway_reports_only_a_hang_up() -> None:
    # libkqueue 2.7 is built on epoll, which reports a hang-up unasked.
    poller = KQueue(
        ScriptedLibrary(
            "libkqueue", [(5, -1, EV_EOF, 0, 3), (5, -2, EV_EOF, 0, 0)], [(5, -1, 0, 0, 3)]
        ),
        "libkqueue",
    )
    poller.open()
    poller.register(5, SOCKET)
    assert list(poller.wait(0)) == [(5, POLLHUP)]
    assert list(poller.wait(0)) == []


@pytest.mark.parametrize(
    "world", [Kind("poll", "freebsd"), Kind("poll", "netbsd")], indirect=True, ids=str
)
@pytest.mark.parametrize("unread", [b"", b"last words"], ids=["nothing", "something"])
def test_reset_is_found_by_reading_where_poll_reports_no_error(world: World, unread: bytes) -> None:
    assert isinstance(world, SimulatedWorld)
    one, two = world.kernel.socketpair(tcp=True)
    one.setblocking(False)
    world.stack.callback(one.close)
    obj = Recorder(one, world.loop)
    obj.watch_read(True)
    two.send(unread)
    two.reset()
    world.until(lambda: obj.closed)
    assert obj.got == unread and "err" not in obj.events


# --- pipes whose other end is gone ----------------------------------------------------------------


def hung_up(obj: Recorder) -> bool:
    """True if it was told as epoll tells the write end of a pipe, or the read end."""
    return "err" in obj.events or "hup" in obj.events


@pytest.mark.parametrize("writes", [False, True], ids=["read end", "write end"])
def test_pipe_whose_other_end_is_closed_works_like_any_object(world: World, writes: bool) -> None:
    ends = world.pipe()
    one, other = ends[writes], ends[not writes]
    if not writes:
        other.send(b"what is left")
    other.close()
    # A program that must not lose the last data reads on in event_hup, since epoll calls only that.
    obj = Recorder(
        one,
        world.loop,
        err=lambda obj: None,
        hup=lambda obj: obj.take() if obj.event_watch & POLLIN else None,
    )
    obj.watch_write(True)
    world.turn()
    assert hung_up(obj) and "read" not in obj.events
    world.turn()  # It is reported again, as long as it lasts.
    assert obj.events.count("hup") + obj.events.count("err") == 2
    obj.watch_write(False)
    if not writes:
        obj.watch_read(True)
        world.until(lambda: obj.closed)
        assert obj.got == b"what is left" and obj.events[-1] == "close end"


@pytest.mark.parametrize("writes", [False, True], ids=["read end", "write end"])
@pytest.mark.parametrize("watched_before", [False, True], ids=["off", "on"])
def test_pipe_whose_other_end_closes_later_is_hung_up(
    world: World, writes: bool, watched_before: bool
) -> None:
    ends = world.pipe()
    one, other = ends[writes], ends[not writes]
    obj = Recorder(one, world.loop, err=lambda obj: None, hup=lambda obj: None)
    obj.watch_write(watched_before)
    world.turn()
    other.close()
    obj.watch_write(True)
    for _ in range(3):
        obj.events.clear()
        world.turn()
        assert hung_up(obj)
    obj.watch_write(False)
    obj.events.clear()
    obj.watch_write(True)
    world.turn()
    assert hung_up(obj)
    obj.close()
    world.turn()
    assert not world.is_open(one.fileno())


def test_writer_of_a_full_pipe_is_closed_when_the_reader_closes(world: World) -> None:
    reader, writer = world.pipe()
    fill(writer)
    obj = Recorder(writer, world.loop, err=lambda obj: obj.write(None))
    assert obj.write(b"queued") is False
    reader.close()
    world.until(lambda: obj.closed)
    assert obj.events[-1] == "close EPIPE"


@on_kqueue
def test_full_batch_loses_no_data_of_a_pipe_whose_write_filter_was_dropped(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_kqueue, "MAX_EVENTS", 2)
    reader, writer = world.pipe()
    obj = watched(world, reader)
    world.turn()
    for _ in range(5):
        noise, _ = world.socketpair()
        Recorder(noise, world.loop).watch_write(True)
    writer.send(b"last words")
    writer.close()
    world.until(lambda: obj.closed)
    assert obj.got == b"last words"


@on_kqueue
def test_remaining_data_of_a_pipe_is_read_before_its_hang_up(world: World) -> None:
    def read_a_byte(obj: Recorder) -> None:
        obj.got += obj.read(1) or b""

    reader, writer = world.pipe()
    obj = watched(world, reader, read=read_a_byte)
    writer.send(b"abc")
    writer.close()
    world.until(lambda: obj.closed)
    assert obj.got == b"abc"


@on_kqueue
def test_hang_up_of_a_pipe_is_reported_after_registration_on_a_new_poller(world: World) -> None:
    # With its whole mask, as by a loop that has opened another poller.
    reader, writer = world.pipe()
    reader.close()
    poller = world.new_loop()._registry.open()
    poller.register(writer.fileno(), SOCKET | POLLIN | POLLOUT)
    for _ in range(2):
        [event] = poller.wait(-1)
        assert isinstance(event, tuple), "it is more than readable"
        assert event[0] == writer.fileno() and event[1] & (POLLHUP | POLLERR)
    poller.unregister(writer.fileno(), SOCKET | POLLIN | POLLOUT)
    assert list(poller.wait(0)) == []


def test_hung_up_pipe_that_was_closed_does_not_spin(world: World) -> None:
    reader, writer = world.pipe()
    reader.close()
    obj = Recorder(writer, world.loop)
    obj.watch_write(True)
    world.until(lambda: obj.closed)
    with world.calls() as calls:
        world.loop.add_timer(0.001, world.loop.stop)
        world.loop.run()
    assert len([call for call in calls if call[0] == "wait"]) <= 2


@pytest.mark.parametrize("gone", ["freebsd", "netbsd", "darwin"])
def test_changes_after_a_rejected_one_are_still_applied(gone: str) -> None:
    kernel = SimKernel(platform=gone)
    kernel.epipe_at_registration = True
    with kernel.installed():
        poller = KQueue()
        poller.open()
        reader, writer = kernel.pipe()
        writer.send(b"x")
        writer.close()
        poller.register(reader.fileno(), SOCKET)
        assert list(poller.wait(0)) == [], "both filters are to be off"


@pytest.mark.parametrize("platform", LAYOUTS)
def test_first_filter_is_removed_if_the_second_is_rejected(
    platform: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = SimKernel(platform=platform)
    monkeypatch.setattr(StreamSocket, "refused_filter", lambda self, write: ENOMEM * write)
    poller = KQueue(kernel.entry_points, platform)
    poller.open()
    one, two = kernel.socketpair()
    two.send(b"x")
    with pytest.raises(OSError) as refused:
        poller.register(one.fileno(), SOCKET | POLLIN)
    assert refused.value.errno == ENOMEM
    assert list(poller.wait(0)) == []
    monkeypatch.undo()
    poller.register(one.fileno(), SOCKET | POLLIN)
    assert list(poller.wait(0)) == [(one.fileno(), POLLIN)]


# --- who has a number -----------------------------------------------------------------------------


@simulated
@pytest.mark.parametrize("events", [SOCKET, SOCKET | POLLIN, POLLIN])
def test_fd_closed_behind_the_pollers_back_can_be_registered_again(
    world: World, events: int
) -> None:
    poller = world.new_loop()._registry.open()
    one, _ = world.socketpair()
    fd = one.fileno()
    poller.register(fd, events)
    with pytest.raises(OSError, match=f"fd {fd}") as there:
        poller.register(fd, events)
    assert there.value.errno == EEXIST
    one.close()
    again, other = world.socketpair()
    assert again.fileno() == fd
    poller.register(fd, SOCKET)
    poller.modify(fd, SOCKET, SOCKET | POLLIN)
    other.send(b"x")
    assert list(poller.wait(0)) == [(fd, POLLIN)]
    with pytest.raises(OSError) as there:
        poller.register(fd, events)
    assert there.value.errno == EEXIST
    assert list(poller.wait(0)) == [(fd, POLLIN)], "asking has changed nothing"


@simulated
def test_closed_fd_is_rejected_even_if_it_was_watched_before(world: World) -> None:
    world.lenient()
    poller = world.new_loop()._registry.open()
    one, _ = world.socketpair()
    fd = one.fileno()
    poller.register(fd, SOCKET)
    one.close()
    with pytest.raises(OSError) as dead:
        poller.register(fd, SOCKET)
    assert dead.value.errno == EBADF


@simulated
@pytest.mark.parametrize("event", [POLLIN, POLLOUT])
def test_change_of_interest_on_a_reused_fd_is_rejected(world: World, event: int) -> None:
    poller = world.new_loop()._registry.open()
    one, _ = world.socketpair()
    fd = one.fileno()
    poller.register(fd, SOCKET)
    one.close()
    again, _ = world.socketpair()
    assert again.fileno() == fd
    with pytest.raises(OSError) as stale:
        poller.modify(fd, SOCKET, SOCKET | event)
    assert stale.value.errno == ENOENT
    assert list(poller.wait(0)) == []


def test_fd_that_is_found_gone_is_no_longer_watched(
    caplog: pytest.LogCaptureFixture,
) -> None:
    poller = KQueue(ScriptedLibrary("darwin", [(5, -1, EV_ERROR, 0, ENOENT)], []), "darwin")
    poller.open()
    poller.register(5, SOCKET)
    assert list(poller.wait(0)) == []
    assert "fd 5 gone" in caplog.text


def test_error_event_about_an_open_descriptor_is_raised() -> None:
    poller = KQueue(ScriptedLibrary("darwin", [(5, -1, EV_ERROR, 0, ENOMEM)]), "darwin")
    poller.open()
    poller.register(5, SOCKET)
    with pytest.raises(OSError, match=r"kevent\(fd 5\)") as caught:
        poller.wait(0)
    assert caught.value.errno == ENOMEM


# --- libkqueue ------------------------------------------------------------------------------------


class OneFilterLibrary(ScriptedLibrary):
    """Like libkqueue 2.3.1: the second filter of a descriptor can't be enabled."""

    def kevent(
        self, kq: int, changes: object, n: object, events: object, room: object, limit: object, /
    ) -> int:
        view = memoryview(changes).cast("B")  # type: ignore[arg-type]
        _, filter, flags, *_ = self.layout.fields.unpack_from(view)
        if filter == self.layout.write and flags & EV_ENABLE:
            ctypes.set_errno(EEXIST)
            return -1
        return 0

    def close(self, fd: int) -> int:
        assert fd == 99
        return 0


def test_libkqueue_that_cannot_watch_both_filters_is_rejected_when_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda path, use_errno: OneFilterLibrary("libkqueue"))
    before = os.listdir("/dev/fd")
    with pytest.raises(OSError, match="no libkqueue to be used: /old.so .* 2.7.0 .*File exists"):
        load_libkqueue("/old.so")
    assert os.listdir("/dev/fd") == before


def test_usable_libkqueue_is_probed_only_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[ScriptedLibrary] = []

    def cdll(path: str, use_errno: bool) -> ScriptedLibrary:
        made.append(ScriptedLibrary("libkqueue"))
        return made[-1]

    monkeypatch.setattr("ctypes.CDLL", cdll)
    assert load_libkqueue("/new.so") is load_libkqueue("/new.so") is made[0]
    assert len(made) == 1
    load_libkqueue.cache_clear()


# --- connecting -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "world", [kind for kind in WORLDS if kind.platform], indirect=True, ids=str
)
def test_data_written_while_connecting_waits_for_the_connection(world: World) -> None:
    assert isinstance(world, SimulatedWorld)
    one, end = world.kernel.connecting()
    world.stack.callback(one.close)
    obj = Recorder(one, world.loop)
    obj.write(b"early ")
    obj.write(b"and late")
    world.turn()
    assert not obj.closed
    far = end(0)
    assert far is not None
    world.stack.callback(far.close)
    world.until(lambda: not obj.write_buf)
    assert far.recv(20) == b"early and late" and not obj.event_watch & POLLOUT


@pytest.mark.parametrize(
    "world", [kind for kind in WORLDS if kind.platform], indirect=True, ids=str
)
def test_data_written_to_a_refused_connection_closes_it(world: World) -> None:
    assert isinstance(world, SimulatedWorld)
    one, end = world.kernel.connecting()
    world.stack.callback(one.close)
    obj = Recorder(one, world.loop)
    obj.write(b"early")
    end(ECONNREFUSED)
    obj.write(b"late")
    obj.watch_write(True)
    world.until(lambda: obj.closed)


@simulated
def test_refused_connection_is_reported_as_an_error(world: World) -> None:
    assert isinstance(world, SimulatedWorld)
    one, end = world.kernel.connecting()
    world.stack.callback(one.close)
    obj = Recorder(one, world.loop)
    obj.watch_write(True)
    world.turn()
    assert obj.events == []
    end(ECONNREFUSED)
    world.until(lambda: obj.closed)
    assert obj.events == ["write", "err", "close None"]
