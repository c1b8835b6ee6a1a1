"""Help, and the message for a common mistake: one line that names the mistake, and no harm done."""

from __future__ import annotations

import copy
import errno
import inspect
import io
import os
import pickle
import pydoc
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from inspect import ismemberdescriptor
from pathlib import Path
from types import MethodType

import pytest

import danga_raw
from danga_raw import Listener, Loop, Socket, Timer
from danga_raw.trace import Call, Trace
from tests.needs import ROOT

BACKENDS = ["epoll", "poll"]

CLASS_METHODS = sorted(
    name for name, value in vars(Socket).items() if isinstance(value, classmethod)
)


@pytest.fixture(params=BACKENDS)
def loop(request: pytest.FixtureRequest) -> Iterator[Loop]:
    with Loop(request.param) as loop:
        yield loop


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    here, there = socket.socketpair()
    here.setblocking(False)
    with here, there:
        yield here, there


# --- help -----------------------------------------------------------------------------------------


def test_class_methods_are_those_of_the_manual() -> None:
    assert {name for name in CLASS_METHODS if name[0].isupper()} == set(
        "AddOtherFds AddTimer DebugMsg DescriptorMap DisableProfiling EnableProfiling EventLoop "
        "HaveEpoll HaveKQueue OtherFds ProfilingData Reset SetLoopTimeout ToClose "
        "WatchedSockets".split()
    )


@pytest.mark.parametrize("name", CLASS_METHODS)
def test_help_describes_each_class_method(name: str) -> None:
    text = inspect.getdoc(getattr(Socket, name)) or ""
    assert len(text.split()) >= 6 and not re.match(r"`?Loop\.", text), text
    assert text in "\n".join(line.removeprefix("    ") for line in help_text(Socket, name))


def help_text(kind: type, name: str) -> list[str]:
    return pydoc.plain(pydoc.render_doc(getattr(kind, name))).splitlines()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("AddTimer", "seconds monotonic TypeError ValueError clock_gettime"),
        ("SetLoopTimeout", "milliseconds -1 0 manual ValueError"),
        ("AddOtherFds", "callback epoll_ctl kevent TypeError OSError"),
        ("OtherFds", "POLLIN replaces"),
        ("EventLoop", "OSError close(2) exception"),
        ("Reset", "close(2) child"),
        ("EnableProfiling", "getrusage(2) True"),
        ("ProfilingData", "seconds calls"),
        ("ToClose", "order"),
        ("SetPostLoopCallback", "false None TypeError"),
        ("connect", "OSError ValueError TypeError connect(2) TimeoutError"),
    ],
)
def test_help_names_types_units_errors_and_calls(name: str, words: str) -> None:
    text = inspect.getdoc(getattr(Socket, name)) or ""
    assert [word for word in words.split() if word not in text] == []


def test_help_of_a_listener_describes_its_own_methods() -> None:
    for name, method in vars(Listener).items():
        if not name.startswith("_") and inspect.isfunction(method):
            assert inspect.getdoc(method) != inspect.getdoc(getattr(Socket, name, None)), name


def test_help_describes_the_post_loop_callback_of_an_object(
    loop: Loop, pair: tuple[socket.socket, socket.socket]
) -> None:
    text = inspect.getdoc(Socket(pair[0], loop).SetPostLoopCallback) or ""
    words = "this object descriptor map false None TypeError".split()
    assert [word for word in words if word not in text] == []


@pytest.mark.parametrize("kind", [Socket, Listener, Timer, Trace])
def test_every_attribute_has_a_docstring(kind: type) -> None:
    slots: object = vars(kind)["__slots__"]
    assert isinstance(slots, dict)
    for name, text in slots.items():
        assert len(text.split()) >= 3, name
        if not name.startswith("_"):
            assert text[:30] in pydoc.plain(pydoc.render_doc(kind)), name


def test_docstring_of_a_call_names_its_fields() -> None:
    text = inspect.getdoc(Call) or ""
    assert [name for name in Call._fields if f"`{name}`" not in text] == []


def test_loop_has_no_undocumented_attributes(loop: Loop) -> None:
    assert [name for name in vars(loop) if not name.startswith("_")] == []
    assert loop.backend in ("epoll", "poll") and inspect.getdoc(Loop.backend)


