"""Reading, and pushing back what was read."""

from __future__ import annotations

import pytest

from danga_raw import Socket
from tests.world import IN, Recorder, World, drain, only


def test_read_returns_at_most_the_requested_bytes_with_one_call(world: World) -> None:
    one, two = world.socketpair()
    obj = Recorder(one, world.loop)
    two.send(b"abcdef")
    with world.calls() as calls:
        assert obj.read(4) == b"abcd"
    assert calls == [("read", obj.fd, 4)]
    assert obj.read(4) == b"ef"


def test_read_requests_at_most_one_mebibyte(world: World) -> None:
    one, two = world.socketpair()
    obj = Recorder(one, world.loop)
    two.send(b"x")
    with world.calls() as calls:
        assert obj.read(1 << 30) == b"x"
        obj.read(1_048_576)
        obj.read(1_048_577)
    assert [call[2] for call in calls] == [1_048_576] * 3


def test_read_distinguishes_no_data_from_end_of_file(world: World) -> None:
    one, two = world.socketpair()
    obj = Recorder(one, world.loop)
    assert obj.read(10) == b""
    two.send(b"x")
    two.close()
    assert obj.read(10) == b"x"
    assert obj.read(10) is None
    assert obj.read(10) is None
    assert not obj.closed


def test_read_of_a_reset_connection_returns_none(world: World) -> None:
    obj = Recorder(world.reset_by_peer(), world.loop)
    assert obj.read(10) is None


def test_read_of_a_closed_object_returns_none_without_a_call(world: World) -> None:
    one, two = world.socketpair()
    two.send(b"x")
    obj = Recorder(one, world.loop)
    obj.push_back_read(b"pushed")
    obj.close()
    with world.calls() as calls:
        assert obj.read(10) is None
    assert calls == []


# --- push-back ------------------------------------------------------------------------------------


def test_pushed_back_data_is_read_first_and_without_a_call(world: World) -> None:
    one, two = world.socketpair()
    two.send(b"socket")
    obj = Recorder(one, world.loop)
    obj.push_back_read(b"pushed")
    with world.calls() as calls:
        assert obj.read(100) == b"pushed"
    assert calls == []
    assert obj.read(100) == b"socket"


def test_pushed_back_pieces_are_read_in_order_one_per_read(world: World) -> None:
    one, two = world.socketpair()
    two.send(b"socket")
    obj = Recorder(one, world.loop)
    obj.push_back_read(b"one")
    obj.push_back_read(b"two")
    assert obj.read(100) == b"one"
    assert obj.read(100) == b"two"
    assert obj.read(100) == b"socket"


def test_pushed_back_piece_longer_than_requested_is_split(world: World) -> None:
    one, two = world.socketpair()
    obj = Recorder(one, world.loop)
    obj.push_back_read(b"abcde")
    obj.push_back_read(b"f")
    assert [obj.read(2) for _ in range(4)] == [b"ab", b"cd", b"e", b"f"]
    assert obj.read(2) == b""


def test_data_pushed_back_after_a_split_is_read_last(world: World) -> None:
    one, _ = world.socketpair()
    obj = Recorder(one, world.loop)
    obj.push_back_read(b"abc")
    assert obj.read(1) == b"a"
    obj.push_back_read(b"d")
    assert [obj.read(9), obj.read(9)] == [b"bc", b"d"]


@pytest.mark.parametrize(
    "piece",
    [bytearray(b"abcd"), memoryview(b"xabcdx")[1:5], memoryview(b"abcd").cast("B", (2, 2))],
    ids=["bytearray", "slice", "two dimensions"],
)
def test_any_buffer_can_be_pushed_back(world: World, piece: bytearray | memoryview) -> None:
    one, _ = world.socketpair()
    obj = Recorder(one, world.loop)
    obj.push_back_read(piece)
    assert obj.read(3) == b"abc"
    assert obj.read(3) == b"d"


def test_pushed_back_bytearray_may_be_modified_afterwards(world: World) -> None:
    one, _ = world.socketpair()
    obj = Recorder(one, world.loop)
    piece = bytearray(b"abc")
    obj.push_back_read(piece)
    piece[:] = b"changed"
    assert obj.read(9) == b"abc"


