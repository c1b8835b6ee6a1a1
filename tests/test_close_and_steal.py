"""Closing and stealing: when a descriptor is really closed, and which events arrive until then."""

from __future__ import annotations

import ctypes
import gc
import logging
import socket
import sys
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from errno import EIO, EPIPE
from types import FrameType
from typing import Any

import pytest

from danga_raw import Listener, Loop, Socket, _handle
from danga_raw._libc import libc
from danga_raw.trace import Trace
from danga_raw.types import Handle
from tests.world import POLLERS, AnyHandle, Recorder, World, drain, only, readiness_only, real_only


def ready(
    world: World, count: int, **on: object
) -> tuple[list[Recorder], list[AnyHandle], list[str]]:
    """Objects with something to read, in one log, and their other ends."""
    events: list[str] = []
    objects, others = [], []
    for _ in range(count):
        one, two = world.socketpair()
        two.send(b"x")
        obj = Recorder(one, world.loop, events=events)
        obj.on.update(on)  # type: ignore[arg-type]
        obj.watch_read(True)
        objects.append(obj)
        others.append(two)
    return objects, others, events


def test_close_unregisters_at_once_and_closes_the_descriptor_after_the_batch(world: World) -> None:
    one, _ = world.socketpair()
    fd = one.fileno()

    def act(obj: Recorder) -> None:
        obj.close("done")
        assert world.is_open(fd)
        assert world.loop.to_close == [one]
        assert world.loop.descriptor_map == {fd: obj}
        assert obj.closed and obj.sock is None and obj.fd is None

    obj = Recorder(one, world.loop, read=act)
    obj.watch_read(True)
    _.send(b"x")
    with world.calls() as calls:
        world.turn()
    assert obj.events == ["read", "close done"]
    assert only(calls, "unregister") == [("unregister", fd, 57)]
    assert not world.is_open(fd)
    assert world.loop.to_close == [] and world.loop.descriptor_map == {}


@real_only
def test_close_makes_exactly_one_close_call(world: World) -> None:
    one, _ = world.socketpair()
    fd = one.fileno()
    Recorder(one, world.loop).close()
    with world.calls() as calls:
        world.turn()
    assert only(calls, "close") == [("close", fd)]


@real_only
def test_closed_socket_has_no_descriptor(world: World) -> None:
    one, _ = world.socketpair()
    obj = Recorder(one, world.loop)
    obj.close()
    world.turn()
    assert one.fileno() == -1 and "fd=-1" in repr(one)


def test_to_close_lists_the_sockets_in_order_of_closing(world: World) -> None:
    handles = [world.socketpair()[0] for _ in range(4)]
    objects = [Recorder(handle, world.loop) for handle in handles]
    for n in (2, 0, 3, 1):
        objects[n].close()
    objects[1].close()
    assert world.loop.to_close == [handles[2], handles[0], handles[3], handles[1]]
    world.turn()
    assert world.loop.to_close == []


def test_closed_fd_keeps_its_number_until_the_batch_is_over(world: World) -> None:
    (obj,), _, _ = ready(world, 1)
    fd = obj.fd
    numbers: list[int] = []

    def act(obj: Recorder) -> None:
        obj.close()
        numbers.extend(thing.fileno() for thing in world.socketpair())

    obj.on["read"] = act
    world.turn()
    assert fd not in numbers


def test_objects_may_close_each_other_in_one_batch(world: World) -> None:
    objects, _, events = ready(world, 5)

    def act(obj: Recorder) -> None:
        for other in objects:
            if other is not obj:
                other.close("by another")

    for obj in objects:
        obj.on["read"] = act
    world.turn()
    assert events == ["read", *["close by another"] * 4]
    assert sum(not obj.closed for obj in objects) == 1
    assert world.loop.watched_sockets == 1


def test_object_closed_in_its_event_read_gets_no_further_events(world: World) -> None:
    one, two = world.socketpair()
    obj = Recorder(one, world.loop, read=lambda obj: obj.close("in read"))
    obj.watch_read(True)
    obj.watch_write(True)
    two.send(b"x")
    two.close()
    world.turn()
    world.turn()
    # Where reading and writing are separate events, the write may come first.
    assert [event for event in obj.events if event != "write"] == ["read", "close in read"]
    assert obj.events[-1] == "close in read"


