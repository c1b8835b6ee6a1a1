# An empty string is a write of no bytes; in a queue of nothing but that, nothing is queued.
from collections.abc import Iterator

from danga_raw import Socket
from tests.scenarios.story import Teller, batches, fill, pair, peer_read, story


def tell() -> None:
    ours, theirs = pair(4608)
    s = Teller(ours, "s")
    s.put(b"")
    s.put(None)
    s.put(fill(9500))
    s.put(b"")
    s.state()
    s.put(b"tail")
    s.put(b"")
    s.state()

    def steps() -> Iterator[None]:
        for step in range(3):
            if step:
                yield
            peer_read(theirs, 65536)
            s.state()

    batches(steps())
    Socket.SetLoopTimeout(0)
    Socket.EventLoop()


story(tell)
