# The wait is a whole number of milliseconds past the deadline, and the lower of it and the loop
# timeout, where that is not -1.
from collections.abc import Iterator

from danga_raw import Socket
from tests.scenarios.story import Teller, batches, clock, note, pair, story


def timer(seconds: float) -> None:
    Socket.AddTimer(seconds, lambda: note("fired"))


def tell() -> None:
    clock(0)
    Teller(pair()[0], "any")
    timer(0.0041)

    def steps() -> Iterator[None]:
        clock(0.05)
        yield
        clock(0.75)
        yield
        clock(3.2)
        yield
        clock(0.2)
        timer(0.005)
        yield
        clock(0.5)
        Socket.SetLoopTimeout(2)
        yield
        Socket.SetLoopTimeout(50)
        yield
        Socket.SetLoopTimeout(0)
        yield
        clock(3.75)
        Socket.SetLoopTimeout(1)
        yield
        clock(10)
        yield
        Socket.SetLoopTimeout(-1)
        timer(0.00000001)
        yield
        clock(1)
        Socket.SetLoopTimeout(0)
        yield

    batches(steps())
    Socket.EventLoop()


story(tell)
