# An empty piece that was pushed back is read as one, without a look at the socket.
from collections.abc import Iterator

from danga_raw import Socket
from tests.scenarios.story import Teller, batches, pair, peer_write, story


def tell() -> None:
    ours, theirs = pair()
    s = Teller(ours, "s", read=lambda s: s.take(10))
    s.watch_read(True)
    peer_write(theirs, b"x")

    def steps() -> Iterator[None]:
        s.push_back_read(b"")
        s.push_back_read(b"after")
        yield
        peer_write(theirs, b"y")
        yield

    batches(steps())
    Socket.SetLoopTimeout(0)
    Socket.EventLoop()


story(tell)
