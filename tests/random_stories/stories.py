"""Makes up stories: random programs for an event loop, the same one for the same seed.

A story has connections, each with what it does when its handlers are called, and acts, which are
short lists of operations. Handlers, queued callables, timers, post-loop callbacks and other fds
play acts, and there are operations before, between and after the batches of one or more runs.

The operations are:

- a connection reads, writes data of any size, an empty string or a callable, or continues with its
  queue; starts or stops a watch; corks; pushes data back; gets a writer function that writes less
  than it could, claims more or fails; gets or loses its own post-loop callback; is closed, and made
  anew on another socket, or is stolen, and wrapped again, by the same or another, or closed for
  good; prints its state;
- its peer reads, writes, shuts down its half, closes or resets;
- the loop gets a timer or loses one, another timeout, or another connection; the clock advances;
  the sockets that wait to be closed are counted.

After each batch the clock advances a little in most stories, and the peers of some connections read
what there is.

The two sides must agree on every system call. So intended differences (docs/porting.md) are left
out, as narrowly as possible; some of them only the players can detect, and they leave them out:

- A timer added by a timer is due a millisecond later at least: here one that is due already waits
  for the next pass.
- After a timer was cancelled, data was pushed back outside a handler, or a timer took its time, a
  wait is as long as it has to be; in the original it isn't. Two stories of three may have all of
  this, and for them the comparison ignores the timeouts of waits. In the others no timer is
  cancelled, no data is pushed back, and the clock stands still while timers run.
- An empty string is only written to a stream (it never blocks there), is never refused by a writer
  function, and is not queued after a callable: alone in its queue it is overtaken in the original.
- A writer function does nothing but write, since the original acts upon its result even if it has
  closed its object.
- An object that is made anew has no writer function, no watch set by `write`, and nothing pushed
  back: the original keeps those of the previous socket.
- A closed object gets no post-loop callback: in the original it is called for ever.
- A stolen socket is wrapped again in a later batch, and a closed object is made anew in a later one
  too, or by its event_hup or a timer: otherwise it would get the old one's event in the original.
- Other fds are added once, before the only run: the original registers them when a run begins.
- Nothing raises, no handler runs the loop, no class overrides `watch_write`, nobody reads 0 bytes,
  and no descriptor is closed behind its object's back. Of the descriptor map only the open objects
  are counted, since stolen ones stay there in the original.

One case can't be left out, since it comes about in too many ways: an object's post-loop callback
that removes another's which is still to be called. The original dies of that, and the comparison
ends there.
"""

from __future__ import annotations

from errno import EAGAIN, ECONNRESET, EIO, EPIPE
from random import Random
from typing import Any, TypedDict

Operation = list[Any]
"""Its name, the number of its connection (None if it is the loop's), and its arguments."""
Act = list[Operation]
Reaction = tuple[int, bool]
"""What the call of a handler does: play an act, and then what it does otherwise, or not. (For
`close`: play it when that is done, or before.)"""
Answer = tuple[str, int]
"""What a writer function does with a block: "all", "part" (so many bytes of it at most), "claim"
(the same without writing them), or "fail" with an errno."""


class Connection(TypedDict):
    """A connection, and what its object does."""

    kind: str
    """"unix", "tcp" or "datagram"."""
    size: int
    """That of its buffers; 0 leaves them as they are."""
    reactions: dict[str, list[Reaction]]
    """Handler -> what its first calls do; after that it does what it does otherwise."""
    closes_on: list[str]
    """Of "end", "err" and "hup", those that make it close."""
    peer_follows: bool
    """True if its peer reads after each batch, so that what is queued gets out."""


class Other(TypedDict):
    """A pair of which one end is an other fd of the loop."""

    batches: list[int]
    """The batches after which its peer writes."""
    takes: int
    """How much its callback reads; data left there causes another event."""
    acts: list[int]
    """What the first calls of its callback play."""


class Run(TypedDict):
    """One run of the loop, and what comes before the next."""

    batches: list[Act]
    """What happens after each batch; the run ends with the last."""
    after: Act


