"""Plays stories of stories.py on this package: python -m tests.random_stories.player STORIES.json

player.pl plays them in Perl, function by function. Each story runs in its own process, a child of
the one that has loaded everything.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from danga_raw import Socket
from danga_raw.timers import Timer
from danga_raw.types import Writable
from tests.random_stories.stories import Act, Answer, Other, Story
from tests.scenarios.story import (
    Teller,
    clock,
    datagram_pair,
    fill,
    note,
    pair,
    reset_peer,
    story,
    tcp_pair,
)

MOST_ACTS = 60
"""Of a story, as acts may lead to each other for ever."""
MOST_TIMES = 3
"""That one act is played."""
PATIENCE = 5
"""Seconds after which a story that doesn't end is ended."""

TEXT = fill(30_000)


def data(size: int, place: int) -> bytes:
    return TEXT[place : place + size]


class Player:
    """One story, and what the loop does in it."""

    def __init__(self, plan: Story) -> None:
        self.plan = plan
        self.ends: list[End | None] = [None] * len(plan["connections"])
        self.others: list[OtherEnd] = []
        self.timers: list[Timer] = []
        self.timer_runs = False
        self.acts_left = MOST_ACTS
        self.played: Counter[int] = Counter()

    def tell(self) -> None:
        clock(0)
        Socket.SetLoopTimeout(0)
        for number in range(self.plan["open_first"]):
            self.open_connection(number)
        self.perform(self.plan["before"])
        self.others = [OtherEnd(self, plan) for plan in self.plan["others"]]
        for other in self.others:
            Socket.AddOtherFds({other.ours.fileno(): other.event})
        for run in self.plan["runs"]:
            self.run(*run["batches"])
            self.perform(run["after"])
            for end in self.ends:
                if end is not None:
                    end.state()

    def run(self, *batches: Act) -> None:
        left = list(batches)
        batch = 0

        def after_batch(descriptors: Mapping[int, Socket], others: object) -> bool:
            nonlocal batch
            batch += 1
            open_now = sum(not obj.closed for obj in descriptors.values())
            note("batch", batch, f"open={open_now}")
            clock(self.plan["tick"])
            for end in (*self.others, *self.ends):
                if end is not None:
                    end.after_batch(batch)
            if left:
                self.perform(left.pop(0))
            return bool(left)

        Socket.SetPostLoopCallback(after_batch)
        Socket.EventLoop()
        note("run over")

    def perform(self, operations: Act) -> None:
        for name, number, *arguments in operations:
            target = self if number is None else self.ends[int(number)]
            if target is not None:
                getattr(target, name)(*arguments)

    def play(self, act: int) -> None:
        self.played[act] += 1
        if self.played[act] > MOST_TIMES or self.acts_left == 0:
            return
        self.acts_left -= 1
        self.perform(self.plan["acts"][act])

    def open_connection(self, number: int) -> None:
        if self.ends[number] is None:
            self.ends[number] = End(self, number)

    def add_timer(self, seconds: float, act: int) -> None:
        # One that is due already fires in the same pass in the original, and here in the next.
        if self.timer_runs and seconds < 0.001:
            seconds = 0.001
        timer = len(self.timers)

        def fires() -> None:
            note("timer", timer)
            self.timer_runs = True
            self.play(act)
            self.timer_runs = False

        self.timers.append(Socket.AddTimer(seconds, fires))

    def cancel_timer(self, timer: int) -> None:
        if self.timers:
            self.timers[timer % len(self.timers)].cancel()

    def loop_timeout(self, milliseconds: int) -> None:
        Socket.SetLoopTimeout(milliseconds)

    def wait_for_timer(self) -> None:
        """Have the loop wait for ever until a timer ends that."""
        Socket.SetLoopTimeout(-1)
        Socket.AddTimer(0.002, lambda: Socket.SetLoopTimeout(0))

    def move_clock(self, milliseconds: float) -> None:
        # After a timer that took its time the original waits too long.
        if not (self.timer_runs and self.plan["exact_waits"]):
            clock(milliseconds)

    def count_closing(self) -> None:
        note("closing", len(Socket.ToClose()))