def test_event_read_repeats_after_the_batch_until_no_pushed_back_data_is_left(world: World) -> None:
    one, two = world.socketpair()
    two.send(b"abc")

    def act(obj: Recorder) -> None:
        data = obj.read(10)
        assert data is not None
        obj.got += data[:1]
        if data[1:]:
            obj.push_back_read(data[1:])

    obj = Recorder(one, world.loop, read=act)
    obj.watch_read(True)
    with world.calls() as calls:
        world.turn()
    assert obj.got == b"abc" and obj.events == ["read"] * 3
    assert len(only(calls, "wait")) == 1 and len(only(calls, "read")) == 1


def test_pushed_back_data_waits_until_the_object_is_watched_for_reading(world: World) -> None:
    one, two = world.socketpair()

    def act(obj: Recorder) -> None:
        obj.got += obj.read(10) or b""
        if obj.got == b"abc":
            obj.watch_read(False)
            obj.push_back_read(b"later")

    obj = Recorder(one, world.loop, read=act)
    obj.watch_read(True)
    two.send(b"abc")
    world.turn()
    world.turn()
    assert obj.events == ["read"]
    obj.watch_read(True)
    world.turn()
    assert obj.got == b"abclater"


def test_pushed_back_reads_run_before_closes_and_post_loop_callbacks(world: World) -> None:
    one, two = world.socketpair()
    two.send(b"abc")
    order: list[str] = []

    def act(obj: Recorder) -> None:
        order.append(f"read {obj.read(10)!r}")
        if len(order) == 1:
            obj.push_back_read(b"again")
        else:
            obj.close()

    obj = Recorder(one, world.loop, read=act)
    obj.watch_read(True)

    def after(sockets: object, others: object) -> bool:
        order.append(f"callback, {'open' if world.is_open(fd) else 'closed'}")
        return False

    fd = one.fileno()
    world.loop.set_post_loop_callback(after)
    world.loop.run()
    assert order == ["read b'abc'", "read b'again'", "callback, closed"]


def test_pushed_back_reads_of_objects_added_during_a_round_come_first_in_the_next(
    world: World,
) -> None:
    order: list[str] = []
    objects: dict[str, Recorder] = {}

    def act(obj: Recorder) -> None:
        (name,) = [name for name, each in objects.items() if each is obj]
        order.append(f"{name} {obj.read(1)!r}")
        objects["b"].watch_read(True)
        if len(order) == 1:
            objects["d"].push_back_read(b"4")

    for name in "abcd":
        objects[name] = Recorder(world.socketpair()[0], world.loop, read=act)
        objects[name].watch_read(name != "b")
    for name, piece in ("a", b"11"), ("b", b"22"), ("c", b"33"):
        objects[name].push_back_read(piece)
    world.turn()
    first, second = ["a b'1'", "c b'3'"], ["b b'2'", "d b'4'", "a b'1'", "c b'3'"]
    assert order == [*first, *second, "b b'2'"]


def test_object_closed_by_anothers_pushed_back_read_gets_no_event(world: World) -> None:
    events: list[str] = []
    objects: list[Recorder] = []

    def act(obj: Recorder) -> None:
        if data := obj.read(10):
            if data == b"x":
                obj.push_back_read(b"y")
            else:
                for other in objects:
                    if other is not obj:
                        other.close()

    for _ in range(3):
        one, two = world.socketpair()
        two.send(b"x")
        obj = Recorder(one, world.loop, events=events, read=act)
        obj.watch_read(True)
        objects.append(obj)
    world.turn()
    assert events.count("read") == 4
    assert sum(obj.closed for obj in objects) == 2


def test_push_back_on_a_closed_object_is_ignored(world: World) -> None:
    one, _ = world.socketpair()
    obj = Recorder(one, world.loop)
    obj.watch_read(True)
    obj.push_back_read(b"x")
    obj.close()
    obj.push_back_read(b"y")
    assert not obj.read_push_back
    world.turn()
    assert obj.events == ["close None"]


def test_pushed_back_data_does_not_follow_a_stolen_socket(world: World) -> None:
    one, two = world.socketpair()
    obj = Recorder(one, world.loop)
    obj.watch_read(True)
    obj.push_back_read(b"x")
    assert obj.steal_socket() is one
    again = Recorder(one, world.loop)
    again.watch_read(True)
    world.turn()
    assert obj.events == again.events == []
    assert again.read(10) == b""
    two.send(b"new")
    world.turn()
    assert again.got == b"new"


