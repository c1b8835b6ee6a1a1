# What becomes of the wait when the only timer is cancelled.
from collections.abc import Iterator

from danga_raw import Socket
from tests.scenarios.story import Teller, batches, clock, note, pair, story


def tell() -> None:
    clock(0)
    Teller(pair()[0], "any")
    timer = Socket.AddTimer(0.005, lambda: note("never"))
    timer.cancel()

    def steps() -> Iterator[None]:
        clock(6)
        yield

    batches(steps())
    Socket.SetLoopTimeout(20)
    Socket.EventLoop()


story(tell)
