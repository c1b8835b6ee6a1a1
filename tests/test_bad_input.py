"""Bad input is refused with a message that names it, and changes nothing."""

from __future__ import annotations

import ctypes
import math
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from errno import EBADF, EEXIST, EMFILE, EPERM
from typing import Any
from unittest.mock import MagicMock

import pytest

from danga_raw import Loop, Socket
from danga_raw._backends import backends
from danga_raw._libc import libc
from danga_raw.types import AnySocket
from tests.world import (
    IN,
    OUT,
    AnyHandle,
    Descriptor,
    Recorder,
    World,
    drain,
    only,
    readiness_only,
    real_only,
)

NOT_CALLABLE: list[Any] = [5, "name", b"", object(), (print,)]


def state(loop: Loop) -> tuple[object, ...]:
    """The whole state of a loop."""
    return (
        dict(loop.descriptor_map),
        dict(loop.other_fds),
        list(loop.to_close),
        len(loop._timers.heap),
        loop._timers.timeout,
        dict(loop._registry.post_loop_callbacks),
        list(loop._registry.readable),
        loop.on_exception,
        loop._stopping,
    )


def fields(obj: AnySocket) -> tuple[object, ...]:
    """The whole state of an object."""
    return (
        obj.sock, obj.fd, obj.closed, obj.corked, obj.event_watch, obj.writer_func,
        list(obj.write_buf), obj.write_buf_offset, obj.write_buf_size, obj.write_set_watch,
        list(obj.read_push_back),
    )  # fmt: skip


@contextmanager
def unchanged(world: World, *objects: AnySocket, asking: bool = False) -> Iterator[None]:
    """For a block in which something is refused: the loop, objects and poller must not change."""
    before = state(world.loop), [fields(obj) for obj in objects]
    with world.calls() as calls:
        yield
    assert (state(world.loop), [fields(obj) for obj in objects]) == before
    if asking:
        calls = [call for call in calls if call[0] != "read"]
    assert [call for call in calls if call[0] != "register"] in ([], [*only(calls, "unregister")])
    world.turn()


@pytest.fixture
def obj(world: World) -> Recorder:
    one, two = world.socketpair()
    two.send(b"there")
    return Recorder(one, world.loop)


# --- what goes through an object ------------------------------------------------------------------


@pytest.mark.parametrize("queue", [False, True], ids=["idle", "queue"])
@pytest.mark.parametrize("data", ["text", 5, [b"x"], object(), 1.5, {}], ids=repr)
def test_write_accepts_only_bytes_callables_and_none(
    world: World, obj: Recorder, queue: bool, data: Any
) -> None:
    if queue:
        obj.set_writer_func(_blocks)
        obj.write(b"queued")
    with unchanged(world, obj), pytest.raises(TypeError) as caught:
        obj.write(data)
    message = str(caught.value)
    assert "bytes, a bytearray, a memoryview, a callable or None" in message
    assert type(data).__name__ in message
    assert ("encode" in message) is isinstance(data, str)


def _blocks(data: object, count: int, offset: int) -> int:
    raise BlockingIOError


def test_write_rejects_a_view_with_gaps(world: World, obj: Recorder) -> None:
    with unchanged(world, obj), pytest.raises(TypeError, match="contiguous"):
        obj.write(memoryview(b"abcdef")[::2])


@pytest.mark.parametrize("count", [0, -1, -(1 << 70)])
@pytest.mark.parametrize("pushed", [False, True])
def test_read_rejects_counts_below_one(
    world: World, obj: Recorder, count: int, pushed: bool
) -> None:
    if pushed:
        obj.push_back_read(b"x")
    # A read(2) may be made, but reads nothing.
    with unchanged(world, obj, asking=True), pytest.raises(ValueError, match="read.*1"):
        obj.read(count)
    assert obj.read(9) == (b"x" if pushed else b"there")


@pytest.mark.parametrize("count", ["1", None, b"1", 1e7, [1]])
def test_read_rejects_what_is_not_a_number(world: World, obj: Recorder, count: Any) -> None:
    with unchanged(world, obj), pytest.raises(TypeError):
        obj.read(count)


