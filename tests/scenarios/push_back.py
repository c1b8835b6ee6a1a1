# Pushed-back data comes first, a piece a read, split but never topped up from the socket, and is
# read again after the batch as long as the object watches for reading.
from collections.abc import Iterator

from danga_raw import Socket
from tests.scenarios.story import Teller, batches, pair, peer_write, story


def tell() -> None:
    ours, theirs = pair()
    times = 0

    def read(s: Teller) -> None:
        nonlocal times
        times += 1
        if times == 1:
            s.take(6)
            s.push_back_read(b"first ")
            s.push_back_read(b"second")
            return
        s.take(4)
        # With push-backs left, but no wish to read: they wait for the next batch.
        if times == 3:
            s.watch_read(False)

    s = Teller(ours, "s", read=read)
    s.watch_read(True)
    peer_write(theirs, b"hello world")

    def steps() -> Iterator[None]:
        s.take(3)
        yield
        s.watch_read(True)
        yield
        s.push_back_read(b"ref")
        peer_write(theirs, b"!")
        yield
        s.push_back_read(b"never read")
        s.close()
        yield

    batches(steps())
    Socket.SetLoopTimeout(0)
    Socket.EventLoop()


story(tell)
