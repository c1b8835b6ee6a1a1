"""Reporting a fault never causes another: neither the subject of the report, nor anybody else's
close, nor the loop is harmed, whatever happens to standard error and logging."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EBADF

import pytest

from danga_raw import Socket, log_exception
from danga_raw._backends import backends
from danga_raw._libc import libc
from tests.world import AnyHandle, Recorder, World


@pytest.fixture
def logger_without_handlers() -> Iterator[logging.Logger]:
    """The package's logger without any handler, at the level that logs everything."""
    logger = logging.getLogger("danga_raw")
    level, handlers, propagate = logger.level, logger.handlers[:], logger.propagate
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    logger.handlers[:] = []
    yield logger
    logger.handlers[:] = handlers
    logger.propagate = propagate
    logger.setLevel(level)


class RaisingLogHandler(logging.Handler):
    """A log handler that raises."""

    def emit(self, record: logging.LogRecord) -> None:
        raise RuntimeError("no log")


class ObjectWithoutRepr(Recorder):
    """An object that can't say what it is."""

    def as_string(self) -> str:
        raise RuntimeError("as_string")

    def __str__(self) -> str:
        raise RuntimeError("str")

    __repr__ = __str__


@contextmanager
def unwritable_stderr(kind: str) -> Iterator[None]:
    """A standard error that can't be written to."""
    stream: io.TextIOBase | None
    if kind == "none":
        stream = None
    elif kind == "closed":
        stream = io.StringIO()
        stream.close()
    elif kind == "full":
        stream = open("/dev/full", "w", buffering=1)
    else:
        read, write = os.pipe()
        os.close(read)
        stream = open(write, "w", buffering=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        yield
    if stream is not None:
        try:
            stream.close()
        except OSError:  # It tries once more to write its data.
            pass


def refuse(fd: int, *_: object) -> None:
    raise OSError(EBADF, "on purpose")


STDERR_STATES = ["none", "closed", "full", "broken"]
"""The possible states of standard error."""


@pytest.mark.parametrize("logs", [False, True], ids=["no log", "a log that raises"])
@pytest.mark.parametrize("kind", STDERR_STATES)
def test_all_objects_are_closed_even_if_failures_cannot_be_reported(
    world: World,
    kind: str,
    logs: bool,
    logger_without_handlers: logging.Logger,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The poller fails to unregister one, which `dump_error` prints, and close(2) fails for all."""
    if logs:
        logger_without_handlers.addHandler(RaisingLogHandler())
    things = [world.socketpair() for _ in range(3)]
    objects = [ObjectWithoutRepr(one, world.loop) for one, _ in things]
    closed: list[int] = []
    close = libc.close

    def close_and_fail(fd: int) -> None:
        closed.append(fd)
        close(fd)
        refuse(fd)

    fds = [one.fileno() for one, _ in things]
    with unwritable_stderr(kind):
        poller = world.loop._registry.open()
        with monkeypatch.context() as patch:
            patch.setattr(type(poller), "unregister", lambda self, fd, events: refuse(fd))
            objects[0].close("first")
        for obj in objects[1:]:
            obj.close("behind it")
        assert all(obj.closed and obj.fd is None for obj in objects)
        with monkeypatch.context() as patch:
            patch.setattr(libc, "close", close_and_fail)
            world.turn()
            assert [fd for fd in fds if world.is_open(fd)] == []
            assert not world.loop._registry.leaving and world.loop.watched_sockets == 0
        world.loop.reset()


@pytest.mark.parametrize("kind", STDERR_STATES)
def test_dump_error_and_debugmsg_never_raise(world: World, kind: str) -> None:
    obj = ObjectWithoutRepr(world.socketpair()[0], world.loop)
    with unwritable_stderr(kind):
        obj.dump_error("something")
        obj.debugmsg("%d of %s", "no number")
        Socket.DebugMsg("%d", "no number")
        for message in (5, b"bytes", None, ObjectWithoutRepr):
            Socket.DebugMsg(message)  # type: ignore[arg-type]
            obj.debugmsg(message, 1)  # type: ignore[arg-type]
    assert not obj.closed


def test_dump_error_prints_what_it_can_of_an_object_whose_repr_raises(
    world: World, capfd: pytest.CaptureFixture[str]
) -> None:
    ObjectWithoutRepr(world.socketpair()[0], world.loop).dump_error("something")
    said = capfd.readouterr().err
    assert "ERROR: something" in said and "ObjectWithoutRepr" in said
    assert "called test_dump_error_prints_what_it_can_of_an_object_whose_repr_raises" in said


@pytest.mark.parametrize("kind", STDERR_STATES)
@pytest.mark.parametrize("logs", [False, True], ids=["no log", "a log that raises"])
def test_error_that_cannot_be_logged_closes_only_its_own_connection(
    world: World, kind: str, logs: bool, logger_without_handlers: logging.Logger
) -> None:
    def fail(obj: Recorder) -> None:
        raise KeyError("on purpose")

    if logs:
        logger_without_handlers.addHandler(RaisingLogHandler())
    one, two = world.socketpair()
    faulty = ObjectWithoutRepr(one, world.loop, read=fail)
    three, four = world.socketpair()
    other = Recorder(three, world.loop)
    world.loop.on_exception = log_exception
    for obj, there in ((faulty, two), (other, four)):
        obj.watch_read(True)
        there.send(b"x")
    with unwritable_stderr(kind):
        world.until(lambda: other.got)
        world.turn()
    assert faulty.closed and not other.closed and other.got == b"x"


def test_log_handler_that_writes_to_a_socket_is_not_called_recursively(
    world: World, logger_without_handlers: logging.Logger
) -> None:
    """Its peer is gone, so that the write itself leads to a log entry, for the close."""
    one, gone = world.socketpair()
    shipper = Recorder(one, world.loop)
    others = [Recorder(world.socketpair()[0], world.loop) for _ in range(2)]
    shipped: list[str] = []

    class Ship(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            shipped.append(record.getMessage())
            shipper.write(record.getMessage().encode())

    logger_without_handlers.addHandler(Ship())
    gone.close()
    fds = [obj.fd for obj in others]
    for obj in others:
        obj.close("done")
    assert all(obj.closed for obj in others) and shipper.closed
    assert shipped == [f"closing fd {fd} (done)" for fd in fds]
    world.turn()
    assert world.loop.watched_sockets == 0


def test_log_handler_may_close_objects_and_run_the_loop(
    world: World, logger_without_handlers: logging.Logger
) -> None:
    objects = [Recorder(world.socketpair()[0], world.loop) for _ in range(3)]

    class Closes(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            for obj in objects:
                obj.close("by the log")
            world.turn()

    logger_without_handlers.addHandler(Closes())
    objects[0].close("first")
    world.turn()
    assert all(obj.closed for obj in objects) and world.loop.watched_sockets == 0


def test_log_handler_that_raised_is_called_again(
    world: World, logger_without_handlers: logging.Logger
) -> None:
    """A call that raises does not silence later ones."""
    heard: list[str] = []

    class Once(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record.getMessage())
            if len(heard) == 1:
                raise RuntimeError("no log")

    logger_without_handlers.addHandler(Once())
    for reason in ("first", "second"):
        Recorder(world.socketpair()[0], world.loop).close(reason)
    assert [message.split()[-1] for message in heard] == ["(first)", "(second)"]


def test_failing_closes_do_not_hold_up_those_behind_them(
    world: World,
) -> None:
    class Bad:
        def __init__(self, thing: AnyHandle) -> None:
            self.thing = thing

        def fileno(self) -> int:
            return self.thing.fileno()

        def close(self) -> None:
            raise RuntimeError("handle")

    for _ in range(3):
        Socket(Bad(world.socketpair()[0]), world.loop).close()
    others = [Recorder(world.socketpair()[0], world.loop) for _ in range(2)]
    fds = [obj.fd for obj in others]
    for obj in others:
        obj.close()
    with pytest.raises(RuntimeError, match="handle"):
        world.turn()
    assert not any(world.is_open(fd) for fd in fds if fd is not None)
    assert world.loop.watched_sockets == 0
    world.turn()


def test_close_does_not_deadlock_while_another_thread_imports_logging() -> None:
    program = """
        import importlib.abc, socket, sys, threading
        from danga_raw import Loop, Socket

        half_way, go_on = threading.Event(), threading.Event()
        in_time = []

        class Slow(importlib.abc.MetaPathFinder):
            def find_spec(self, name, path, target=None):
                if name == "string" and threading.current_thread() is worker:
                    half_way.set()  # logging imports it
                    in_time.append(go_on.wait(20))

        sys.modules.pop("string", None)
        sys.meta_path.insert(0, Slow())
        worker = threading.Thread(target=lambda: __import__("logging"))
        loop = Loop()
        one, two = socket.socketpair()
        one.setblocking(False)
        obj = Socket(one, loop)
        worker.start()
        half_way.wait(20)
        obj.close("done")
        loop.close()
        go_on.set()
        worker.join()
        print(obj.closed, two.recv(1), in_time)
    """
    assert run_program(program) == "True b'' [True]"


@pytest.mark.parametrize("backend", [name for name in backends() if name != "kqueue"])
def test_all_objects_are_closed_even_without_a_free_descriptor_for_reporting(backend: str) -> None:
    """Logging can't be imported then, nor the sources of a traceback be read."""
    program = f"""
        import os, resource, socket, sys
        from danga_raw import Loop, Socket

        loop = Loop({backend!r})
        objects, others = [], []
        for _ in range(3):
            one, two = socket.socketpair()
            one.setblocking(False)
            objects.append(Socket(one, loop))
            others.append(two)
        loop.set_loop_timeout(0)
        loop.set_post_loop_callback(lambda *_: False)
        loop.run()
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        held = []
        try:
            while True:
                held.append(os.dup(0))
        except OSError:
            pass
        loop._registry.open().unregister(objects[0].fd, objects[0].event_watch)
        for obj in objects:
            obj.close("done")
        objects[0].dump_error("once more")
        loop.run()
        loop.close()
        print(*(two.recv(1) for two in others))
    """
    assert run_program(program) == "b'' b'' b''"


def run_program(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_keyboard_interrupt_leaves_run_even_if_standard_error_is_broken(world: World) -> None:
    obj = ObjectWithoutRepr(world.socketpair()[0], world.loop)

    def interrupt() -> None:
        obj.close()
        raise KeyboardInterrupt

    world.loop.add_timer(0, interrupt)
    with unwritable_stderr("broken"), pytest.raises(KeyboardInterrupt), world.loop:
        world.loop._registry.open().unregister(obj.fd or 0, obj.event_watch)
        world.loop.run()
    assert obj.closed and world.loop.watched_sockets == 0