def test_closing_twice_does_nothing(world: World) -> None:
    one, _ = world.socketpair()
    obj = Socket(one, world.loop)
    with world.calls() as calls:
        obj.close()
        obj.close()
        assert obj.steal_socket() is None
    assert len(only(calls, "unregister")) == 1
    world.turn()
    obj.close()
    assert world.loop.to_close == []


def test_close_outside_the_loop_takes_effect_after_the_next_batch(world: World) -> None:
    one, _ = world.socketpair()
    fd = one.fileno()
    Recorder(one, world.loop).close()
    assert world.is_open(fd)
    world.turn()
    assert not world.is_open(fd)


def test_close_in_a_post_loop_callback_takes_effect_after_the_next_batch(world: World) -> None:
    one, _ = world.socketpair()
    fd = one.fileno()
    obj = Recorder(one, world.loop)
    seen: list[tuple[str, bool]] = []

    def after(sockets: object, others: object) -> bool:
        if not obj.closed:
            obj.close()
            world.loop.add_timer(0, lambda: seen.append(("next timers", world.is_open(fd))))
        seen.append(("callback", world.is_open(fd)))
        return len(seen) < 3

    world.loop.set_loop_timeout(0)
    world.loop.set_post_loop_callback(after)
    world.loop.run()
    assert seen == [("callback", True), ("next timers", True), ("callback", False)]


@pytest.mark.parametrize("where", ["before run", "in a timer", "in a post-loop callback"])
def test_wait_does_not_block_while_a_close_is_pending(world: World, where: str) -> None:
    """The wait comes before the close, as in the original, but doesn't block."""
    obj = Recorder(world.socketpair()[0], world.loop)
    kicked, kick = world.socketpair()
    fd = obj.fd
    assert fd is not None
    world.loop.add_other_fds({kicked.fileno(): lambda state: drain(kicked)})
    if where == "before run":
        obj.close()
    elif where == "in a timer":
        world.loop.add_timer(0, obj.close)
    else:
        kick.send(b"x")

    def after(*_: object) -> bool:
        if not obj.closed:
            obj.close()
        return world.is_open(fd)

    world.loop.set_post_loop_callback(after)
    with world.calls() as calls:
        world.loop.run()
    first = [("wait", -1)] if where == "in a post-loop callback" else []
    assert only(calls, "wait") == [*first, ("wait", 0)] and not world.is_open(fd)


def test_wait_is_not_shortened_after_a_steal(world: World) -> None:
    obj = Recorder(world.socketpair()[0], world.loop)
    assert obj.steal_socket() is not None
    world.loop.add_timer(0.01, world.loop.stop)
    with world.calls() as calls:
        world.loop.run()
    assert ("wait", 0) not in calls


def test_reset_completes_pending_closes(world: World) -> None:
    one, _ = world.socketpair()
    fd = one.fileno()
    Recorder(one, world.loop).close()
    world.loop.reset()
    assert not world.is_open(fd)


def test_leaving_the_context_of_a_loop_completes_pending_closes(world: World) -> None:
    one, _ = world.socketpair()
    fd = one.fileno()
    with Loop(world.backend) as loop:
        Recorder(one, loop).close()
        assert world.is_open(fd)
    assert not world.is_open(fd)


def test_close_uncorks(world: World) -> None:
    one, two = world.socketpair(tcp=True)
    obj = Recorder(one, world.loop)
    obj.tcp_cork(True)
    corked = obj.corked
    fd = one.fileno()
    with world.calls() as calls:
        obj.close()
    # NetBSD and the like refuse the option.
    names = [call[0] for call in calls]
    assert names == (["setsockopt", "unregister"] if corked else ["unregister"])
    assert calls[-1][1] == fd and not obj.corked