class Story(TypedDict):
    """All that the players need to know."""

    exact_waits: bool
    """False if the timeout of a wait may be another in the original."""
    tick: float
    """How many milliseconds the clock moves after each batch."""
    connections: list[Connection]
    open_first: int
    """How many of them are open when it begins."""
    acts: list[Act]
    before: Act
    others: list[Other]
    runs: list[Run]


OF_THE_LOOP = {
    "add_timer": 3, "cancel_timer": 1.5, "loop_timeout": 0.7, "wait_for_timer": 0.2,
    "open_connection": 1, "move_clock": 2, "count_closing": 0.6,
}  # fmt: skip
OF_A_CONNECTION = {
    "take": 6, "put": 10, "put_nothing": 1.5, "put_callable": 5, "flush": 3,
    "watch_read": 5, "watch_write": 5, "cork": 1, "push_back": 4, "writer": 1.5,
    "own_callback": 1.5, "state": 4, "close": 3, "steal": 1.5, "wrap_again": 1.5,
    "close_stolen": 0.4, "connect_again": 1.5,
    "peer_reads": 7, "peer_writes": 5, "peer_closes": 1.5, "peer_shuts": 1, "peer_resets": 0,
}  # fmt: skip
"""Operation -> how often it is chosen."""

OF_TCP = {"cork": 4, "peer_resets": 1}
"""The same in a story with TCP."""

THEMES = {
    "anything": "",
    "writing": "put put_callable flush",
    "reading": "take push_back peer_writes watch_read",
    "closing": "close steal wrap_again connect_again open_connection own_callback peer_closes",
    "timers": "add_timer cancel_timer move_clock loop_timeout",
    "writer functions": "writer put put_callable flush",
}
"""What a story is about -> what is chosen three times as often."""

NOT_WITH_EXACT_WAITS = ("cancel_timer", "push_back")

HANDLERS = {"read": 4, "write": 4, "err": 2, "hup": 2, "incomplete": 1, "close": 1}
"""Handler -> how many of its calls play an act at most."""


