"""Writing: what is sent at once, what is queued, and what happens to the queue."""

from __future__ import annotations

import ctypes
import os
import random
import socket
import sys
from collections import deque
from collections.abc import Callable
from errno import EAGAIN, ECONNRESET, EIO, EPIPE
from functools import partial
from typing import Any, cast

import pytest

from danga_raw._libc import libc
from danga_raw.types import Writable
from tests.test_bad_input import unchanged
from tests.world import OUT, AnyHandle, Recorder, World, drain, fill, only, real_only

BIG = bytes(range(256)) * 16384
"""More than fits into any socket's buffer."""


class BlockingWriter:
    """A writer function that accepts as much as it has room for, and then blocks."""

    def __init__(self, room: int = 0) -> None:
        self.room = room
        self.taken = bytearray()
        self.asked: list[tuple[int, int]] = []

    def __call__(self, data: bytes | memoryview, count: int, offset: int) -> int:
        self.asked.append((count, offset))
        if self.room == 0:
            raise BlockingIOError
        n = min(count, self.room)
        self.room -= n
        self.taken += data[offset : offset + n]
        return n


def test_data_that_fits_is_sent_at_once_in_one_call(world: World) -> None:
    one, two = world.socketpair()
    obj = Recorder(one, world.loop)
    with world.calls() as calls:
        assert obj.write(b"hello") is True
    assert calls == [("write", obj.fd, b"hello")]
    assert drain(two) == b"hello"
    assert not obj.write_buf and obj.write_buf_size == 0


@pytest.mark.parametrize(
    "data",
    [
        bytearray(b"abcdef"),
        memoryview(b"abcdef"),
        memoryview(b"xxabcdefxx")[2:8],
        memoryview(b"abcdef").cast("B", (2, 3)),
        memoryview(b"abcdef").cast("H"),
        memoryview((ctypes.c_char * 6).from_buffer_copy(b"abcdef")),
    ],
    ids=["bytearray", "memoryview", "slice", "two dimensions", "wider items", "ctypes"],
)
def test_any_buffer_is_written_byte_for_byte(world: World, data: bytearray | memoryview) -> None:
    one, two = world.socketpair()
    obj = Recorder(one, world.loop)
    assert obj.write(data) is True
    writer = BlockingWriter()
    obj.set_writer_func(writer)
    assert obj.write(data) is False
    assert obj.write_buf_size == 6
    obj.set_writer_func(None)
    assert obj.write(None) is True
    assert drain(two) == b"abcdefabcdef"


@pytest.mark.parametrize("empty", [b"", bytearray(), memoryview(b"")], ids=["", "array", "view"])
def test_empty_buffer_makes_a_zero_length_write(
    world: World, empty: bytes | bytearray | memoryview
) -> None:
    one, _ = world.socketpair()
    obj = Recorder(one, world.loop)
    with world.calls() as calls:
        assert obj.write(empty) is True
    assert calls == [("write", obj.fd, b"")]
    assert not obj.write_buf


def test_empty_two_dimensional_view_makes_a_zero_length_write(world: World) -> None:
    one, _ = world.socketpair()
    obj = Recorder(one, world.loop)
    view = memoryview((ctypes.c_char * 0 * 3)())
    with world.calls() as calls:
        assert obj.write(view) is True
    assert calls == [("write", obj.fd, b"")]


def test_partial_write_queues_the_rest_without_a_second_attempt(world: World) -> None:
    one, two = world.socketpair()
    obj = Recorder(one, world.loop)
    with world.calls() as calls:
        assert obj.write(BIG) is False
    assert len(only(calls, "write")) == 1
    assert only(calls, "modify") == [("modify", obj.fd, 56, 56 | OUT)]
    out = obj.write_buf_offset
    assert 0 < out < len(BIG)
    assert obj.write_buf_size == len(BIG) - out
    assert obj.write_set_watch
    got = bytearray()

    def more() -> bool:
        got.extend(drain(two))
        return len(got) == len(BIG)

    world.until(more)
    assert got == BIG
    world.turn()
    assert not obj.write_buf and obj.write_buf_size == 0 and obj.write_buf_offset == 0
    assert not obj.event_watch & OUT and not obj.write_set_watch