def test_close_override_may_postpone_the_close(world: World) -> None:
    class Lingering(Recorder):
        __slots__ = ()

        def close(self, reason: str | None = None) -> None:
            if not self.write_buf:
                super().close(reason)
            else:
                self.write(super().close)

    one, two = world.socketpair()
    obj = Lingering(one, world.loop)
    big = bytes(1 << 22)
    obj.write(big)
    obj.close("asked")
    assert not obj.closed
    got = bytearray()

    def gone() -> bool:
        got.extend(drain(two))
        return obj.closed

    world.until(gone)
    assert len(got) == len(big)


def test_close_overrides_may_call_each_other(world: World) -> None:
    class Pair(Recorder):
        partner: Pair | None = None

        def close(self, reason: str | None = None) -> None:
            if not self.closed:
                super().close(reason)
                if self.partner:
                    self.partner.close("partner")

    one, two = world.socketpair()
    a, b = Pair(one, world.loop), Pair(two, world.loop)
    a.partner, b.partner = b, a
    a.close("first")
    assert a.events == ["close first"] and b.events == ["close partner"]
    world.turn()
    assert world.loop.watched_sockets == 0


def test_handle_closed_by_its_owner_is_not_closed_again(
    world: World, capfd: pytest.CaptureFixture[str]
) -> None:
    world.lenient()
    one, _ = world.socketpair()
    obj = Recorder(one, world.loop)
    fd = one.fileno()
    one.close()
    other, another = world.socketpair()
    assert fd in (other.fileno(), another.fileno())
    obj.close()
    world.loop.reset()
    assert world.is_open(fd)
    capfd.readouterr()


