"""Reading, and pushing back what was read."""

from __future__ import annotations

import pytest

from danga_raw import Socket
from tests.world import IN, Noted, World, drain, only


def test_read_gives_at_most_what_was_asked_for_in_one_call(world: World) -> None:
    one, two = world.socketpair()
    obj = Noted(one, world.loop)
    two.send(b"abcdef")
    with world.calls() as calls:
        assert obj.read(4) == b"abcd"
    assert calls == [("read", obj.fd, 4)]
    assert obj.read(4) == b"ef"


def test_read_asks_for_no_more_than_a_mebibyte(world: World) -> None:
    one, two = world.socketpair()
    obj = Noted(one, world.loop)
    two.send(b"x")
    with world.calls() as calls:
        assert obj.read(1 << 30) == b"x"
        obj.read(1_048_576)
        obj.read(1_048_577)
    assert [call[2] for call in calls] == [1_048_576] * 3


def test_read_tells_nothing_there_from_the_end(world: World) -> None:
    one, two = world.socketpair()
    obj = Noted(one, world.loop)
    assert obj.read(10) == b""
    two.send(b"x")
    two.close()
    assert obj.read(10) == b"x"
    assert obj.read(10) is None
    assert obj.read(10) is None
    assert not obj.closed


def test_read_of_a_reset_connection_is_none(world: World) -> None:
    obj = Noted(world.reset_by_peer(), world.loop)
    assert obj.read(10) is None


def test_read_of_a_closed_object_is_none_and_makes_no_call(world: World) -> None:
    one, two = world.socketpair()
    two.send(b"x")
    obj = Noted(one, world.loop)
    obj.push_back_read(b"pushed")
    obj.close()
    with world.calls() as calls:
        assert obj.read(10) is None
    assert calls == []


# --- push-back ------------------------------------------------------------------------------------


def test_what_was_pushed_back_comes_first_and_without_a_call(world: World) -> None:
    one, two = world.socketpair()
    two.send(b"socket")
    obj = Noted(one, world.loop)
    obj.push_back_read(b"pushed")
    with world.calls() as calls:
        assert obj.read(100) == b"pushed"
    assert calls == []
    assert obj.read(100) == b"socket"


def test_pieces_come_back_first_in_first_out_one_a_read(world: World) -> None:
    one, two = world.socketpair()
    two.send(b"socket")
    obj = Noted(one, world.loop)
    obj.push_back_read(b"one")
    obj.push_back_read(b"two")
    assert obj.read(100) == b"one"
    assert obj.read(100) == b"two"
    assert obj.read(100) == b"socket"


def test_a_piece_too_long_is_split_and_the_rest_comes_next(world: World) -> None:
    one, two = world.socketpair()
    obj = Noted(one, world.loop)
    obj.push_back_read(b"abcde")
    obj.push_back_read(b"f")
    assert [obj.read(2) for _ in range(4)] == [b"ab", b"cd", b"e", b"f"]
    assert obj.read(2) == b""


def test_what_is_pushed_back_after_a_split_comes_last(world: World) -> None:
    one, _ = world.socketpair()
    obj = Noted(one, world.loop)
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
    obj = Noted(one, world.loop)
    obj.push_back_read(piece)
    assert obj.read(3) == b"abc"
    assert obj.read(3) == b"d"


def test_a_pushed_back_bytearray_may_be_changed(world: World) -> None:
    one, _ = world.socketpair()
    obj = Noted(one, world.loop)
    piece = bytearray(b"abc")
    obj.push_back_read(piece)
    piece[:] = b"changed"
    assert obj.read(9) == b"abc"


def test_event_read_runs_again_after_the_batch_until_nothing_is_left(world: World) -> None:
    one, two = world.socketpair()
    two.send(b"abc")

    def act(obj: Noted) -> None:
        data = obj.read(10)
        assert data is not None
        obj.got += data[:1]
        if data[1:]:
            obj.push_back_read(data[1:])

    obj = Noted(one, world.loop, read=act)
    obj.watch_read(True)
    with world.calls() as calls:
        world.turn()
    assert obj.got == b"abc" and obj.events == ["read"] * 3
    assert len(only(calls, "wait")) == 1 and len(only(calls, "read")) == 1


def test_pushed_back_data_waits_for_an_object_that_does_not_watch(world: World) -> None:
    one, two = world.socketpair()

    def act(obj: Noted) -> None:
        obj.got += obj.read(10) or b""
        if obj.got == b"abc":
            obj.watch_read(False)
            obj.push_back_read(b"later")

    obj = Noted(one, world.loop, read=act)
    obj.watch_read(True)
    two.send(b"abc")
    world.turn()
    world.turn()
    assert obj.events == ["read"]
    obj.watch_read(True)
    world.turn()
    assert obj.got == b"abclater"


def test_pushed_back_reads_come_before_the_closes_and_the_callbacks(world: World) -> None:
    one, two = world.socketpair()
    two.send(b"abc")
    order: list[str] = []

    def act(obj: Noted) -> None:
        order.append(f"read {obj.read(10)!r}")
        if len(order) == 1:
            obj.push_back_read(b"again")
        else:
            obj.close()

    obj = Noted(one, world.loop, read=act)
    obj.watch_read(True)

    def after(sockets: object, others: object) -> bool:
        order.append(f"callback, {'open' if world.is_open(fd) else 'closed'}")
        return False

    fd = one.fileno()
    world.loop.set_post_loop_callback(after)
    world.loop.run()
    assert order == ["read b'abc'", "read b'again'", "callback, closed"]