class OtherEnd:
    """A pair of which one end is an other fd of the loop."""

    def __init__(self, player: Player, plan: Other) -> None:
        self.player = player
        self.plan = plan
        self.ours, self.theirs = pair()
        self.acts = list(plan["acts"])

    def after_batch(self, batch: int) -> None:
        if batch in self.plan["batches"]:
            os.write(self.theirs.fileno(), b"o")

    def event(self, state: int) -> None:
        note("other", state)
        with suppress(OSError):
            os.read(self.ours.fileno(), self.plan["takes"])
        if self.acts:
            self.player.play(self.acts.pop(0))


class End:
    """The two ends of a connection, and what can be done with it."""

    def __init__(self, player: Player, number: int) -> None:
        self.player = player
        self.number = number
        self.plan = plan = player.plan["connections"][number]
        self.theirs: socket.socket | None
        self.stolen = False
        self.wrappable = False
        self.handles_last = False
        self.event_may_wait = False
        self.reactions = {event: list(each) for event, each in plan["reactions"].items()}
        self.open()
        self.actor = Actor(self)

    def open(self) -> None:
        kind, size = self.plan["kind"], self.plan["size"]
        if kind == "tcp":
            self.ours, self.theirs = tcp_pair()
        elif kind == "datagram":
            self.ours, self.theirs = datagram_pair(size)
        else:
            self.ours, self.theirs = pair(size)
        self.fd = self.ours.fileno()

    def after_batch(self, batch: int) -> None:
        self.wrappable = self.stolen
        self.event_may_wait = False
        if self.plan["peer_follows"]:
            self.peer_reads(65536)

    def closes_on(self, event: str) -> bool:
        return event in self.plan["closes_on"]

    def take(self, count: int) -> None:
        self.actor.take(count)

    def put(self, size: int, place: int, form: int, times: int) -> None:
        text = data(size, place)
        for _ in range(times):
            self.actor.put((text, bytearray(text), memoryview(text))[form])

    def put_nothing(self) -> None:
        """An empty string, unless it might have to wait alone: then the original writes past it."""
        if self.plan["kind"] == "datagram":
            return
        if any(callable(queued) for queued in self.actor.write_buf):
            return
        self.actor.put(b"")

    def put_callable(self, act: int) -> None:
        def runs() -> None:
            note("callable", act)
            self.player.play(act)

        self.actor.put(runs)

    def flush(self) -> None:
        self.actor.put(None)

    def watch_read(self, on: bool) -> None:
        self.actor.watch_read(on)

    def watch_write(self, on: bool) -> None:
        self.actor.watch_write(on)

    def cork(self, on: bool) -> None:
        self.actor.tcp_cork(on)

    def push_back(self, size: int, place: int) -> None:
        self.actor.push_back_read(data(size, place))

    def writer(self, answers: list[Answer] | None) -> None:
        if answers is None:
            return self.actor.set_writer_func(None)
        left = list(answers)

        def writes(block: bytes | memoryview, count: int, offset: int) -> int:
            answer, number = left.pop(0) if left else ("all", 0)
            note("writer", self.number, count, offset, answer)
            # What is refused waits, and an empty string must not.
            if answer == "all" or not count:
                return os.write(self.fd, memoryview(block)[offset : offset + count])
            if answer == "fail":
                raise OSError(number, os.strerror(number))
            count = min(count, number)
            if answer == "claim":
                return count
            return os.write(self.fd, memoryview(block)[offset : offset + count])

        self.actor.set_writer_func(writes)

    def own_callback(self, act: int | None, says: list[bool]) -> None:
        if self.actor.closed:
            return
        if act is None:
            return self.actor.SetPostLoopCallback(None)
        left = list(says)

        def called(descriptors: object, others: object) -> bool:
            note("own callback", self.number)
            self.player.play(act)
            return left.pop(0) if left else True

        self.actor.SetPostLoopCallback(called)

    def state(self) -> None:
        self.actor.state()

    def close(self) -> None:
        self.actor.close("asked")

    def leaves(self) -> None:
        """The batch in hand may hold another event for the descriptor."""
        self.event_may_wait |= not self.handles_last and not self.player.timer_runs

    def steal(self) -> None:
        self.leaves()
        stolen = self.actor.steal_socket() is not None
        note("stole", int(stolen))
        self.stolen = self.stolen or stolen

    def wrap_again(self, by_the_same: bool) -> None:
        # In the batch in which it was stolen, it would get the old object's events in the original.
        if not (self.stolen and self.wrappable):
            return
        self.stolen = self.wrappable = False
        if by_the_same:
            return self.make_anew()
        self.actor = Actor(self)

    def connect_again(self) -> None:
        """Unless it would get the old socket's event in the original."""
        if self.stolen or not self.actor.closed or self.event_may_wait:
            return
        self.open()
        self.make_anew()

    def make_anew(self) -> None:
        Socket.__init__(self.actor, self.ours)
        self.actor.state()

    def close_stolen(self) -> None:
        if not self.stolen:
            return
        self.stolen = False
        self.ours.close()

    def peer_reads(self, count: int) -> None:
        if self.theirs is None:
            return
        got: object = "nothing"
        with suppress(OSError):
            got = len(os.read(self.theirs.fileno(), count))
        note("peer read", got)

    def peer_writes(self, size: int, place: int) -> None:
        if self.theirs is None:
            return
        written: object = "nothing"
        with suppress(OSError):
            written = os.write(self.theirs.fileno(), data(size, place))
        note("peer wrote", written)

    def peer_closes(self) -> None:
        if self.theirs is not None:
            self.theirs.close()
        self.theirs = None

    def peer_shuts(self) -> None:
        if self.theirs is not None:
            with suppress(OSError):
                self.theirs.shutdown(socket.SHUT_WR)

    def peer_resets(self) -> None:
        if self.theirs is None or self.plan["kind"] != "tcp":
            return
        reset_peer(self.theirs)
        self.theirs = None