def test_blocked_write_queues_everything_and_resumes(world: World) -> None:
    one, two = world.socketpair()
    filled = fill(one)
    obj = Recorder(one, world.loop)
    with world.calls() as calls:
        assert obj.write(b"later") is False
    assert only(calls, "write", "modify") == [
        ("write", obj.fd, b"later"),
        ("modify", obj.fd, 56, 56 | OUT),
    ]
    assert list(obj.write_buf) == [b"later"] and obj.write_buf_size == 5
    world.turn()
    assert obj.events == []
    assert len(drain(two)) == filled
    with world.calls() as calls:
        world.turn()
    assert obj.events == ["write"]
    assert only(calls, "write", "modify") == [
        ("write", obj.fd, b"later"),
        ("modify", obj.fd, 56 | OUT, 56),
    ]
    assert drain(two) == b"later"
    world.turn()
    assert obj.events == ["write"]


def test_on_incomplete_write_is_called_for_partial_writes_only(world: World) -> None:
    class Counting(Recorder):
        incomplete = 0

        def on_incomplete_write(self) -> None:
            self.incomplete += 1
            super().on_incomplete_write()

    one, _ = world.socketpair()
    obj = Counting(one, world.loop)
    assert obj.write(BIG) is False
    assert obj.incomplete == 1
    fill(one)
    assert obj.write(None) is False
    assert obj.incomplete == 1
    assert obj.event_watch & OUT


def test_overridden_on_incomplete_write_decides_about_write_interest(world: World) -> None:
    class Patient(Recorder):
        def on_incomplete_write(self) -> None:
            pass

    one, _ = world.socketpair()
    obj = Patient(one, world.loop)
    with world.calls() as calls:
        assert obj.write(BIG) is False
    assert only(calls, "modify") == []
    assert not obj.write_set_watch


def test_write_interest_is_dropped_after_each_block_and_set_again(world: World) -> None:
    one, two = world.socketpair()
    fill(one)
    obj = Recorder(one, world.loop)
    fd = obj.fd
    obj.write(b"1")
    obj.write(b"22")
    seen: list[bool] = []
    obj.write(lambda: seen.append(obj.write_set_watch))
    obj.write(BIG)
    assert obj.write_buf_size == 1 + 2 + 1 + len(BIG)
    drain(two)
    with world.calls() as calls:
        assert obj.write(None) is False
    kinds = [call if call[0] == "modify" else call[0] for call in only(calls, "write", "modify")]
    assert kinds == [
        "write",
        ("modify", fd, 56 | OUT, 56),
        "write",
        "write",
        ("modify", fd, 56, 56 | OUT),
    ]
    assert seen == [False]


def test_write_interest_set_by_the_subclass_is_left_alone(world: World) -> None:
    one, two = world.socketpair()
    fill(one)
    obj = Recorder(one, world.loop)
    obj.watch_write(True)
    with world.calls() as calls:
        assert obj.write(b"x") is False
        assert not obj.write_set_watch
        drain(two)
        assert obj.write(None) is True
    assert only(calls, "modify") == []
    assert obj.event_watch & OUT
    obj.watch_write(False)
    assert not obj.event_watch & OUT


def test_watch_write_while_data_is_queued_takes_over_the_write_interest(world: World) -> None:
    one, two = world.socketpair()
    fill(one)
    obj = Recorder(one, world.loop)
    assert obj.write(b"x") is False
    obj.watch_write(True)
    assert not obj.write_set_watch
    drain(two)
    assert obj.write(None) is True
    assert obj.event_watch & OUT


def test_callable_runs_at_once_when_nothing_is_queued(world: World) -> None:
    one, _ = world.socketpair()
    obj = Recorder(one, world.loop)
    ran: list[int] = []
    with world.calls() as calls:
        assert obj.write(lambda: ran.append(1)) is True
    assert ran == [1] and calls == []


