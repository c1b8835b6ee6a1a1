# Timers fire by time, equal times in the order they were added; what a timer adds takes its place
# among those that are still to run.
from collections.abc import Iterator

from danga_raw import Socket
from tests.scenarios.story import Teller, batches, clock, note, pair, peer_write, story


def tell() -> None:
    clock(0)
    ours, theirs = pair()
    s = Teller(ours, "s", read=lambda s: s.take(10))
    s.watch_read(True)

    def add(seconds: float, what: str) -> None:
        def fire() -> None:
            note("timer", what)
            if what == "b2":
                clock(0.01)
                add(0, "added by b2")
            if what == "a":
                peer_write(theirs, b"from a")

        Socket.AddTimer(seconds, fire)

    add(0.003, "c")
    add(0.002, "b1")
    add(0.002, "b2")
    add(0.001, "a")
    add(0.002, "b3")
    add(0, "at once")
    add(0.0205, "last")

    def steps() -> Iterator[None]:
        for _ in range(5):
            clock(1.25)
            yield
        clock(20)
        Socket.SetLoopTimeout(0)
        yield

    batches(steps())
    Socket.EventLoop()


story(tell)