def test_reading_all_pushed_back_data_ends_the_extra_events(world: World) -> None:
    one, two = world.socketpair()
    obj = Recorder(one, world.loop)
    obj.watch_read(True)
    obj.push_back_read(b"x")
    assert obj.read(1) == b"x"
    world.turn()
    assert obj.events == []
    two.send(b"y")
    world.turn()
    assert obj.events == ["read"]


def test_pushed_back_data_is_not_lost_by_an_exception(world: World) -> None:
    one, two = world.socketpair()

    def act(obj: Recorder) -> None:
        data = obj.read(10)
        if data == b"x":
            obj.push_back_read(b"later")
            raise KeyError
        obj.got += data or b""

    obj = Recorder(one, world.loop, read=act)
    obj.watch_read(True)
    two.send(b"x")
    with pytest.raises(KeyError):
        world.loop.run()
    # The next run must get to this without waiting for the network.
    world.until(lambda: obj.got)
    assert obj.got == b"later"


def test_data_pushed_back_before_the_loop_runs_is_read(world: World) -> None:
    one, _ = world.socketpair()
    obj = Recorder(one, world.loop)
    obj.watch_read(True)
    obj.push_back_read(b"early")
    world.until(lambda: obj.got)
    assert obj.got == b"early"


def test_exception_in_a_pushed_back_read_leaves_other_objects_theirs(world: World) -> None:
    events: list[str] = []
    failed: list[int] = []

    def act(obj: Recorder) -> None:
        if obj.read(10) == b"x":
            obj.push_back_read(b"y")
        elif not failed:
            failed.append(1)
            raise KeyError
        else:
            obj.got += b"y"

    objects = []
    for _ in range(3):
        one, two = world.socketpair()
        two.send(b"x")
        objects.append(Recorder(one, world.loop, events=events, read=act))
        objects[-1].watch_read(True)
    with pytest.raises(KeyError):
        world.loop.run()
    world.until(lambda: sum(len(obj.got) for obj in objects) == 2)


# --- watching -------------------------------------------------------------------------------------


def test_events_arrive_only_while_watched(world: World) -> None:
    one, two = world.socketpair()
    obj = Recorder(one, world.loop, read=lambda obj: None)
    two.send(b"x")
    world.turn()
    assert obj.events == []
    obj.watch_read(True)
    world.turn()
    world.turn()
    assert obj.events == ["read", "read"]
    obj.watch_read(False)
    world.turn()
    assert obj.events == ["read", "read"]
    obj.watch_write(True)
    world.turn()
    assert obj.events == ["read", "read", "write"]
    obj.watch_write(False)
    world.turn()
    assert obj.events == ["read", "read", "write"]


def test_watching_what_is_already_watched_makes_no_call(world: World) -> None:
    one, _ = world.socketpair()
    obj = Recorder(one, world.loop)
    fd = obj.fd
    with world.calls() as calls:
        for on in (False, True, True, False, False):
            obj.watch_read(on)
        for on in (False, True, True, False, False):
            obj.watch_write(on)
    assert calls == [
        ("modify", fd, 56, 57),
        ("modify", fd, 57, 56),
        ("modify", fd, 56, 60),
        ("modify", fd, 60, 56),
    ]


def test_watching_a_closed_object_does_nothing(world: World) -> None:
    one, _ = world.socketpair()
    obj = Recorder(one, world.loop)
    obj.close()
    before = obj.event_watch
    with world.calls() as calls:
        obj.watch_read(True)
        obj.watch_write(True)
        obj.tcp_cork(True)
    assert calls == [] and obj.event_watch == before and not obj.corked
    world.turn()
    assert obj.events == ["close None"]


def test_failing_watch_leaves_the_event_mask_unchanged(world: World) -> None:
    world.lenient()
    one, _ = world.socketpair()
    obj = Recorder(one, world.loop)
    world.loop._registry.open().unregister(one.fileno(), 56)
    with pytest.raises(OSError):
        obj.watch_read(True)
    assert not obj.event_watch & IN


def test_event_read_that_reads_nothing_is_called_again(world: World) -> None:
    one, two = world.socketpair()
    two.send(b"x")
    obj = Recorder(one, world.loop, read=lambda obj: None)
    obj.watch_read(True)
    for n in range(1, 4):
        world.turn()
        assert obj.events == ["read"] * n
    assert isinstance(obj, Socket) and drain(one) == b"x"