@pytest.mark.parametrize("kind", [Socket, Listener, Loop, Timer, Trace])
def test_every_public_method_and_property_is_documented(kind: type) -> None:
    for name in dir(kind):
        if not name.startswith("_") and not hasattr(object, name):
            assert inspect.getdoc(getattr(kind, name)), name


# --- repr -----------------------------------------------------------------------------------------


def test_repr_of_a_socket_shows_interest_queue_and_peer(loop: Loop) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        there = socket.create_connection(server.getsockname())
        here, _ = server.accept()
    here.setblocking(False)

    class Client(Socket):
        pass

    client = Client(here, loop)
    fd = client.fd
    with Trace() as calls:
        assert repr(client) == f"<Client(): open, fd {fd}>"
        client.watch_read(True)
        assert repr(client) == f"<Client(R): open, fd {fd}>"
    assert not {call.name for call in calls} & {"getpeername"}
    peer = client.peer_addr_string()
    assert repr(client) == f"<Client(R): open to {peer}, fd {fd}>"
    while client.write(b"x" * 65536):
        pass
    size = client.write_buf_size
    assert size and repr(client) == f"<Client(RW): open to {peer}, fd {fd}, {size} bytes queued>"
    client.close()
    assert repr(client) == f"<Client(RW): closed to {peer}, fd None>"
    there.close()


def test_repr_of_an_object_without_init_does_not_raise() -> None:
    assert repr(Socket.__new__(Socket)) == "<Socket, not made>"


def test_repr_of_a_loop_counts_its_contents(
    loop: Loop, pair: tuple[socket.socket, socket.socket]
) -> None:
    assert repr(loop) == f"<Loop on {loop.backend}: 0 sockets, 0 other fds, 0 timers>"
    Socket(pair[0], loop)
    loop.add_other_fds({pair[1].fileno(): lambda state: None})
    loop.add_timer(60, loop.stop)
    assert repr(loop) == f"<Loop on {loop.backend}: 1 sockets, 1 other fds, 1 timers>"


def test_repr_of_a_timer_shows_its_callback_or_that_it_is_spent(loop: Loop) -> None:
    timer = loop.add_timer(60, print)
    assert repr(timer) == f"<Timer of {print!r}>"
    timer.cancel()
    assert repr(timer) == "<Timer spent>"


def test_repr_of_a_listener_shows_interest_and_fd(loop: Loop) -> None:
    listener = Listener(socket.create_server(("127.0.0.1", 0)), lambda *_: None, loop)
    assert repr(listener) == f"<Listener(R): open, fd {listener.fd}>"
    listener.close()
    assert repr(listener) == "<Listener(R): closed, fd None>"


class Plain(Socket):
    """A subclass with a `__dict__`."""


# --- common mistakes ------------------------------------------------------------------------------


def test_blocking_socket_is_warned_about_once_and_without_a_call() -> None:
    code = """
import socket
from danga_raw import Loop, Socket
from danga_raw.trace import Call, Trace
pairs = [socket.socketpair() for _ in range(3)]
with Loop() as loop:
    loop.set_loop_timeout(0)
    with Trace() as calls:
        made = [Socket(here, loop) for here, there in pairs]
    assert {call.name for call in calls} <= {"epoll_create1", "epoll_ctl", "kevent"}, calls
"""
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert "Socket" in result.stderr and "setblocking(False)" in result.stderr


@pytest.mark.parametrize(
    "how", [copy.copy, copy.deepcopy, pickle.dumps, partial(pickle.dumps, protocol=0)]
)
@pytest.mark.parametrize("what", ["Socket", "Plain", "Listener", "Loop", "Timer", "Trace"])
def test_objects_tied_to_the_kernel_or_a_loop_cannot_be_copied_or_pickled(
    loop: Loop,
    pair: tuple[socket.socket, socket.socket],
    what: str,
    how: Callable[[object], object],
) -> None:
    """When dropped, a copy of a loop closed the loop's poller, and one of a socket its handle."""
    obj = Socket(pair[0], loop)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        things: dict[str, object] = {
            "Socket": obj,
            "Plain": Plain(pair[1], loop),
            "Listener": Listener(listening, print, loop),
            "Loop": loop,
            "Timer": loop.add_timer(60, print),
            "Trace": Trace(),
        }
        with pytest.raises(
            TypeError, match=f"can't copy or pickle {re.escape(repr(things[what]))}"
        ):
            how(things[what])
        obj.watch_read(True)
        assert loop.watched_sockets == 3


