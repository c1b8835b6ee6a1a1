# A deadline that is a whole number of milliseconds away, to the last bit.
from collections.abc import Iterator

from danga_raw import Socket
from tests.scenarios.story import Teller, batches, clock, note, pair, story


def tell() -> None:
    clock(0)
    Teller(pair()[0], "any")
    Socket.AddTimer(0.125, lambda: note("fired"))

    def steps() -> Iterator[None]:
        clock(62.5)
        yield
        clock(62.5)
        Socket.SetLoopTimeout(0)
        yield

    batches(steps())
    Socket.EventLoop()


story(tell)
