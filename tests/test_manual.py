"""Every method of the manual exists under its own spelling, documented and typed, and does its work
on the default loop."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable

import pytest

import danga_raw
from danga_raw import Loop, Socket, Timer, default_loop
from tests.world import IN, Recorder, World, drain

CLASS_METHODS = (
    "Reset HaveEpoll HaveKQueue WatchedSockets EnableProfiling DisableProfiling ProfilingData "
    "ToClose OtherFds AddOtherFds SetLoopTimeout DebugMsg AddTimer DescriptorMap EventLoop "
    "SetPostLoopCallback"
).split()
OBJECT_METHODS = (
    "tcp_cork steal_socket close set_writer_func write push_back_read read event_read event_err "
    "event_hup event_write watch_read watch_write dump_error debugmsg peer_ip_string "
    "peer_addr_string local_ip_string local_addr_string as_string on_incomplete_write"
).split()
FIELDS = (
    "sock fd write_buf write_buf_offset write_buf_size write_set_watch read_push_back closed "
    "corked event_watch peer_ip peer_port local_ip local_port writer_func"
).split()
LOOP = (
    "run stop reset close add_timer set_loop_timeout set_post_loop_callback add_other_fds "
    "enable_profiling disable_profiling"
).split()
LOOP_PROPERTIES = (
    "other_fds descriptor_map watched_sockets to_close profiling_data have_epoll have_kqueue "
    "on_exception"
).split()


def public(cls: type) -> list[str]:
    return [name for name in vars(cls) if not name.startswith("_") and callable(getattr(cls, name))]


def check_typed(function: Callable[..., object]) -> None:
    signature = inspect.signature(function)
    assert signature.return_annotation is not signature.empty, function
    for name, parameter in signature.parameters.items():
        if name not in ("self", "cls"):
            assert parameter.annotation is not parameter.empty, (function, name)
            assert not re.search(r"\bAny\b", str(parameter.annotation)), (function, name)
    assert not re.search(r"\bAny\b", str(signature.return_annotation)), function


@pytest.mark.parametrize("name", [n for n in CLASS_METHODS if n != "SetPostLoopCallback"])
def test_class_method_of_the_manual_is_documented_and_typed(name: str) -> None:
    assert isinstance(inspect.getattr_static(Socket, name), (classmethod, staticmethod))
    assert inspect.getdoc(getattr(Socket, name))
    check_typed(getattr(Socket, name))


def test_set_post_loop_callback_is_typed_both_ways(world: World) -> None:
    check_typed(Socket.SetPostLoopCallback)
    obj = Recorder(world.socketpair()[0], world.loop)
    check_typed(obj.SetPostLoopCallback)
    assert inspect.getdoc(Socket.SetPostLoopCallback) and inspect.getdoc(obj.SetPostLoopCallback)


@pytest.mark.parametrize("name", OBJECT_METHODS)
def test_object_method_of_the_manual_is_documented_and_typed(name: str) -> None:
    method = inspect.getattr_static(Socket, name)
    assert inspect.isfunction(method) and inspect.getdoc(method)
    check_typed(method)


@pytest.mark.parametrize("name", FIELDS)
def test_fields_of_the_original_are_attributes(world: World, name: str) -> None:
    obj = Socket(world.socketpair()[0], world.loop)
    getattr(obj, name)


@pytest.mark.parametrize("name", LOOP)
def test_method_of_the_loop_is_documented_and_typed(name: str) -> None:
    method = inspect.getattr_static(Loop, name)
    assert inspect.getdoc(method)
    check_typed(method)


@pytest.mark.parametrize("name", LOOP_PROPERTIES)
def test_property_of_the_loop_is_documented_and_typed(name: str) -> None:
    prop = inspect.getattr_static(Loop, name)
    assert isinstance(prop, property) and prop.fget and inspect.getdoc(prop)
    check_typed(prop.fget)


@pytest.mark.parametrize("cls", [Socket, Loop, Timer])
def test_everything_public_is_documented_and_typed(cls: type) -> None:
    for name in public(cls):
        if name != "SetPostLoopCallback":
            assert inspect.getdoc(getattr(cls, name)), name
            check_typed(getattr(cls, name))


def test_package_documents_every_name_that_it_exports() -> None:
    assert {"Loop", "Socket", "Timer", "default_loop"} <= set(danga_raw.__all__)
    assert len(set(danga_raw.__all__)) == len(danga_raw.__all__)
    for name in danga_raw.__all__:
        assert inspect.getdoc(getattr(danga_raw, name)), name


def test_no_annotation_is_shadowed_by_a_class_method() -> None:
    # Inside the class body OtherFds would mean the method, and be Any to a type checker.
    for name in CLASS_METHODS:
        for method in CLASS_METHODS:
            if method == "SetPostLoopCallback":
                continue
            annotations = inspect.get_annotations(getattr(Socket, method))
            assert all(str(value) != name for value in annotations.values()), (method, name)


# --- the class methods at work --------------------------------------------------------------------


def test_class_methods_act_on_the_default_loop(world: World) -> None:
    loop = world.default_loop()
    assert default_loop() is loop
    one, two = world.socketpair()
    three, four = world.socketpair()
    assert Socket.HaveEpoll() is (world.backend == "epoll")
    assert Socket.HaveKQueue() is (world.backend == "kqueue")
    assert Socket.WatchedSockets() == 0 and Socket.DescriptorMap() == {}
    obj = Recorder(one, loop)
    obj.watch_read(True)
    assert Socket.WatchedSockets() == 1 and Recorder.DescriptorMap() == {one.fileno(): obj}

    hit: list[object] = []
    assert Socket.OtherFds() == {}
    assert list(Socket.AddOtherFds({three.fileno(): hit.append})) == [three.fileno()]
    assert list(Socket.OtherFds()) == [three.fileno()]

    assert Socket.SetLoopTimeout(0) == 0
    timer = Socket.AddTimer(0, lambda: hit.append("timer"))
    assert isinstance(timer, Timer)
    Socket.AddTimer(0, lambda: hit.append("never")).cancel()
    two.send(b"x")
    four.send(b"y")
    Socket.SetPostLoopCallback(lambda sockets, others: False)
    assert Socket.EnableProfiling() is True
    Socket.EventLoop()
    assert hit == ["timer", IN] and obj.got == b"x" and drain(three) == b"y"
    assert list(Socket.ProfilingData()) == ["Recorder-read"]
    assert len(Socket.ProfilingData()["Recorder-read"]) == 3
    Socket.DisableProfiling()
    two.send(b"x")
    Socket.EventLoop()
    assert Socket.ProfilingData()["Recorder-read"][2] == 1

    assert list(Socket.OtherFds({four.fileno(): hit.append})) == [four.fileno()]
    obj.close()
    assert Socket.ToClose() == [one]
    Socket.Reset()
    assert Socket.ToClose() == [] and Socket.WatchedSockets() == 0 and Socket.OtherFds() == {}
    assert Socket.ProfilingData() == {}
    assert not world.is_open(one.fileno()) and world.is_open(three.fileno())


def test_annotations_can_be_evaluated() -> None:
    for name in OBJECT_METHODS:
        assert inspect.get_annotations(getattr(Socket, name))
    assert typing.get_type_hints(Timer.cancel) == {"return": type(None)}
