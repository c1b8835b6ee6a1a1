# A cancelled timer does not fire, but one that is alone in the list is still waited for; timers
# cancel others of the same moment, and cancelling what has fired is nothing.
from collections.abc import Iterator

from danga_raw import Socket
from tests.scenarios.story import Teller, batches, clock, note, pair, story


def tell() -> None:
    clock(0)
    Teller(pair()[0], "any")

    def second_fires() -> None:
        note("second")
        third.cancel()

    first = Socket.AddTimer(0.002, lambda: note("timer", "first"))
    second = Socket.AddTimer(0.002, second_fires)
    third = Socket.AddTimer(0.002, lambda: note("timer", "third"))
    Socket.AddTimer(0.006, lambda: note("timer", "fourth"))
    first.cancel()
    first.cancel()

    def steps() -> Iterator[None]:
        clock(2.5)
        yield
        second.cancel()
        clock(4)
        yield
        yield

    batches(steps())
    Socket.AddTimer(0.02, lambda: note("timer", "far"))
    Socket.SetLoopTimeout(3)
    Socket.EventLoop()


story(tell)
