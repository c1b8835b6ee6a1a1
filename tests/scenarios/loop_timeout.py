# The loop timeout goes to epoll_wait as it is: -1 waits for an event, 0 returns at once, and
# other numbers are milliseconds.
from collections.abc import Iterator

from danga_raw import Socket
from tests.scenarios.story import Teller, batches, pair, peer_write, story


def tell() -> None:
    ours, theirs = pair()
    s = Teller(ours, "s", read=lambda s: s.take(10))
    s.watch_read(True)
    peer_write(theirs, b"x")

    def steps() -> Iterator[None]:
        Socket.SetLoopTimeout(0)
        yield
        Socket.SetLoopTimeout(7)
        yield
        Socket.SetLoopTimeout(60_000)
        peer_write(theirs, b"y")
        yield
        Socket.SetLoopTimeout(-1)
        peer_write(theirs, b"z")
        yield

    batches(steps())
    Socket.EventLoop()


story(tell)