@pytest.mark.parametrize("count", [1.5, 0.5, 100.0])
@pytest.mark.parametrize("pushed", [False, True])
def test_read_of_a_fraction_is_rejected_and_loses_nothing(
    world: World, obj: Recorder, count: Any, pushed: bool
) -> None:
    """It is refused at the door to the C library, before the call."""
    if pushed:
        obj.push_back_read(b"pushed ")
    before = state(world.loop), fields(obj)
    with pytest.raises(TypeError):
        obj.read(count)
    assert (state(world.loop), fields(obj)) == before
    obj.watch_read(True)
    world.until(lambda: obj.got.endswith(b"there"))
    assert bytes(obj.got) == (b"pushed there" if pushed else b"there")


@pytest.mark.parametrize("piece", ["text", 5, None, [1, 2], object()], ids=repr)
def test_push_back_read_accepts_only_bytes(world: World, obj: Recorder, piece: Any) -> None:
    with unchanged(world, obj), pytest.raises(TypeError) as caught:
        obj.push_back_read(piece)
    assert "push_back_read takes bytes" in str(caught.value)


# --- callbacks that can't be called ---------------------------------------------------------------


@pytest.mark.parametrize("wrong", NOT_CALLABLE, ids=repr)
@pytest.mark.parametrize(
    "setter",
    [
        lambda world, obj, x: world.loop.add_timer(1, x),
        lambda world, obj, x: world.loop.set_post_loop_callback(x),
        lambda world, obj, x: world.loop.add_other_fds({0: x}),
        lambda world, obj, x: setattr(world.loop, "other_fds", {0: x}),
        lambda world, obj, x: setattr(world.loop, "on_exception", x),
        lambda world, obj, x: obj.set_writer_func(x),
        lambda world, obj, x: obj.SetPostLoopCallback(x),
    ],
    ids=["add_timer", "set_post_loop_callback", "add_other_fds", "other_fds", "on_exception",
         "set_writer_func", "SetPostLoopCallback"],
)  # fmt: skip
def test_callback_that_is_not_callable_is_rejected_when_it_is_set(
    world: World, obj: Recorder, setter: Callable[[World, Recorder, object], object], wrong: object
) -> None:
    with unchanged(world, obj), pytest.raises(TypeError, match="callable"):
        setter(world, obj, wrong)


@pytest.mark.parametrize("verb", ["AddTimer", "AddOtherFds", "OtherFds", "SetPostLoopCallback"])
def test_class_methods_reject_what_is_not_callable_too(world: World, verb: str) -> None:
    world.default_loop()
    arguments: dict[str, tuple[Any, ...]] = {
        "AddTimer": (1, "x"),
        "AddOtherFds": ({0: "x"},),
        "OtherFds": ({0: "x"},),
        "SetPostLoopCallback": ("x",),
    }
    with pytest.raises(TypeError, match="callable"):
        getattr(Socket, verb)(*arguments[verb])
    assert Socket.OtherFds() == {}


@pytest.mark.parametrize("wrong", [None, 5])
def test_timers_and_other_fds_require_a_callback(world: World, wrong: Any) -> None:
    with unchanged(world):
        with pytest.raises(TypeError, match="callable"):
            world.loop.add_timer(1, wrong)
        with pytest.raises(TypeError, match="callable"):
            world.loop.add_other_fds({0: wrong})


# --- numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("ms", [-2, -(2**31), 2**31, 2**32 - 1, 2**64])
def test_loop_timeout_beyond_a_c_int_is_rejected(world: World, ms: int) -> None:
    with unchanged(world), pytest.raises(ValueError, match=f"loop timeout.*{ms}"):
        world.loop.set_loop_timeout(ms)


@pytest.mark.parametrize("ms", [1.5, "1", None, math.nan])
def test_loop_timeout_that_is_not_an_integer_is_rejected(world: World, ms: Any) -> None:
    with unchanged(world), pytest.raises(TypeError):
        world.loop.set_loop_timeout(ms)


def test_loop_timeout_may_be_any_integer_like_object(world: World) -> None:
    class Five:
        def __index__(self) -> int:
            return 5

    five: Any = Five()
    assert world.loop.set_loop_timeout(five) == 5
    world.loop.set_post_loop_callback(lambda *_: False)
    with world.calls() as calls:
        world.loop.run()
    assert calls == [("wait", 5)]


@pytest.mark.parametrize("seconds", [math.nan, math.inf, -math.inf])
def test_timer_requires_a_finite_number_of_seconds(world: World, seconds: float) -> None:
    with unchanged(world), pytest.raises(ValueError, match=f"finite.*{seconds}"):
        world.loop.add_timer(seconds, print)