def test_callable_runs_once_the_data_queued_before_it_is_sent(world: World) -> None:
    one, two = world.socketpair()
    filled = fill(one)
    obj = Recorder(one, world.loop)
    seen: list[tuple[bytes, int]] = []
    obj.write(b"first")
    assert obj.write(lambda: seen.append((drain(two), obj.write_buf_size))) is False
    assert obj.write(b"second") is False
    assert obj.write_buf_size == 5 + 1 + 6
    assert seen == []
    assert len(drain(two)) == filled
    assert obj.write(None) is True
    assert seen == [(b"first", 6)]
    assert drain(two) == b"second"


def test_data_written_by_a_callable_goes_to_the_end_of_the_queue(world: World) -> None:
    one, two = world.socketpair()
    fill(one)
    obj = Recorder(one, world.loop)
    obj.write(b"1")
    obj.write(lambda: obj.write(b"3"))
    obj.write(b"2")
    obj.write(lambda: obj.write(lambda: obj.write(b"4")))
    drain(two)
    assert obj.write(None) is True
    assert drain(two) == b"1234"


def test_callable_may_write_when_nothing_else_is_queued(world: World) -> None:
    one, two = world.socketpair()
    obj = Recorder(one, world.loop)
    assert obj.write(lambda: obj.write(b"x")) is True
    assert drain(two) == b"x"
    assert obj.write(lambda: obj.write(BIG)) is False
    assert obj.write_buf_size > 0 and obj.write_set_watch


def test_callable_that_writes_more_than_fits_blocks_what_follows(world: World) -> None:
    one, two = world.socketpair()
    fill(one)
    obj = Recorder(one, world.loop)
    obj.write(b"1")
    obj.write(lambda: obj.write(BIG))
    obj.write(b"2")
    got = bytearray()

    def all_there() -> bool:
        got.extend(drain(two))
        return not obj.write_buf

    drain(two)
    assert obj.write(None) is False
    world.until(all_there)
    got += drain(two)
    assert got == b"12" + BIG


def test_write_of_none_flushes_the_queue(world: World) -> None:
    one, two = world.socketpair()
    obj = Recorder(one, world.loop)
    with world.calls() as calls:
        assert obj.write(None) is True
    assert calls == []
    fill(one)
    assert obj.write(b"x") is False
    assert obj.write(None) is False
    drain(two)
    assert obj.write(None) is True
    assert drain(two) == b"x"


def test_rest_of_the_queue_survives_a_raising_callable(world: World) -> None:
    one, two = world.socketpair()
    fill(one)
    obj = Recorder(one, world.loop)
    ran: list[str] = []

    def dies() -> None:
        ran.append("dies")
        raise KeyError("dies")

    for piece in (b"1", dies, b"2", lambda: ran.append("lives"), b"3"):
        obj.write(piece)
    drain(two)
    with pytest.raises(KeyError):
        obj.write(None)
    assert drain(two) == b"1"
    assert obj.write_buf_size == 3 and not obj.closed
    assert obj.write(None) is True
    assert drain(two) == b"23"
    assert ran == ["dies", "lives"]