def test_call_of_a_trace_can_be_copied_and_pickled(
    loop: Loop, pair: tuple[socket.socket, socket.socket]
) -> None:
    obj = Socket(pair[0], loop)
    with Trace() as calls:
        obj.watch_read(True)
    assert calls == copy.deepcopy(calls) == pickle.loads(pickle.dumps(calls))


def test_non_blocking_socket_is_not_warned_about(
    loop: Loop,
    pair: tuple[socket.socket, socket.socket],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("danga_raw.socket._warned", False)
    Socket(pair[0], loop)
    pair[1].settimeout(5)  # The kernel's descriptor doesn't block then.
    Socket(pair[1], loop)
    assert caplog.records == []


def test_number_is_rejected_as_a_socket_with_advice(loop: Loop) -> None:
    with pytest.raises(
        TypeError, match=r"not 5: socket\.socket\(fileno=5\).*AddOtherFds"
    ) as caught:
        Socket(5, loop)  # type: ignore[type-var]  # what is asked here
    # As if it came from another process.
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    with pytest.raises(TypeError, match=r"what else has a fileno\(\), not <_io.BytesIO"):
        Socket(io.BytesIO(), loop)  # whose fileno() raises
    with pytest.raises(TypeError, match="not None"):
        Socket(None, loop)  # type: ignore[type-var]  # what is asked here
    assert loop.watched_sockets == 0


@pytest.mark.parametrize("given", ["epoll", 5, Loop])
def test_what_is_not_a_loop_is_rejected(
    pair: tuple[socket.socket, socket.socket], given: object
) -> None:
    hint = "; Loop('epoll') makes one" if given == "epoll" else ""
    said = re.escape(f"a Socket takes a Loop, not {given!r}{hint}")
    with pytest.raises(TypeError, match=said if given == 5 else f"{said}$"):
        Socket(pair[0], given)  # type: ignore[arg-type]  # what is asked here


class Forgetful(Socket):
    def __init__(self) -> None:  # no super().__init__: what is asked here
        pass


class Slotted(Socket):
    __slots__ = ("name",)

    def __init__(self) -> None:
        self.name = "made"


class Mixin:
    def __init__(self) -> None:
        pass


class Mixed(Mixin, Socket):  # whose constructor is the mixin's, which calls no other
    pass


class ForgetfulListener(Listener):
    def __init__(self) -> None:
        pass


WITHOUT_SUPER_INIT: list[Callable[[], Socket]] = [Forgetful, Slotted, Mixed, ForgetfulListener]

FIRST_USES: dict[str, Callable[[Socket], object]] = {
    "read": lambda obj: obj.read(10),
    "write": lambda obj: obj.write(b"x"),
    "write nothing": lambda obj: obj.write(None),
    "write callable": lambda obj: obj.write(print),
    "push_back_read": lambda obj: obj.push_back_read(b"x"),
    "set_writer_func": lambda obj: obj.set_writer_func(None),
    "on_incomplete_write": lambda obj: obj.on_incomplete_write(),
    "watch_read": lambda obj: obj.watch_read(True),
    "watch_write": lambda obj: obj.watch_write(True),
    "watch_write no longer": lambda obj: obj.watch_write(False),
    "tcp_cork": lambda obj: obj.tcp_cork(True),
    "close": lambda obj: obj.close(),
    "close_as": lambda obj: obj.close_as("end"),
    "steal_socket": lambda obj: obj.steal_socket(),
    "event_read": lambda obj: Socket.event_read(obj),
    "event_write": lambda obj: obj.event_write(),
    "SetPostLoopCallback": lambda obj: obj.SetPostLoopCallback(None),
    "peer_ip_string": lambda obj: obj.peer_ip_string(),
    "peer_addr_string": lambda obj: obj.peer_addr_string(),
    "local_ip_string": lambda obj: obj.local_ip_string(),
    "local_addr_string": lambda obj: obj.local_addr_string(),
    "as_string": lambda obj: obj.as_string(),
    **{
        name: partial(lambda name, obj: getattr(obj, name), name)
        for name, value in vars(Socket).items()
        if not name.startswith("_") and (isinstance(value, property) or ismemberdescriptor(value))
    },
}
"""The first use of an object."""


@pytest.mark.parametrize("use", FIRST_USES)
@pytest.mark.parametrize("kind", WITHOUT_SUPER_INIT)
def test_missing_super_init_is_named_in_the_error(kind: Callable[[], Socket], use: str) -> None:
    obj = kind()
    name = type(obj).__name__
    with pytest.raises(AttributeError, match=rf"{name}.__init__ has not called super\(\)"):
        FIRST_USES[use](obj)
    assert repr(obj) == f"<{name}, not made>"


@pytest.mark.parametrize(
    "use", ["read", "write", "watch_read", "watch_write", "watch_write no longer", "close"]
)
def test_use_before_super_init_is_named_in_the_error(
    loop: Loop, pair: tuple[socket.socket, socket.socket], use: str
) -> None:
    class Hasty(Socket):
        def __init__(self, sock: socket.socket, loop: Loop) -> None:
            FIRST_USES[use](self)
            super().__init__(sock, loop)

    with pytest.raises(AttributeError, match=r"Hasty.__init__ has not called super\(\)"):
        Hasty(pair[0], loop)
    assert loop.watched_sockets == 0

    @dataclass
    class Generated(Socket):  # Its constructor is added after the class is made.
        name: str = ""

    with pytest.raises(AttributeError, match=r"Generated.__init__ has not called super\(\)"):
        FIRST_USES[use](Generated())


def test_setting_attributes_instead_of_calling_super_init_is_named_in_the_error(
    loop: Loop, pair: tuple[socket.socket, socket.socket]
) -> None:
    class Setting(Socket):
        def __init__(self, sock: socket.socket, loop: Loop) -> None:
            self.sock, self.fd, self.loop = sock, sock.fileno(), loop

    for use in ("read", "write", "watch_read", "close", "steal_socket", "peer_ip_string", "closed"):
        with pytest.raises(AttributeError, match=r"Setting.__init__ has not called super\(\)"):
            FIRST_USES[use](Setting(pair[0], loop))


def test_super_init_may_be_called_by_another_method(
    loop: Loop, pair: tuple[socket.socket, socket.socket]
) -> None:
    """A missing attribute gives Python's usual error, even if it is missing inside a property."""

    class Indirect(Socket):
        def __init__(self, sock: socket.socket) -> None:
            self.begin(sock)

        def begin(self, sock: socket.socket) -> None:
            super().__init__(sock, loop)

        @property
        def broken(self) -> object:
            return getattr(self.loop, "nothing")

    obj = Indirect(pair[0])
    assert obj.fd == pair[0].fileno() and not hasattr(obj, "name")
    with pytest.raises(AttributeError, match="'Indirect' object has no attribute 'name'"):
        getattr(obj, "name")
    with pytest.raises(AttributeError, match="'Loop' object has no attribute 'nothing'"):
        obj.broken  # noqa: B018
    obj.close()


def test_class_that_calls_super_init_gets_no_getattr_hook() -> None:
    class Plain(Socket):
        pass

    class Usual(Socket):
        def __init__(self, sock: socket.socket) -> None:
            super().__init__(sock)

    class Named(Socket):
        def __init__(self, sock: socket.socket) -> None:
            Socket.__init__(self, sock)

    class Own(Socket):
        def __init__(self) -> None:
            pass

        def __getattr__(self, name: str) -> str:
            return name

    for kind in (Socket, Listener, Plain, Usual, Named):
        assert not hasattr(kind, "__getattr__")
    assert getattr(Own(), "anything") == "anything"  # its own is kept


async def coroutine(*_: object) -> None: ...


async def generator(*_: object) -> object:
    yield


def plain_generator(*_: object) -> Iterator[None]:
    yield


class AsyncCallable:
    async def __call__(self, *_: object) -> None: ...


INEFFECTIVE: dict[str, Callable[..., object]] = {
    "coroutine": coroutine,
    "asynchronous generator": generator,
    "generator": plain_generator,
    "partial": partial(partial(coroutine, 1), 2),
    "object": AsyncCallable(),
    "partial of an object": partial(AsyncCallable()),
}
"""Callables that do nothing when called."""


CALLBACK_SETTERS: dict[str, Callable[[Loop, object], object]] = {
    "add_timer": lambda loop, given: loop.add_timer(1, given),  # type: ignore[arg-type]
    "call_soon": lambda loop, given: loop.call_soon(given),  # type: ignore[arg-type]
    "call_soon_threadsafe": lambda loop, given: loop.call_soon_threadsafe(given),  # type: ignore[arg-type]
    "add_signal_handler": lambda loop, given: loop.add_signal_handler(10, given),  # type: ignore[arg-type]
    "add_other_fds": lambda loop, given: loop.add_other_fds({0: given}),  # type: ignore[dict-item]
    "set_post_loop_callback": lambda loop, given: loop.set_post_loop_callback(given),  # type: ignore[arg-type]
    "on_exception": lambda loop, given: setattr(loop, "on_exception", given),
}


@pytest.mark.parametrize("way", CALLBACK_SETTERS)
@pytest.mark.parametrize("kind", INEFFECTIVE)
def test_callback_that_would_return_a_coroutine_or_generator_is_rejected(
    loop: Loop, way: str, kind: str
) -> None:
    with pytest.raises(
        TypeError, match="called and not awaited.*is a coroutine function or a generator"
    ):
        CALLBACK_SETTERS[way](loop, INEFFECTIVE[kind])


@pytest.mark.parametrize("way", sorted({*CALLBACK_SETTERS} - {"add_other_fds"}))
def test_callable_that_merely_holds_a_coroutine_function_is_accepted(loop: Loop, way: str) -> None:
    class Starts:
        func = staticmethod(coroutine)

        def __call__(self, *_: object) -> None: ...

    for fine in (Starts(), partial(print), Starts, print):
        CALLBACK_SETTERS[way](loop, fine)


def test_objects_reject_coroutine_functions_as_callbacks(
    loop: Loop, pair: tuple[socket.socket, socket.socket]
) -> None:
    obj = Socket(pair[0], loop)
    for give in (
        partial(obj.set_writer_func, coroutine),  # type: ignore[arg-type]
        partial(obj.SetPostLoopCallback, coroutine),
        partial(Listener, pair[1], coroutine, loop),
    ):
        with pytest.raises(TypeError, match="called and not awaited"):
            give()
    assert obj.writer_func is None and loop.watched_sockets == 1


def test_add_timer_checks_each_method_that_differs_from_the_last_one(loop: Loop) -> None:
    class Things(dict[str, int]):
        def call(self) -> None: ...

        async def wait(self) -> None: ...

    builtin = MethodType(print, Things())
    for fine in (Things().call, Things().call, builtin, builtin, Things().clear, partial(print)):
        loop.add_timer(60, fine)
        for _ in range(2):
            with pytest.raises(
                TypeError,
                match="called and not awaited.*is a coroutine function or a generator",
            ):
                loop.add_timer(60, Things().wait)
    assert "6 timers" in repr(loop)


@pytest.mark.parametrize("name", "event_read event_write event_err event_hup event_connect".split())
def test_class_with_a_coroutine_handler_cannot_be_defined(name: str) -> None:
    with pytest.raises(
        TypeError, match=rf"Hasty\.{name} is called and not awaited: no async def or yield"
    ):
        type("Hasty", (Socket,), {name: coroutine})
    type("Fine", (Socket,), {"helper": coroutine})


@pytest.mark.parametrize("name", ["close", "close_as", "event_connect"])
def test_handler_with_the_wrong_signature_is_warned_about(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Such as asyncore's `close(self)`, which would fail when a write does."""
    mixin = type("Mixin", (), {name: lambda self: None})
    for bases, names in ((Socket,), {name: lambda self: None}), ((mixin, Socket), {}):
        caplog.clear()
        type("Ported", bases, names)
        assert caplog.messages == [
            f"Ported.{name} is called with one argument, as Socket.{name} is"
        ]
    caplog.clear()
    for fine in (lambda *all: None, lambda self, reason=None: None, lambda self, a, b=0: None):
        type("Ported", (Socket,), {name: fine})
    type("Ported", (Socket,), {name: print, "event_read": lambda self: None})
    assert caplog.messages == []


@pytest.mark.parametrize(
    "way", ["add_timer", "call_soon", "call_soon_threadsafe", "add_signal_handler", "add_other_fds"]
)
def test_callback_that_was_called_instead_of_passed_is_named_in_the_error(
    loop: Loop, way: str
) -> None:
    called = print(end="")
    with pytest.raises(TypeError, match=r"not None; give the function itself, f and not f\(\)"):
        CALLBACK_SETTERS[way](loop, called)
    assert "0 other fds, 0 timers" in repr(loop) and loop._registry.waker is None


def test_socket_given_as_an_other_fd_is_rejected_with_advice(
    loop: Loop, pair: tuple[socket.socket, socket.socket]
) -> None:
    for give in (loop.add_other_fds, partial(setattr, loop, "other_fds")):
        with pytest.raises(TypeError, match=r"an other fd is a number, not .*fileno\(\)"):
            give({pair[0]: print})  # type: ignore[dict-item]  # what is asked here
    assert dict(loop.other_fds) == {}


def test_mappings_of_a_loop_are_read_only(
    loop: Loop, pair: tuple[socket.socket, socket.socket]
) -> None:
    """If only removed from the dict, a descriptor gets events without an owner, and is closed."""
    obj = Socket(pair[0], loop)
    loop.enable_profiling()
    loop.add_other_fds({pair[1].fileno(): print})
    given: list[object] = []
    loop.set_post_loop_callback(lambda *mappings: given.extend(mappings))
    loop.set_loop_timeout(0)
    loop.run()
    for mapping in (loop.descriptor_map, loop.other_fds, loop.profiling_data, *given):
        with pytest.raises(TypeError, match="support item assignment"):
            mapping[obj.fd] = print  # type: ignore[index]  # what is asked here
        with pytest.raises(TypeError, match="support item deletion"):
            del mapping[obj.fd]  # type: ignore[attr-defined]  # what is asked here
    assert given == [{obj.fd: obj}, {pair[1].fileno(): print}]
    assert given == [loop.descriptor_map, loop.other_fds]


INVALID_ARGUMENTS: dict[str, tuple[Callable[[Loop, Socket], object], str]] = {
    "seconds for milliseconds": (
        lambda loop, obj: loop.set_loop_timeout(0.5),  # type: ignore[arg-type]
        "a loop timeout is a number of milliseconds, an int, not 0.5",
    ),
    "no timeout as None": (
        lambda loop, obj: loop.set_loop_timeout(None),  # type: ignore[arg-type]
        "a number of milliseconds, an int, not None",
    ),
    "read of text": (
        lambda loop, obj: obj.read("5"),  # type: ignore[arg-type]
        "read takes a number of bytes from 1 up, not '5'",
    ),
    "read of a float": (
        lambda loop, obj: obj.read(1e3),  # type: ignore[arg-type]
        "read takes a number of bytes from 1 up, not 1000.0",
    ),
    "read of all": (
        lambda loop, obj: obj.read(None),  # type: ignore[arg-type]
        "read takes a number of bytes from 1 up, not None",
    ),
    "other fds in a list": (
        lambda loop, obj: loop.add_other_fds([1, 2]),  # type: ignore[arg-type]
        r"other fds are given as \{fd: callback\}, not \[1, 2\]",
    ),
    "other fds set to None": (
        lambda loop, obj: setattr(loop, "other_fds", None),
        r"other fds are given as \{fd: callback\}, not None",
    ),
    "an other fd in text": (
        lambda loop, obj: loop.add_other_fds({"1": print}),  # type: ignore[dict-item]
        "an other fd is a number, not '1'",
    ),
    "callback and fd turned round": (
        lambda loop, obj: loop.add_other_fds({print: 1}),  # type: ignore[dict-item]
        "an other fd is a number, not <built-in function print>",
    ),
    "a signal's name": (
        lambda loop, obj: loop.add_signal_handler("SIGTERM", print),  # type: ignore[arg-type]
        "a signal is a number, as signal.SIGTERM is, not 'SIGTERM'",
    ),
    "no signal": (
        lambda loop, obj: loop.add_signal_handler(999, print),
        "a signal is a number, as signal.SIGTERM is, not 999",
    ),
    "a signal that can't be handled": (
        lambda loop, obj: loop.add_signal_handler(signal.SIGKILL, print),
        rf"rt_sigaction\({signal.SIGKILL:d}\): {os.strerror(errno.EINVAL)}",
    ),
    "a number to listen on": (
        lambda loop, obj: Listener(5, print, loop),  # type: ignore[arg-type]
        "a Listener takes a listening socket, not 5",
    ),
    "an address to listen on": (
        lambda loop, obj: Listener(("", 80), print, loop),  # type: ignore[arg-type]
        r"a Listener takes a listening socket, not \('', 80\)",
    ),
    "a Socket to listen on": (
        lambda loop, obj: Listener(obj, print, loop),  # type: ignore[arg-type]
        r"a Listener takes a listening socket, not <Socket\(R\): open",
    ),
    "a host and a port": (
        lambda loop, obj: Socket.connect("127.0.0.1", 80),
        r"a Socket takes a Loop, not 80; connect takes \(ip, port\)",
    ),
    "a class to call for each connection": (
        lambda loop, obj: Socket(obj.sock, ("127.0.0.1", 80)),  # type: ignore[arg-type,type-var]
        r"a Socket takes a Loop, not \('127.0.0.1', 80\); .* a Listener calls accepted\(connection, ad",
    ),
    "an address in brackets": (
        lambda loop, obj: Socket.connect(("[::1]", 80), loop),
        r"connect takes an IP address, which '\[::1\]' is not",
    ),
    "a timer's seconds in text": (
        lambda loop, obj: loop.add_timer("1", print),  # type: ignore[arg-type]
        "a timer takes seconds as an int or a float, not '1'",
    ),
    "a timer of no time": (
        lambda loop, obj: loop.add_timer(None, print),  # type: ignore[arg-type]
        "a timer takes seconds as an int or a float, not None",
    ),
    "a path that is no str": (
        lambda loop, obj: Socket.connect(Path("door"), loop),  # type: ignore[arg-type]
        r"or a path as str or bytes: PosixPath\('door'\)",
    ),
    "a coroutine function to write": (
        lambda loop, obj: obj.write(coroutine),
        "called and not awaited.*is a coroutine function or a generator",
    ),
}
"""A mistake, and the message for it."""


@pytest.mark.parametrize("mistake", INVALID_ARGUMENTS)
def test_invalid_argument_is_named_with_its_value_and_a_remedy(
    loop: Loop, pair: tuple[socket.socket, socket.socket], mistake: str
) -> None:
    obj = Socket(pair[0], loop)
    obj.watch_read(True)
    made, (make, said) = repr(obj), INVALID_ARGUMENTS[mistake]
    with pytest.raises((TypeError, ValueError, OSError), match=said):
        make(loop, obj)
    assert repr(obj) == made and dict(loop.other_fds) == {} and loop.watched_sockets == 1


def test_signal_handler_added_in_another_thread_is_rejected(loop: Loop) -> None:
    said: list[str] = []

    def add() -> None:
        with pytest.raises(ValueError) as caught:
            loop.add_signal_handler(signal.SIGUSR1, print)
        said.append(str(caught.value))

    thread = threading.Thread(target=add)
    thread.start()
    thread.join()
    assert "main thread" in said[0]


class Late:
    async def event_read(self) -> None: ...


@pytest.mark.parametrize(
    ("bases", "body", "name"),
    [
        ((Late, Socket), {}, "event_read"),
        ((Socket,), {"event_hup": staticmethod(coroutine)}, "event_hup"),
        ((Socket,), {"close": coroutine}, "close"),
        ((Socket,), {"on_incomplete_write": coroutine}, "on_incomplete_write"),
        ((Socket,), {"event_read": plain_generator}, "event_read"),
    ],
)
def test_coroutine_handler_is_rejected_wherever_it_is_defined(
    bases: tuple[type, ...], body: dict[str, object], name: str
) -> None:
    with pytest.raises(
        TypeError, match=rf"Hasty\.{name} is called and not awaited: no async def or yield"
    ):
        type("Hasty", bases, body)


def test_missing_call_of_listen_is_reported(loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        listener = Listener(sock, lambda *_: None, loop)
        loop.set_post_loop_callback(lambda *_: False)
        loop.run()
        assert listener.closed
    assert "no listening socket" in caplog.text


def test_version_has_three_numbers() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", danga_raw.__version__)