@pytest.mark.parametrize("seconds", [10**400, -(10**400)], ids=["huge", "hugely negative"])
def test_timer_requires_a_number_that_fits_into_a_float(world: World, seconds: int) -> None:
    with unchanged(world), pytest.raises(ValueError, match="finite number of seconds, not -?1000"):
        world.loop.add_timer(seconds, print)


@pytest.mark.parametrize("seconds", ["1", None])
def test_timer_requires_a_number(world: World, seconds: Any) -> None:
    with unchanged(world), pytest.raises(TypeError):
        world.loop.add_timer(seconds, print)


# --- descriptors ----------------------------------------------------------------------------------


def check(error: OSError, number: int, fd: int, world: World) -> None:
    """The error names the call, the descriptor and the reason."""
    call = {"epoll": "epoll_ctl", "poll": "poll", "kqueue": "kevent"}[world.backend]
    assert error.errno == number
    message = str(error)
    assert call in message and f"fd {fd}" in message and os.strerror(number) in message


def test_closed_fd_is_rejected(world: World, obj: Recorder) -> None:
    world.lenient()
    one, two = world.socketpair()
    fd = one.fileno()

    class Dead:
        def fileno(self) -> int:
            return fd

        def close(self) -> None: ...

    one.close()
    with unchanged(world, obj):
        with pytest.raises(OSError) as caught:
            Socket(Dead(), world.loop)
        check(caught.value, EBADF, fd, world)
        with pytest.raises(OSError) as caught:
            world.loop.add_other_fds({fd: print})
        check(caught.value, EBADF, fd, world)
        with pytest.raises(OSError):
            world.loop.other_fds = {fd: print}
    # Once the number is open again, it can be used like any other.
    other, another = world.socketpair()
    thing, peer = (other, another) if other.fileno() == fd else (another, other)
    assert thing.fileno() == fd
    new = Recorder(thing, world.loop)
    new.watch_read(True)
    peer.send(b"x")
    world.until(lambda: new.got)


def test_closed_socket_is_rejected(world: World) -> None:
    one, _ = world.socketpair()
    one.close()
    with unchanged(world), pytest.raises(OSError) as caught:
        Socket(one, world.loop)
    check(caught.value, EBADF, -1, world)


@pytest.mark.parametrize("fd", [-1, -5, 2**31, 2**32 + 1, 2**64])
def test_impossible_fd_is_rejected(world: World, fd: int) -> None:
    with unchanged(world), pytest.raises(OSError) as caught:
        world.loop.add_other_fds({fd: print})
    check(caught.value, EBADF, fd, world)


def test_fd_that_would_be_truncated_to_an_open_one_is_rejected(world: World, obj: Recorder) -> None:
    one, two = world.socketpair()
    with unchanged(world, obj), pytest.raises(OSError):
        world.loop.add_other_fds({2**32 + one.fileno(): print})
    world.loop.add_other_fds({one.fileno(): print})


def test_second_registration_of_an_fd_is_rejected(world: World, obj: Recorder) -> None:
    assert obj.sock is not None and obj.fd is not None
    with unchanged(world, obj):
        with pytest.raises(OSError) as caught:
            Recorder(obj.sock, world.loop)
        check(caught.value, EEXIST, obj.fd, world)
        with pytest.raises(OSError) as caught:
            world.loop.add_other_fds({obj.fd: print})
        check(caught.value, EEXIST, obj.fd, world)
    obj.watch_read(True)
    world.until(lambda: obj.got)
    assert obj.got == b"there"


def test_rejected_object_closes_nothing(world: World, obj: Recorder) -> None:
    """As a subclass's constructor may do if this one raises, or a `__del__`."""

    class Tidy(Recorder):
        def __init__(self, sock: AnyHandle) -> None:
            try:
                super().__init__(sock, world.loop)
            except OSError:
                self.write(b"x")
                self.events = []
                self.close("refused")
                raise

    sock = obj.sock
    assert sock is not None
    with unchanged(world), pytest.raises(OSError):
        Tidy(sock)
    world.turn()
    assert world.is_open(sock.fileno()) and not obj.closed and not obj.event_watch & OUT