class Author:
    """Makes up one story."""

    def __init__(self, seed: int) -> None:
        self.random = random = Random(seed)
        self.open_first = random.randint(1, 4)
        self.connections = self.open_first + random.choice((0, 0, 1, 2))
        self.acts = random.randint(3, 14)
        self.tcp = random.random() < 0.35
        self.exact_waits = random.random() < 1 / 3
        self.puts = 0
        weights = OF_THE_LOOP | OF_A_CONNECTION | (OF_TCP if self.tcp else {})
        for name in THEMES[random.choice(("anything", *THEMES))].split():
            weights[name] *= 3
        if self.exact_waits:
            for name in NOT_WITH_EXACT_WAITS:
                del weights[name]
        self.names = list(weights)
        self.weights = list(weights.values())

    def story(self) -> Story:
        connections = [self.connection() for _ in range(self.connections)]
        others = [self.other() for _ in range(self.random.choice((0, 0, 0, 0, 0, 0, 0, 0, 1, 2)))]
        runs = 1 if others else self.random.choice((1, 1, 2, 3))
        return {
            "exact_waits": self.exact_waits,
            "tick": self.random.choice((0, 0.5, 2)),
            "connections": connections,
            "open_first": self.open_first,
            "acts": [self.operations(1, 4) for _ in range(self.acts)],
            "before": self.beginning() + self.operations(0, 5),
            "others": others,
            "runs": [self.run() for _ in range(runs)],
        }

    def connection(self) -> Connection:
        if self.tcp and self.maybe(0.6):
            kind = "tcp"
        else:
            kind = "datagram" if self.maybe(0.06) else "unix"
        reactions = {event: self.reactions(most) for event, most in HANDLERS.items()}
        for event in ("incomplete", "close"):
            # Seldom, or hardly anything would be closed as usual.
            if self.maybe(0.7):
                reactions[event] = []
        return {
            "kind": kind,
            "size": 0 if kind == "tcp" else self.random.choice((4608, 4608, 4608, 0)),
            "reactions": reactions,
            "closes_on": [event for event in ("end", "err", "hup") if self.maybe(0.55)],
            "peer_follows": self.maybe(0.5),
        }

    def reactions(self, most: int) -> list[Reaction]:
        return [(self.act(), self.maybe(0.5)) for _ in range(self.random.randint(0, most))]

    def other(self) -> Other:
        random = self.random
        return {
            "batches": [random.randint(1, 4) for _ in range(random.randint(1, 3))],
            "takes": random.choice((1, 10)),
            "acts": [self.act() for _ in range(random.randint(0, 3))],
        }

    def beginning(self) -> Act:
        """What gives most connections something to do."""
        operations: Act = []
        for number in range(self.open_first):
            if self.maybe(0.7):
                operations.append(["watch_read", number, True])
            if self.maybe(0.5):
                operations.append(["peer_writes", number, self.random.choice((3, 50)), number])
            if self.maybe(0.15):
                operations.append(["watch_write", number, True])
        return operations

    def run(self) -> Run:
        batches = [self.operations(0, 3) for _ in range(self.random.randint(2, 5))]
        return {"batches": batches, "after": self.operations(0, 3)}

    def operations(self, least: int, most: int) -> Act:
        return [self.operation() for _ in range(self.random.randint(least, most))]

    def operation(self) -> Operation:
        (name,) = self.random.choices(self.names, self.weights)
        number = None if name in OF_THE_LOOP else self.random.randrange(self.connections)
        return [name, number, *self.arguments(name)]

    def arguments(self, name: str) -> list[Any]:
        random = self.random
        match name:
            case "add_timer":
                return [random.choice((0, 0.001, 0.0025, 0.005, 0.005, -1, 0.0001)), self.act()]
            case "cancel_timer":
                return [random.randrange(5)]
            case "loop_timeout":
                return [random.choice((0, 0, 1, 2, 3))]
            case "open_connection":
                return [random.randrange(self.connections)]
            case "move_clock":
                return [random.choice((0.5, 1, 2, 3, 10))]
            case "take":
                return [random.choice((1, 2, 5, 10, 100, 5000, 2_000_000))]
            case "put":
                if self.maybe(0.2):  # Small buffers are filled, to the last byte.
                    return [1500, self.place(), random.randrange(3), 8]
                size = random.choice((1, 7, 100, 1000, 3000, 8000, 20000))
                return [size, self.place(), random.randrange(3), 1]
            case "put_callable":
                return [self.act()]
            case "watch_read" | "watch_write" | "cork":
                return [self.maybe(0.65)]
            case "wrap_again":
                return [self.maybe(0.3)]
            case "push_back":
                return [random.choice((0, 1, 5, 40, 6000)), self.place()]
            case "writer":
                return [None if self.maybe(0.2) else self.answers()]
            case "own_callback":
                says = random.choice(([], [], [True, False], [False], [True, True, False]))
                return [self.act() if self.maybe(0.8) else None, says]
            case "peer_reads":
                return [random.choice((1, 100, 5000, 65536, 65536))]
            case "peer_writes":
                return [random.choice((1, 4, 30, 500, 4000)), self.place()]
            case _:
                return []

    def answers(self) -> list[Answer]:
        """What a writer function does with its first blocks."""
        random = self.random
        return [
            random.choice(
                (
                    ("all", 0),
                    ("all", 0),
                    ("part", random.choice((0, 1, 10, 500))),
                    ("claim", random.choice((0, 1, 10, 500, 99999))),
                    ("fail", random.choice((EAGAIN, EAGAIN, EPIPE, ECONNRESET, EIO))),
                )
            )
            for _ in range(random.randint(1, 5))
        ]

    def place(self) -> int:
        """Where the data of a write begins in the text that all data is cut from, so that a trace
        shows which they are."""
        self.puts += 1
        return self.puts * 8

    def act(self) -> int:
        return self.random.randrange(self.acts)

    def maybe(self, chance: float) -> bool:
        return self.random.random() < chance


def made_up(seed: int) -> Story:
    """The story that a seed makes."""
    return Author(seed).story()