def test_raising_callable_is_not_run_again_when_nothing_was_queued(world: World) -> None:
    one, _ = world.socketpair()
    obj = Recorder(one, world.loop)
    with pytest.raises(ZeroDivisionError):
        obj.write(lambda: 1 // 0)
    assert not obj.write_buf and obj.write_buf_size == 0
    assert obj.write(None) is True


def test_callable_may_close_the_object(world: World) -> None:
    one, two = world.socketpair()
    fill(one)
    obj = Recorder(one, world.loop)
    obj.write(b"1")
    obj.write(obj.close)
    obj.write(b"never")
    drain(two)
    assert obj.write(None) is True
    assert obj.closed and not obj.write_buf and obj.write_buf_size == 0
    world.loop.reset()
    assert drain(two) == b"1"


def test_write_does_not_watch_an_object_closed_by_a_callable(world: World) -> None:
    """After one that raised, what is still queued gets a watch, which ends with the close."""

    class Watcher(Recorder):
        def watch_write(self, on: bool) -> None:
            assert not self.closed
            super().watch_write(on)

    def dies() -> None:
        raise KeyError

    obj = Watcher(world.socketpair()[0], world.loop)
    writer = BlockingWriter()
    obj.set_writer_func(writer)
    obj.write(b"abc")
    obj.write(dies)
    obj.write(obj.close)
    writer.room = 3
    with pytest.raises(KeyError):
        obj.write(None)
    assert obj.write_set_watch
    assert obj.write(None) is True and obj.closed


def test_callable_may_reopen_the_object(world: World) -> None:
    one, two = world.socketpair()
    other, peer = world.socketpair()
    filled, filled_other = fill(one), fill(other)

    def reconnect() -> None:
        obj.close("reconnects")
        Recorder.__init__(obj, other, world.loop, events=obj.events)
        assert obj.write(b"hello") is False

    obj = Recorder(one, world.loop)
    obj.write(b"end")
    obj.write(reconnect)
    assert len(drain(two)) == filled
    world.until(lambda: obj.fd == other.fileno())
    assert drain(two) == b"end"
    assert len(drain(peer)) == filled_other
    world.until(lambda: not obj.write_buf)
    assert drain(peer) == b"hello"


def test_callable_may_steal_the_socket(world: World) -> None:
    one, two = world.socketpair()
    fill(one)
    obj = Recorder(one, world.loop)
    stolen: list[object] = []
    obj.write(b"1")
    obj.write(lambda: stolen.append(obj.steal_socket()))
    obj.write(b"never")
    drain(two)
    assert obj.write(None) is True
    assert stolen == [one]
    world.loop.reset()
    assert drain(two) == b"1"
    one.send(b"alive")
    assert drain(two) == b"alive"


def test_write_to_a_closed_object_does_nothing_and_returns_true(world: World) -> None:
    one, two = world.socketpair()
    obj = Recorder(one, world.loop)
    obj.close()
    ran: list[int] = []
    with world.calls() as calls:
        assert obj.write(b"x") is True
        assert obj.write(lambda: ran.append(1)) is True
        assert obj.write(None) is True
    assert calls == [] and ran == []


def test_close_discards_queued_data(world: World) -> None:
    one, two = world.socketpair()
    filled = fill(one)
    obj = Recorder(one, world.loop)
    ran: list[int] = []
    obj.write(b"x")
    obj.write(lambda: ran.append(1))
    obj.close()
    assert not obj.write_buf and obj.write_buf_size == 0 and obj.write_buf_offset == 0
    world.loop.reset()
    assert len(drain(two)) == filled and ran == []


class RecordsReasons(Recorder):
    def __init__(self, sock: AnyHandle, world: World) -> None:
        super().__init__(sock, world.loop)
        self.reasons: list[str | None] = []

    def close(self, reason: str | None = None) -> None:
        self.reasons.append(reason)
        super().close(reason)


def test_epipe_closes_through_the_overridden_close(world: World) -> None:
    one, two = world.socketpair()
    obj = RecordsReasons(one, world)
    two.close()
    assert obj.write(b"x") is False
    assert obj.reasons == ["EPIPE"] and obj.closed


def test_write_after_reset_closes_with_econnreset_or_on_bsd_with_epipe(world: World) -> None:
    obj = RecordsReasons(world.reset_by_peer(), world)
    assert obj.write(b"x") is False
    linux = world.kind.platform in (None, "linux")
    assert obj.reasons == ["ECONNRESET" if linux else "EPIPE"] and obj.closed


@pytest.mark.parametrize(
    ("number", "reason"), [(EPIPE, "EPIPE"), (ECONNRESET, "ECONNRESET"), (EIO, "write_error")]
)
@pytest.mark.parametrize("queued", [False, True], ids=["new", "queued"])
def test_failing_write_closes_with_its_reason(
    world: World, number: int, reason: str, queued: bool
) -> None:
    def fails(data: object, count: int, offset: int) -> int:
        raise OSError(number, "no more")

    one, _ = world.socketpair()
    obj = RecordsReasons(one, world)
    if queued:
        obj.set_writer_func(BlockingWriter())
        assert obj.write(b"a") is False
    obj.set_writer_func(fails)
    assert obj.write(None if queued else b"a") is False
    assert obj.reasons == [reason] and obj.closed and not obj.write_buf


def test_failing_write_call_closes_with_write_error(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(fd: int, data: object) -> int:
        raise OSError(EIO, os.strerror(EIO))

    one, _ = world.socketpair()
    obj = RecordsReasons(one, world)
    monkeypatch.setattr(libc, "write", fails)
    assert obj.write(b"a") is False
    assert obj.reasons == ["write_error"]


def test_failing_write_clears_the_queue_of_an_object_that_postpones_its_close(world: World) -> None:
    class Reluctant(Recorder):
        __slots__ = ("wanted",)

        def close(self, reason: str | None = None) -> None:
            self.wanted = reason

        def really(self) -> None:
            super().close(self.wanted)

    one, two = world.socketpair()
    obj = Reluctant(one, world.loop)
    two.close()
    assert obj.write(b"x") is False
    assert obj.wanted == "EPIPE" and not obj.closed and not obj.write_buf
    obj.really()
    assert obj.closed


# --- writer functions -----------------------------------------------------------------------------


def test_writer_function_gets_data_count_and_offset(world: World) -> None:
    one, _ = world.socketpair()
    obj = Recorder(one, world.loop)
    writer = BlockingWriter(4)
    obj.set_writer_func(writer)
    data = b"0123456789"
    with world.calls() as calls:
        assert obj.write(data) is False
        writer.room = 3
        assert obj.write(None) is False
        writer.room = 100
        assert obj.write(None) is True
    assert writer.asked == [(10, 0), (6, 4), (3, 7)]
    assert writer.taken == data
    assert only(calls, "write") == []


def test_writer_function_gets_the_original_block(world: World) -> None:
    one, _ = world.socketpair()
    obj = Recorder(one, world.loop)
    given: list[object] = []

    def writer(data: object, count: int, offset: int) -> int:
        given.append(data)
        return count

    obj.set_writer_func(writer)
    block = b"the block"
    obj.write(block)
    assert given[0] is block


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_block_continues_where_write_and_writer_function_alternate(
    world: World, kind: Callable[[bytes], bytes | bytearray | memoryview]
) -> None:
    one, two = world.socketpair()
    obj = Recorder(one, world.loop)
    block = kind(BIG)
    got = bytearray()
    writer = BlockingWriter(1000)
    obj.write(block)
    for turn in range(6):
        got += drain(two)
        obj.set_writer_func(writer if turn % 2 else None)
        writer.taken.clear()
        writer.room = 1000
        assert obj.write(None) is False
        assert writer.asked[-1:] in ([], [(obj.write_buf_size + 1000, obj.write_buf_offset - 1000)])
        writer.asked.clear()
        got += drain(two) + writer.taken
        assert len(got) == obj.write_buf_offset == len(BIG) - obj.write_buf_size
    assert got == BIG[: len(got)]


def test_writer_function_gets_the_same_block_on_each_continuation(world: World) -> None:
    given: list[object] = []

    def writer(data: object, count: int, offset: int) -> int:
        given.append(data)
        return 3

    obj = Recorder(world.socketpair()[0], world.loop)
    obj.set_writer_func(writer)
    block = b"the block"
    assert [obj.write(data) for data in (block, None, None)] == [False, False, True]
    assert all(each is block for each in given) and len(given) == 3


def test_blocked_writer_function_queues_the_data(world: World) -> None:
    one, _ = world.socketpair()
    obj = Recorder(one, world.loop)
    obj.set_writer_func(BlockingWriter())
    assert obj.write(b"abc") is False
    assert obj.write_buf_size == 3 and obj.write_set_watch and obj.event_watch & OUT


@pytest.mark.parametrize("answer", [-1, 4], ids=["less than none", "more than all"])
def test_impossible_result_of_a_writer_function_is_rejected(world: World, answer: int) -> None:
    one, _ = world.socketpair()
    obj = Recorder(one, world.loop)
    obj.set_writer_func(lambda data, count, offset: answer)
    with unchanged(world, obj), pytest.raises(ValueError, match="writer function"):
        obj.write(b"abc")


@pytest.mark.parametrize("answer", [1.0, None, "3", b"abc"], ids=repr)
@pytest.mark.parametrize("queued", [False, True], ids=["idle", "queued"])
def test_non_integer_result_of_a_writer_function_is_rejected(
    world: World, answer: Any, queued: bool
) -> None:
    one, two = world.socketpair()
    obj = Recorder(one, world.loop)
    if queued:
        obj.set_writer_func(lambda data, count, offset: 0)
        obj.write(b"abc")
    wrong = [answer]
    out = bytearray()

    def answers(data: Any, count: int, offset: int) -> Any:
        if wrong:
            return wrong.pop()
        out.extend(data[offset : offset + count])
        return count

    obj.set_writer_func(answers)
    with unchanged(world, obj), pytest.raises(TypeError, match="how many bytes.*not "):
        obj.write(None if queued else b"abc")
    if not queued:
        obj.write(b"abc")
    world.until(lambda: out == b"abc")
    assert obj.write_buf_size == 0 and not obj.closed


@pytest.mark.parametrize("queued", [False, True], ids=["idle", "queued"])
def test_writer_function_that_writes_to_its_own_object_is_rejected(
    world: World, queued: bool
) -> None:
    """Its result is for a block that is no longer at that place in the queue."""
    obj = Recorder(world.socketpair()[0], world.loop)
    blocks, given = BlockingWriter(), list[int]()

    def writes(data: bytes | memoryview, count: int, offset: int) -> int:
        given.append(count)
        if len(given) == 1:
            obj.write(None if queued else b"nested")
        elif not queued:
            raise BlockingIOError
        return count

    if queued:
        obj.set_writer_func(blocks)
        obj.write(b"abcd")
    obj.set_writer_func(writes)
    with pytest.raises(RuntimeError, match="a writer function must not write to its own object"):
        obj.write(None if queued else b"abcd")
    assert list(obj.write_buf) == ([] if queued else [b"nested"]) and not obj.write_buf_offset
    assert obj.write_buf_size == sum(map(len, [] if queued else [b"nested"])) and not obj.closed


@pytest.mark.parametrize("error", [BlockingIOError(EAGAIN, "later"), OSError(EIO, "broken")])
def test_writer_function_may_close_its_object_with_a_reason(world: World, error: OSError) -> None:
    obj = Recorder(world.socketpair()[0], world.loop)

    def ends(data: bytes | memoryview, count: int, offset: int) -> int:
        obj.close("by its writer")
        raise error

    obj.set_writer_func(ends)
    assert obj.write(b"abc") is True
    assert obj.events == ["close by its writer"] and obj.write_buf_size == 0


@real_only
@pytest.mark.skipif(libc.platform != "linux", reason="elsewhere it may be about to connect")
def test_write_to_an_unconnected_socket_closes_it(world: World) -> None:
    sock = socket.socket(socket.AF_UNIX)
    sock.setblocking(False)
    obj = Recorder(cast(AnyHandle, sock), world.loop)
    assert not obj.write(b"x")
    assert obj.events == ["close write_error"]


def test_writer_function_that_writes_the_queue_of_its_own_object_is_rejected(
    world: World,
) -> None:
    obj = Recorder(world.socketpair()[0], world.loop)
    given: list[int] = []

    def writes(data: bytes | memoryview, count: int, offset: int) -> int:
        given.append(offset)
        if len(given) == 1:
            obj.write(None)
        return 1

    obj.set_writer_func(BlockingWriter())
    obj.write(b"abcd")
    obj.set_writer_func(writes)
    with pytest.raises(RuntimeError, match="a writer function must not write to its own object"):
        obj.write(None)
    assert given == [0, 0] and (obj.write_buf_offset, obj.write_buf_size) == (1, 3)


@pytest.mark.parametrize("queued", [False, True], ids=["idle", "queued"])
@pytest.mark.parametrize("base", [bytes, bytearray])
def test_callable_bytes_are_treated_as_bytes(
    world: World, queued: bool, base: type[bytes] | type[bytearray]
) -> None:
    called: list[int] = []
    kind = type("Called", (base,), {"__call__": lambda self: called.append(1)})
    one, two = world.socketpair()
    obj = Recorder(one, world.loop)
    if queued:
        obj.set_writer_func(lambda data, count, offset: 0)
        obj.write(b"first ")
        obj.set_writer_func(None)
    obj.write(kind(b"these"))
    world.until(lambda: obj.write_buf_size == 0)
    assert drain(two) == (b"first these" if queued else b"these") and called == []


def test_exception_in_a_writer_function_propagates_and_keeps_the_queue(world: World) -> None:
    def dies(data: object, count: int, offset: int) -> int:
        raise KeyError

    one, two = world.socketpair()
    obj = Recorder(one, world.loop)
    obj.set_writer_func(BlockingWriter())
    obj.write(b"abc")
    obj.set_writer_func(dies)
    with pytest.raises(KeyError):
        obj.write(None)
    obj.set_writer_func(None)
    assert obj.write(None) is True
    assert drain(two) == b"abc"


@pytest.mark.parametrize("queued", [False, True], ids=["new", "queued"])
def test_interrupted_writer_function_closes_the_object(world: World, queued: bool) -> None:
    def interrupted(data: object, count: int, offset: int) -> int:
        raise KeyboardInterrupt

    obj = Recorder(world.socketpair()[0], world.loop)
    if queued:
        obj.set_writer_func(BlockingWriter())
        obj.write(b"abc")
    obj.set_writer_func(interrupted)
    with pytest.raises(KeyboardInterrupt):
        obj.write(None if queued else b"abc")
    assert obj.closed and not obj.write_buf and obj.events == ["close interrupted"]


@pytest.mark.parametrize("answer", [0, 1, 3], ids=["nothing", "a part", "all"])
@pytest.mark.parametrize("queued", [False, True], ids=["new", "queued"])
def test_writer_function_may_close_the_object(world: World, answer: int, queued: bool) -> None:
    class Own(Recorder):
        def on_incomplete_write(self) -> None:
            if self.closed:
                self.events.append("incomplete")
            super().on_incomplete_write()

    one, _ = world.socketpair()
    obj = Own(one, world.loop)
    if queued:
        obj.set_writer_func(BlockingWriter())
        obj.write(b"abc")
        obj.write(b"def")

    def closes(data: object, count: int, offset: int) -> int:
        obj.close("from the writer")
        return answer

    obj.set_writer_func(closes)
    assert obj.write(None if queued else b"abc") is True, "as of any closed object"
    assert obj.closed and not obj.write_buf and obj.write_buf_size == 0
    assert obj.events == ["close from the writer"]


def test_writer_function_may_close_the_object_and_raise(world: World) -> None:
    one, _ = world.socketpair()
    obj = Recorder(one, world.loop)

    def closes(data: object, count: int, offset: int) -> int:
        obj.close()
        raise BlockingIOError

    obj.set_writer_func(closes)
    obj.write(b"abc")
    assert obj.closed and not obj.write_buf and obj.write_buf_size == 0


# --- no copies ------------------------------------------------------------------------------------


def test_queued_bytes_are_the_same_object_that_was_given(world: World) -> None:
    one, _ = world.socketpair()
    fill(one)
    obj = Recorder(one, world.loop)
    data = b"this one"
    obj.write(data)
    assert obj.write_buf[0] is data


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_queued_data_is_not_copied(world: World, kind: Callable[[bytes], Writable]) -> None:
    one, two = world.socketpair()
    obj = Recorder(one, world.loop)
    data = kind(BIG)
    tracemalloc = pytest.importorskip("tracemalloc", exc_type=ImportError)  # PyPy has none
    tracemalloc.start()
    try:
        obj.write(data)
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(20):
            obj.write(data)
        assert tracemalloc.get_traced_memory()[1] - before < len(BIG) // 8
        if not world.simulated:
            # A write that continues in the middle of a block copies nothing either.
            drain(two)
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            obj.write(None)
            assert tracemalloc.get_traced_memory()[1] - before < len(BIG) // 8
    finally:
        tracemalloc.stop()


@pytest.mark.skipif(
    sys.implementation.name == "pypy", reason="PyPy lets go of a buffer when it next collects"
)
def test_bytearray_is_released_once_it_is_written(world: World) -> None:
    one, two = world.socketpair()
    obj = Recorder(one, world.loop)
    data = bytearray(b"abc")
    obj.write(data)
    data.append(1)
    fill(one)
    obj.write(data)
    with pytest.raises(BufferError):
        data.append(2)
    drain(two)
    obj.write(None)
    data.append(2)


# --- against a model ------------------------------------------------------------------------------


class Model:
    """`write` as the manual and the original describe it, on a pipe with limited room."""

    def __init__(self) -> None:
        self.room = 0
        self.out = bytearray()
        self.queue: deque[bytes | int] = deque()
        self.offset = 0
        self.ran: list[int] = []
        self.watching = False

    def size(self) -> int:
        return sum(1 if isinstance(e, int) else len(e) for e in self.queue) - self.offset

    def write(self, new: bytes | int | None) -> bool:
        if new is not None and self.queue:
            self.queue.append(new)
            return False
        if isinstance(new, int):
            self.ran.append(new)
            return True
        if new is not None:
            self.queue.append(new)
        while self.queue:
            first = self.queue[0]
            if isinstance(first, int):
                self.queue.popleft()
                self.ran.append(first)
                continue
            count = len(first) - self.offset
            taken = min(count, self.room)
            self.room -= taken
            self.out += first[self.offset : self.offset + taken]
            if taken < count:
                self.offset += taken
                self.watching = True
                return False
            self.queue.popleft()
            self.offset = 0
            self.watching = False
        return True


@pytest.mark.parametrize("seed", range(20))
def test_random_writes_agree_with_the_model(world: World, seed: int) -> None:
    dice = random.Random(seed)
    one, _ = world.socketpair()
    obj = Recorder(one, world.loop)
    writer = BlockingWriter()
    obj.set_writer_func(writer)
    model = Model()
    ran: list[int] = []
    for step in range(200):
        room = dice.choice((0, 0, 1, 5, 30))
        writer.room += room
        model.room += room
        kind = dice.randrange(4)
        if kind == 0:
            assert obj.write(None) is model.write(None)
        elif kind == 1:
            assert obj.write(partial(ran.append, step)) is model.write(step)
        else:
            data = dice.randbytes(dice.randrange(1, 12))
            form = dice.choice((bytes, bytearray, memoryview))
            assert obj.write(form(data)) is model.write(data)
        assert writer.taken == model.out and ran == model.ran
        assert obj.write_buf_size == model.size()
        assert obj.write_buf_offset == model.offset
        assert len(obj.write_buf) == len(model.queue)
        assert bool(obj.event_watch & OUT) is model.watching is obj.write_set_watch


def test_many_writes_through_a_real_buffer_arrive_in_order(world: World) -> None:
    dice = random.Random(4)
    one, two = world.socketpair()
    obj = Recorder(one, world.loop)
    sent, got = bytearray(), bytearray()
    marks: list[int] = []
    for number in range(300):
        piece = dice.randbytes(dice.choice((0, 1, 100, 30_000)))
        sent += piece
        obj.write(piece)
        obj.write(partial(marks.append, number))

    def done() -> bool:
        got.extend(drain(two))
        return not obj.write_buf

    world.until(done)
    got += drain(two)
    assert got == sent
    assert marks == list(range(300))
    assert not obj.event_watch & OUT