def test_who_turns_reading_on_or_is_given_data_in_a_round_of_pushed_back_reads_waits_for_the_next(
    world: World,
) -> None:
    order: list[str] = []
    objects: dict[str, Noted] = {}

    def act(obj: Noted) -> None:
        (name,) = [name for name, each in objects.items() if each is obj]
        order.append(f"{name} {obj.read(1)!r}")
        objects["b"].watch_read(True)
        if len(order) == 1:
            objects["d"].push_back_read(b"4")

    for name in "abcd":
        objects[name] = Noted(world.socketpair()[0], world.loop, read=act)
        objects[name].watch_read(name != "b")
    for name, piece in ("a", b"11"), ("b", b"22"), ("c", b"33"):
        objects[name].push_back_read(piece)
    world.turn()
    first, second = ["a b'1'", "c b'3'"], ["a b'1'", "c b'3'", "b b'2'", "d b'4'"]
    assert order == [*first, *second, "b b'2'"]


def test_an_object_closed_by_anothers_pushed_back_read_gets_none(world: World) -> None:
    events: list[str] = []
    objects: list[Noted] = []

    def act(obj: Noted) -> None:
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
        obj = Noted(one, world.loop, events=events, read=act)
        obj.watch_read(True)
        objects.append(obj)
    world.turn()
    assert events.count("read") == 4
    assert sum(obj.closed for obj in objects) == 2


def test_push_back_on_a_closed_object_is_forgotten(world: World) -> None:
    one, _ = world.socketpair()
    obj = Noted(one, world.loop)
    obj.watch_read(True)
    obj.push_back_read(b"x")
    obj.close()
    obj.push_back_read(b"y")
    assert not obj.read_push_back
    world.turn()
    assert obj.events == ["close None"]


def test_pushed_back_data_does_not_follow_a_stolen_socket(world: World) -> None:
    one, two = world.socketpair()
    obj = Noted(one, world.loop)
    obj.watch_read(True)
    obj.push_back_read(b"x")
    assert obj.steal_socket() is one
    again = Noted(one, world.loop)
    again.watch_read(True)
    world.turn()
    assert obj.events == again.events == []
    assert again.read(10) == b""
    two.send(b"new")
    world.turn()
    assert again.got == b"new"


def test_reading_all_that_was_pushed_back_ends_the_extra_events(world: World) -> None:
    one, two = world.socketpair()
    obj = Noted(one, world.loop)
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

    def act(obj: Noted) -> None:
        data = obj.read(10)
        if data == b"x":
            obj.push_back_read(b"later")
            raise KeyError
        obj.got += data or b""

    obj = Noted(one, world.loop, read=act)
    obj.watch_read(True)
    two.send(b"x")
    with pytest.raises(KeyError):
        world.loop.run()
    # The next run must get to this without waiting for the network.
    world.until(lambda: obj.got)
    assert obj.got == b"later"


def test_data_pushed_back_before_the_loop_runs_is_read(world: World) -> None:
    one, _ = world.socketpair()
    obj = Noted(one, world.loop)
    obj.watch_read(True)
    obj.push_back_read(b"early")
    world.until(lambda: obj.got)
    assert obj.got == b"early"


def test_an_exception_in_a_pushed_back_read_leaves_the_others_theirs(world: World) -> None:
    events: list[str] = []
    failed: list[int] = []

    def act(obj: Noted) -> None:
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
        objects.append(Noted(one, world.loop, events=events, read=act))
        objects[-1].watch_read(True)
    with pytest.raises(KeyError):
        world.loop.run()
    world.until(lambda: sum(len(obj.got) for obj in objects) == 2)


# --- watching -------------------------------------------------------------------------------------


def test_events_come_only_while_watched(world: World) -> None:
    one, two = world.socketpair()
    obj = Noted(one, world.loop, read=lambda obj: None)
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


def test_no_call_is_made_for_what_is_the_case_already(world: World) -> None:
    one, _ = world.socketpair()
    obj = Noted(one, world.loop)
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


def test_watching_on_a_closed_object_does_nothing(world: World) -> None:
    one, _ = world.socketpair()
    obj = Noted(one, world.loop)
    obj.close()
    before = obj.event_watch
    with world.calls() as calls:
        obj.watch_read(True)
        obj.watch_write(True)
        obj.tcp_cork(True)
    assert calls == [] and obj.event_watch == before and not obj.corked
    world.turn()
    assert obj.events == ["close None"]


def test_a_watch_that_fails_leaves_the_mask_as_it_was(world: World) -> None:
    world.lenient()
    one, _ = world.socketpair()
    obj = Noted(one, world.loop)
    world.loop._registry.open().unregister(one.fileno(), 56)
    with pytest.raises(OSError):
        obj.watch_read(True)
    assert not obj.event_watch & IN


def test_an_event_read_that_reads_nothing_is_called_again(world: World) -> None:
    one, two = world.socketpair()
    two.send(b"x")
    obj = Noted(one, world.loop, read=lambda obj: None)
    obj.watch_read(True)
    for n in range(1, 4):
        world.turn()
        assert obj.events == ["read"] * n
    assert isinstance(obj, Socket) and drain(one) == b"x"