class Actor(Teller):
    """The object on the loop, whose handlers do what the story has for them."""

    __slots__ = ("end",)

    def __init__(self, end: End) -> None:
        super().__init__(end.ours, f"s{end.number}")
        self.end = end
        self.state()

    def put(self, data: Writable) -> None:
        self.said("write", int(self.write(data)))

    def reacts(self, event: str) -> bool:
        """Play the story's act for this call; True if the handler should go on as usual."""
        if not self.end.reactions[event]:
            return True
        act, goes_on = self.end.reactions[event].pop(0)
        handled, self.end.handles_last = self.end.handles_last, event == "hup"
        self.end.player.play(act)
        self.end.handles_last = handled
        self.state()
        return goes_on

    def event_read(self) -> None:
        self.said("event_read")
        if not self.reacts("read") or self.closed:
            return
        got = self.read(3000)
        self.said("read", "end" if got is None else f"{len(got)} [{got[:20].decode()}]")
        if got is None and self.end.closes_on("end"):
            self.close("end")

    def event_write(self) -> None:
        self.said("event_write")
        if not self.reacts("write"):
            return
        Socket.event_write(self)
        self.state()

    def event_err(self) -> None:
        self.said("event_err")
        if self.reacts("err") and self.end.closes_on("err"):
            self.close("err")

    def event_hup(self) -> None:
        self.said("event_hup")
        if self.reacts("hup") and self.end.closes_on("hup"):
            self.close("hup")

    def on_incomplete_write(self) -> None:
        self.said("on_incomplete_write")
        if self.reacts("incomplete"):
            super().on_incomplete_write()

    def close(self, reason: str | None = None) -> None:
        reactions = self.end.reactions["close"]
        act, afterwards = reactions.pop(0) if reactions else (None, False)
        if act is not None and not afterwards:
            self.end.player.play(act)
        self.end.leaves()
        super().close(reason)
        if act is not None and afterwards:
            self.end.player.play(act)


def told(plan: Story) -> None:
    """Tell a story, and how it ended if it died."""
    try:
        Player(plan).tell()
    except Exception as error:
        note("died", repr(error))


def main() -> None:
    import_module("traceback")  # What the package imports when it needs it, once for all.
    plans: list[Story] = json.loads(Path(sys.argv[1]).read_text())
    for number, plan in enumerate(plans):
        child = os.fork()
        if child == 0:
            signal.alarm(PATIENCE)
            note("story", number)
            story(lambda: told(plan))  # It ends the process.
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