@readiness_only
def test_regular_file_is_rejected(world: World, obj: Recorder) -> None:
    file = world.file()
    with unchanged(world, obj):
        with pytest.raises(OSError) as caught:
            Socket(file, world.loop)
        check(caught.value, EPERM, file.fileno(), world)
        with pytest.raises(OSError) as caught:
            world.loop.add_other_fds({file.fileno(): print})
        check(caught.value, EPERM, file.fileno(), world)
    assert world.is_open(file.fileno())


def test_why_nobody_can_be_asked_whether_a_file_can_be_polled_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(flags: int) -> int:
        ctypes.set_errno(EMFILE)
        return -1

    monkeypatch.setattr(libc, "epoll_create1", refuse, raising=False)
    with Loop("poll") as loop, open(__file__) as file:
        with pytest.raises(OSError) as caught:
            loop.add_other_fds({file.fileno(): print})
        assert caught.value.errno == EMFILE and loop.other_fds == {}


@real_only
def test_pollable_file_is_accepted_by_every_backend(world: World) -> None:
    """Its type is that of a regular file, but it can be polled: the kernel reports every mount."""
    mounts = Descriptor(os.open("/proc/self/mounts", os.O_RDONLY))
    world.stack.callback(mounts.close)
    obj = Recorder(mounts, world.loop)
    assert world.loop.descriptor_map == {mounts.fileno(): obj}
    obj.watch_read(True)
    world.until(lambda: obj.got)
    assert b"/proc" in obj.got


@pytest.mark.parametrize("key", ["x", None, 1.5])
def test_other_fd_that_is_not_an_integer_is_rejected(world: World, key: Any) -> None:
    one, two = world.socketpair()
    two.send(b"x")
    good: list[int] = []
    with unchanged(world), pytest.raises(TypeError):
        world.loop.add_other_fds({one.fileno(): good.append, key: print})
    assert good == [] and world.is_open(one.fileno())
    world.loop.add_other_fds({one.fileno(): good.append})
    world.turn()
    assert good == [IN] and drain(one) == b"x"


def test_other_fd_may_be_any_integer_like_object(world: World) -> None:
    class Number:
        """Equal only to itself."""

        def __init__(self, number: int) -> None:
            self.number = number

        def __index__(self) -> int:
            return self.number

    one, two = world.socketpair()
    two.send(b"x")
    heard: list[int] = []
    number: Any = Number(one.fileno())
    assert list(world.loop.add_other_fds({number: heard.append})) == [one.fileno()]
    world.turn()
    assert heard == [IN] and drain(one) == b"x"


@pytest.mark.parametrize("backend", sorted({"epoll", "kqueue"} & set(backends())))
def test_failure_to_open_a_poller_names_the_call(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = {"epoll": "epoll_create1", "kqueue": "kqueue"}[backend]

    def full(*given: object) -> int:
        ctypes.set_errno(EMFILE)
        return -1

    loop = Loop(backend)
    monkeypatch.setattr(libc, call, full)
    with pytest.raises(OSError, match=rf"{call}\(.*{os.strerror(EMFILE)}") as caught:
        loop._registry.open()
    assert caught.value.errno == EMFILE
    monkeypatch.undo()
    assert loop._registry.open().fileno() >= 0
    loop.close()


def test_what_is_not_a_handle_is_rejected(world: World) -> None:
    wrong: Any = 5
    with unchanged(world), pytest.raises(AttributeError):
        Socket(wrong, world.loop)


class HandleWithOddFileno:
    """A handle whose fileno() is not a number."""

    def __init__(self, fd: object) -> None:
        self.fd = fd

    def fileno(self) -> Any:
        return self.fd

    def close(self) -> None:
        raise AssertionError("nobody has it")


@pytest.mark.parametrize("fd", [None, "5", 5.0, [], MagicMock()], ids=lambda fd: type(fd).__name__)
def test_handle_whose_fileno_is_not_a_number_is_rejected(world: World, fd: object) -> None:
    """Before anything else: ctypes would search a mock for ever, and a list can't be a key."""
    mock: Any = MagicMock(spec=socket.socket, fileno=lambda: fd)  # It says that it is a socket.
    for handle in (HandleWithOddFileno(fd), mock):
        with unchanged(world), pytest.raises(TypeError, match=r"fileno\(\) is a number, not"):
            Socket(handle, world.loop)