@readiness_only
def test_object_over_a_reused_fd_replaces_the_stale_one_with_a_warning(
    world: World, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    world.lenient()
    one, two = world.socketpair()
    old = Recorder(one, world.loop)
    fd = one.fileno()
    one.close()
    world.turn()  # poll must notice first
    caplog.clear()
    three, four = world.socketpair()
    handle, peer = (three, four) if three.fileno() == fd else (four, three)
    new = Recorder(handle, world.loop)
    assert f"fd {fd} was closed behind the back of Recorder" in caplog.text
    new.watch_read(True)
    old.close()
    world.turn()
    peer.send(b"x")
    world.until(lambda: new.got)
    assert world.loop.descriptor_map == {fd: new}
    capfd.readouterr()


def test_close_preserves_errno(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal's handler may call it after a call has failed and before its errno is read."""
    obj = Recorder(world.socketpair()[0], world.loop)
    poller = POLLERS[world.backend]
    unregister = getattr(poller, "unregister")  # noqa: B009

    def and_fail(*arguments: object) -> None:
        unregister(*arguments)
        ctypes.set_errno(EIO)
        raise OSError(EIO, "unregister")

    monkeypatch.setattr(poller, "unregister", and_fail)
    ctypes.set_errno(EPIPE)
    obj.close()
    assert ctypes.get_errno() == EPIPE
    ctypes.set_errno(0)


def test_failing_close_is_logged_and_the_remaining_objects_are_closed(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    class Bad:
        def __init__(self, thing: AnyHandle) -> None:
            self.thing = thing

        def fileno(self) -> int:
            return self.thing.fileno()

        def close(self) -> None:
            self.thing.close()
            raise OSError(EIO, "bad disk")

    one, two = world.socketpair()
    three, four = world.socketpair()
    fds = one.fileno(), three.fileno()
    bad, good = Socket(Bad(one), world.loop), Recorder(three, world.loop)
    bad.close()
    good.close()
    with caplog.at_level(logging.WARNING):
        world.turn()
    assert f"close(fd {fds[0]})" in caplog.text
    assert not world.is_open(fds[0]) and not world.is_open(fds[1])
    assert world.loop.watched_sockets == 0


@real_only
def test_failing_close_call_is_logged(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    close = libc.close

    def fails(fd: int) -> None:
        close(fd)
        raise OSError(EIO, "bad disk")

    one, _ = world.socketpair()
    obj = Recorder(one, world.loop)
    obj.close()
    with monkeypatch.context() as patch:
        patch.setattr(libc, "close", fails)
        world.turn()
    assert "bad disk" in caplog.text and world.loop.watched_sockets == 0


class HandleWithCallback:
    """A handle that does something else when it is closed."""

    def __init__(self, thing: AnyHandle, then: Callable[[], object]) -> None:
        self.thing = thing
        self.then = then

    def fileno(self) -> int:
        return self.thing.fileno()

    def close(self) -> None:
        self.thing.close()
        self.then()


def raising(error: Exception) -> Callable[[], object]:
    def raises() -> None:
        raise error

    return raises


def test_error_without_errno_from_closing_a_handle_is_logged(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    one, _ = world.socketpair()
    Socket(HandleWithCallback(one, raising(OSError("no more tape"))), world.loop).close()
    world.turn()
    assert "no more tape" in caplog.text and world.loop.watched_sockets == 0


def test_loop_can_be_closed_even_if_the_close_of_every_handle_raises(world: World) -> None:
    fds = []
    for number in range(3):
        one, _ = world.socketpair()
        fds.append(one.fileno())
        Socket(HandleWithCallback(one, raising(ValueError(number))), world.loop).close()
    poller = world.loop._registry.open().fileno()
    with pytest.raises(ValueError, match="0"):
        world.loop.close()
    assert not any(map(world.is_open, fds)) and not world.loop._registry.leaving
    assert poller == -1 or not world.is_open(poller)


def test_handle_may_reset_the_loop_while_it_is_being_closed(world: World) -> None:
    def reset_and_stop() -> None:
        world.loop.reset()
        world.loop.stop()

    one, _ = world.socketpair()
    two, _ = world.socketpair()
    fds = one.fileno(), two.fileno()
    Socket(HandleWithCallback(one, reset_and_stop), world.loop).close()
    Recorder(two, world.loop).close()
    world.turn()
    assert not any(map(world.is_open, fds)) and not world.loop._registry.leaving


def test_handle_whose_close_raises_leaves_the_loop_usable(world: World) -> None:
    one, two = world.socketpair()
    three, four = world.socketpair()
    fd = three.fileno()
    Socket(HandleWithCallback(one, raising(ValueError("broken"))), world.loop).close()
    Recorder(three, world.loop).close()
    with pytest.raises(ValueError, match="broken"):
        world.turn()
    world.turn()
    assert not world.is_open(fd) and world.loop.watched_sockets == 0
    # Outside of a run, where a stop is forgotten by a reset.
    world.loop.stop()
    world.loop.reset()
    ran: list[int] = []
    world.loop.add_timer(0, lambda: ran.append(1))
    world.turn()
    assert ran == [1]


@real_only
def test_close_override_of_a_socket_subclass_is_called(world: World) -> None:
    closed: list[int] = []

    class Own(socket.socket):
        def close(self) -> None:
            closed.append(self.fileno())
            super().close()

    one, two = world.socketpair()
    own = Own(fileno=one.detach())
    fd = own.fileno()
    Socket(own, world.loop).close()
    world.turn()
    assert closed == [fd] and not world.is_open(fd)


@real_only
@pytest.mark.parametrize("method", ["close", "_real_close", "detach"])
def test_socket_subclass_is_closed_through_whichever_close_method_it_overrides(
    world: World, method: str
) -> None:
    called: list[str] = []

    def more(self: socket.socket) -> object:
        called.append(method)
        return getattr(socket.socket, method)(self)

    kind = type("Own", (socket.socket,), {method: more})
    one, _ = world.socketpair()
    own = kind(fileno=one.detach())
    fd = own.fileno()
    Socket(own, world.loop).close()
    world.turn()
    if method == "detach" and not called:  # The standard close doesn't call it.
        own.detach()
    assert called == [method] and not world.is_open(fd)


@real_only
def test_tls_socket_drops_its_session_with_its_descriptor(world: World) -> None:
    """Otherwise it could write to the next descriptor with the same number."""
    ssl = pytest.importorskip("ssl")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_server(("127.0.0.1", 0)) as listener:
        plain = socket.create_connection(listener.getsockname())
        there, _ = listener.accept()
    plain.setblocking(False)
    tls = context.wrap_socket(plain, do_handshake_on_connect=False)
    fd = tls.fileno()
    obj: Socket[socket.socket] = Socket(tls, world.loop)
    assert tls._sslobj is not None
    obj.close()
    world.turn()
    assert tls._sslobj is None and tls.fileno() == -1 and not world.is_open(fd)
    there.close()


@real_only
def test_bare_socket_of_the_c_module_is_closed(world: World) -> None:
    from _socket import socket as bare

    one, two = world.socketpair()
    sock = bare(fileno=one.detach())
    fd = sock.fileno()
    Socket(sock, world.loop).close()
    world.turn()
    assert not world.is_open(fd) and sock.fileno() == -1


def test_closed_object_is_garbage_collected(world: World) -> None:
    one, _ = world.socketpair()
    obj = Recorder(one, world.loop)
    obj.SetPostLoopCallback(lambda *_: True)
    obj.push_back_read(b"x")
    obj.write(obj.event_write)

    two, _ = world.socketpair()
    weak = Weak(two, world.loop)
    reference = weakref.ref(weak)
    weak.close()
    obj.close()
    del weak, obj
    world.turn()
    gc.collect()
    assert reference() is None


ON_CLOSED_OBJECT: dict[str, Callable[[Recorder], object]] = {
    "read": lambda obj: obj.read(1),
    "push_back_read": lambda obj: obj.push_back_read(b"x"),
    "write": lambda obj: obj.write(b"x"),
    "write of a callable": lambda obj: obj.write(obj.close),
    "write of nothing": lambda obj: obj.write(None),
    "event_write": lambda obj: obj.event_write(),
    "on_incomplete_write": lambda obj: obj.on_incomplete_write(),
    "set_writer_func": lambda obj: obj.set_writer_func(lambda data, count, offset: count),
    "watch_read": lambda obj: obj.watch_read(True),
    "watch_write": lambda obj: obj.watch_write(True),
    "tcp_cork": lambda obj: obj.tcp_cork(True),
    "close": lambda obj: obj.close(),
    "close_as": lambda obj: obj.close_as("again"),
    "steal_socket": lambda obj: obj.steal_socket(),
    "SetPostLoopCallback": lambda obj: obj.SetPostLoopCallback(lambda *_: True),
    "addresses": lambda obj: (obj.peer_addr_string(), obj.local_addr_string()),
}


@pytest.mark.parametrize("verb", ON_CLOSED_OBJECT)
@pytest.mark.parametrize("end", ["close", "steal_socket"])
@pytest.mark.parametrize("gone", [False, True], ids=["leaving", "gone"])
def test_methods_of_a_closed_object_do_nothing(
    world: World, gone: bool, end: str, verb: str
) -> None:
    """It keeps nothing: a function that refers back to it would keep it alive."""
    obj = Recorder(world.socketpair()[0], world.loop)
    getattr(obj, end)()
    if gone:
        world.turn()
    names = [name for name in Socket.__slots__ if not name.startswith("_")]
    before = {name: getattr(obj, name) for name in names}
    with world.calls() as calls:
        ON_CLOSED_OBJECT[verb](obj)
    assert calls == [] and {name: getattr(obj, name) for name in names} == before


class Weak(Recorder):
    """Can be referred to weakly, to see that it is gone."""

    __slots__ = ("__weakref__",)


needs_reference_counting = pytest.mark.skipif(
    sys.implementation.name != "cpython", reason="only CPython lets go of an object at once"
)


@needs_reference_counting
@pytest.mark.parametrize("nested", [False, True], ids=["by its loop", "by a run in its handler"])
def test_closed_object_is_freed_with_its_batch_without_the_garbage_collector(
    world: World, nested: bool
) -> None:
    """Without the garbage collector, which may run much later."""

    def read(obj: Recorder) -> None:
        obj.take()
        obj.close()
        if nested:
            world.loop.set_post_loop_callback(lambda *_: False)
            world.loop.run()
            world.loop.set_post_loop_callback(look)

    one, two = world.socketpair()
    obj = Weak(one, world.loop, read=read)
    obj.watch_read(True)
    reference = weakref.ref(obj)
    del obj
    two.send(b"x")
    gone: list[bool] = []

    def look(*_: object) -> bool:
        gone.append(reference() is None)
        return not gone[-1] and len(gone) < 3

    world.loop.set_loop_timeout(0)
    world.loop.set_post_loop_callback(look)
    gc.disable()
    try:
        world.loop.run()
    finally:
        gc.enable()
    assert gone == [True]


def is_closed_by_its_owner(world: World) -> None:
    one, _ = world.socketpair()
    obj = Recorder(one, world.loop)
    one.close()
    obj.close()


def is_registered_twice(world: World) -> None:
    one, _ = world.socketpair()
    first = Recorder(one, world.loop)
    with pytest.raises(OSError):
        Recorder(one, world.loop)
    first.close()


def writes_through_a_function(world: World) -> None:
    one, _ = world.socketpair()
    obj = Recorder(one, world.loop)
    obj.set_writer_func(lambda data, count, offset: count if obj.closed else 0)
    obj.write(b"x")
    obj.close()


def has_every_back_reference(world: World) -> None:
    one, _ = world.socketpair()
    obj = Recorder(one, world.loop)
    obj.set_own_callback(lambda *_: obj)
    obj.push_back_read(b"x")
    obj.set_writer_func(lambda data, count, offset: 0)
    obj.write(b"x")
    obj.write(obj.take)
    obj.set_writer_func(None)
    world.loop.add_timer(60, obj.take).cancel()
    world.loop.call_soon(obj.close)


class OnPurpose(Exception):
    pass


def fail(*_: object) -> int:
    raise OnPurpose


def has_a_raising_writer_function(world: World) -> None:
    one, _ = world.socketpair()
    obj = Recorder(one, world.loop)
    obj.set_writer_func(fail)
    with pytest.raises(OnPurpose):
        obj.write(b"x")
    obj.close()


def makes_an_invalid_read(world: World) -> None:
    one, _ = world.socketpair()
    obj = Recorder(one, world.loop)
    with pytest.raises(ValueError, match="from 1 up"):
        obj.read(0)
    obj.close()


class Unclosable:
    # Not in the function below: the body of a class that is made in one is garbage that free-threaded
    # Python leaves to its collector.
    def __init__(self, sock: AnyHandle) -> None:
        self.fileno = sock.fileno

    def close(self) -> None:
        raise OnPurpose


def has_a_handle_whose_close_raises(world: World) -> None:
    one, _ = world.socketpair()
    for end in (world.loop.run, world.loop.reset):
        Socket(Unclosable(one), world.loop).close()
        with pytest.raises(OnPurpose):
            end()


def is_traced_by_a_raising_sink(world: World) -> None:
    one, _ = world.socketpair()
    trace = Trace(fail)
    trace.start()
    with pytest.raises(OnPurpose):
        Recorder(one, world.loop)


def is_accepted_by_a_raising_callback(world: World) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        listener = Listener(sock, fail, world.loop)
        with socket.create_connection(sock.getsockname()), pytest.raises(OnPurpose):
            world.loop.run()
        listener.steal_socket()


@needs_reference_counting
@real_only
@pytest.mark.parametrize(
    "life",
    [
        *(
            is_closed_by_its_owner,
            is_registered_twice,
            writes_through_a_function,
            has_every_back_reference,
        ),
        *(has_a_raising_writer_function, makes_an_invalid_read, has_a_handle_whose_close_raises),
        *(is_traced_by_a_raising_sink, is_accepted_by_a_raising_callback),
    ],
)
def test_connection_leaves_no_reference_cycles(
    world: World, life: Callable[[World], object]
) -> None:
    """With a cycle for each, the collector would stop the loop, longer for many than for few."""
    for _ in range(2):
        gc.collect()
        gc.disable()
        try:
            life(world)
            world.turn()
            world.turn()
            found = gc.collect()
        finally:
            gc.enable()
    assert found == 0


# --- stealing -------------------------------------------------------------------------------------


def test_steal_socket_unregisters_the_socket_and_leaves_it_open(world: World) -> None:
    one, two = world.socketpair()
    fd = one.fileno()
    obj = Recorder(one, world.loop)
    obj.watch_read(True)
    with world.calls() as calls:
        stolen = obj.steal_socket()
    assert stolen is one and calls == [("unregister", fd, 57)]
    assert obj.closed and obj.sock is None and obj.fd is None
    assert world.loop.to_close == []
    two.send(b"x")
    world.turn()
    assert obj.events == [] and world.is_open(fd) and one.recv(10) == b"x"
    assert world.loop.descriptor_map == {}


def test_steal_socket_does_not_call_close(world: World) -> None:
    one, _ = world.socketpair()
    obj = Recorder(one, world.loop)
    obj.steal_socket()
    assert obj.events == []
    assert obj.steal_socket() is None


def test_stolen_socket_can_be_wrapped_again_in_the_same_batch(world: World) -> None:
    one, two = world.socketpair()
    second: list[Recorder] = []

    def act(obj: Recorder) -> None:
        assert obj.read(1) == b"a"
        sock = obj.steal_socket()
        assert sock is one
        second.append(Recorder(one, world.loop))
        second[0].watch_read(True)

    first = Recorder(one, world.loop, read=act)
    first.watch_read(True)
    two.send(b"abc")
    world.turn()
    world.turn()
    assert first.events == ["read"] and second[0].got == b"bc"
    assert world.loop.descriptor_map == {one.fileno(): second[0]}
    second[0].close()
    world.turn()
    assert world.loop.descriptor_map == {}


@pytest.mark.parametrize("how", ["closed", "stolen", "stolen, another"])
def test_object_can_be_reopened_in_the_batch_in_which_it_was_closed_or_stolen(
    world: World, how: str
) -> None:
    one, two = world.socketpair()
    other, peer = (one, two) if how == "stolen" else world.socketpair()

    def act(obj: Recorder) -> None:
        obj.read(1)
        if how == "closed":
            obj.close("reconnects")
        else:
            obj.steal_socket()
        Recorder.__init__(obj, other, world.loop, events=obj.events)
        obj.watch_read(True)

    obj = Recorder(one, world.loop, read=act)
    obj.watch_read(True)
    two.send(b"x")
    world.turn()
    assert not obj.closed and obj.fd == other.fileno()
    assert world.loop.descriptor_map == {other.fileno(): obj}
    peer.send(b"hello")
    world.turn()
    assert obj.got == b"hello"
    obj.close("done")
    world.turn()
    assert not world.is_open(other.fileno()) and world.loop.descriptor_map == {}


def test_object_can_be_reopened_on_another_loop(world: World) -> None:
    one, two = world.socketpair()
    other = world.new_loop()
    obj = Recorder(one, world.loop)
    obj.steal_socket()
    Recorder.__init__(obj, one, other)
    obj.watch_read(True)
    two.send(b"x")
    world.turn()
    assert world.loop.descriptor_map == {} and not obj.closed
    world.turn(other)
    assert obj.got == b"x" and other.descriptor_map == {one.fileno(): obj}


@pytest.mark.parametrize("where", ["here", "on another loop"])
def test_reopened_object_may_pass_on_the_socket_stolen_from_it(world: World, where: str) -> None:
    """The newcomer has its former number. The object was taken for one whose descriptor was closed
    behind the loop's back."""
    one, two = world.socketpair()
    other, peer = world.socketpair()
    loop = world.loop if where == "here" else world.new_loop()
    newcomers: list[Recorder] = []

    def act(obj: Recorder) -> None:
        obj.read(1)
        obj.steal_socket()
        Recorder.__init__(obj, other, loop, events=obj.events)
        obj.watch_read(True)
        newcomers.append(Recorder(one, world.loop))
        newcomers[0].watch_read(True)

    obj = Recorder(one, world.loop, read=act)
    obj.watch_read(True)
    two.send(b"x")
    world.turn()
    assert not obj.closed and obj.fd == other.fileno()
    assert world.loop.descriptor_map[one.fileno()] is newcomers[0]
    two.send(b"old")
    peer.send(b"new")
    world.turn()
    world.turn(loop)
    assert newcomers[0].got == b"old" and obj.got == b"new"


def test_socket_can_be_stolen_and_wrapped_by_another_handler_of_the_batch(world: World) -> None:
    objects, others, events = ready(world, 2)
    wrapped: list[Recorder] = []

    def act(obj: Recorder) -> None:
        if wrapped:
            obj.take()
            return
        victim = next(o for o in objects if o is not obj)
        handle = victim.steal_socket()
        assert handle is not None
        wrapped.append(Recorder(handle, world.loop))
        wrapped[0].watch_read(True)

    for obj in objects:
        obj.on["read"] = act
    world.turn()
    world.until(lambda: wrapped[0].got)
    assert wrapped[0].got == b"x" and not wrapped[0].closed
    assert events.count("read") >= 1
    assert world.loop.watched_sockets == 2


def test_stolen_socket_can_move_to_another_loop(world: World) -> None:
    one, two = world.socketpair()
    other = world.new_loop()
    obj = Recorder(one, world.loop)
    obj.steal_socket()
    moved = Recorder(one, other)
    moved.watch_read(True)
    two.send(b"x")
    world.turn()
    world.turn(other)
    assert moved.got == b"x"


def test_steal_socket_drops_queued_data_and_uncorks(world: World) -> None:
    one, two = world.socketpair(tcp=True)
    obj = Recorder(one, world.loop)
    obj.tcp_cork(True)
    obj.set_writer_func(_blocks)
    obj.write(b"never")
    corked = obj.corked
    with world.calls() as calls:
        obj.steal_socket()
    assert len(only(calls, "setsockopt")) == corked
    assert not obj.write_buf and obj.write_buf_size == 0


def _blocks(data: object, count: int, offset: int) -> int:
    raise BlockingIOError


def test_close_after_a_steal_does_not_affect_the_sockets_new_object(world: World) -> None:
    one, two = world.socketpair()
    first = Recorder(one, world.loop)
    first.steal_socket()
    second = Recorder(one, world.loop)
    first.close()
    world.turn()
    assert world.is_open(one.fileno()) and not second.closed
    assert isinstance(second.sock, type(one))


def test_handle_needs_only_fileno_and_close(world: World) -> None:
    class Least:
        def __init__(self, thing: AnyHandle) -> None:
            self.thing = thing

        def fileno(self) -> int:
            return self.thing.fileno()

        def close(self) -> None:
            self.thing.close()

    one, two = world.pipe()
    handle: Handle = Least(one)
    fd = one.fileno()
    obj = Recorder(handle, world.loop)  # type: ignore[arg-type]
    obj.watch_read(True)
    two.send(b"through a pipe")
    world.until(lambda: obj.got)
    assert obj.got == b"through a pipe"
    assert obj.peer_ip_string() is None and obj.local_ip_string() is None
    assert obj.as_string() == "Recorder(R): open"
    two.close()
    world.until(lambda: obj.closed)
    world.turn()
    assert not world.is_open(fd)


@pytest.mark.parametrize("traced", [False, True], ids=["alone", "traced"])
def test_timeout_error_from_a_signal_handler_is_not_taken_for_a_failed_close(traced: bool) -> None:
    """It has no errno, unlike a failure of close(2), and is raised; the socket is closed anyway."""
    loop = Loop()
    one, two = socket.socketpair()
    one.setblocking(False)
    obj = Socket(one, loop)
    obj.close()

    def interrupt(frame: FrameType, event: str, argument: object) -> Any:
        if frame.f_code is _handle.close_handle.__code__:
            frame.f_trace_opcodes = True
            if one.fileno() < 0:
                sys.settrace(None)
                frame.f_trace = None
                raise TimeoutError("enough")
        return interrupt

    with Trace() if traced else nullcontext():
        sys.settrace(interrupt)
        try:
            with pytest.raises(TimeoutError, match="enough"):
                loop.reset()
        finally:
            sys.settrace(None)
    with two:
        assert one.fileno() == -1 and two.recv(1) == b""
    assert loop.watched_sockets == 0
