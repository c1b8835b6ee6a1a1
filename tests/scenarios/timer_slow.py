# A timer whose callback takes its time, with another one pending.
from collections.abc import Iterator

from danga_raw import Socket
from tests.scenarios.story import Teller, batches, clock, note, pair, story


def tell() -> None:
    clock(0)
    Teller(pair()[0], "any")

    def slow() -> None:
        note("slow")
        clock(3.5)

    Socket.AddTimer(0, slow)
    Socket.AddTimer(0.0102, lambda: note("next"))

    def steps() -> Iterator[None]:
        clock(8)
        Socket.SetLoopTimeout(0)
        yield

    batches(steps())
    Socket.EventLoop()


story(tell)
