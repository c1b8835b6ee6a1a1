# A timer adds one that is due already.
from collections.abc import Iterator

from danga_raw import Socket
from tests.scenarios.story import Teller, batches, clock, note, pair, story


def tell() -> None:
    clock(0)
    Teller(pair()[0], "any")

    def one() -> None:
        note("timer one")
        Socket.AddTimer(-1, lambda: note("timer", "overdue"))

    Socket.AddTimer(0.001, one)
    Socket.AddTimer(0.001, lambda: note("timer", "two"))

    def steps() -> Iterator[None]:
        clock(1.5)
        Socket.SetLoopTimeout(0)
        yield
        yield

    batches(steps())
    Socket.EventLoop()


story(tell)
