# A write that fills the socket is queued and goes on as the peer reads, with one watch begun and
# one dropped. A partial write is not tried again at once; a write that finds no room is.
from collections.abc import Iterator

from danga_raw import Socket
from tests.scenarios.story import Teller, batches, fill, pair, peer_read, story


def tell() -> None:
    ours, theirs = pair(4608)
    s = Teller(ours, "s")
    s.put(fill(20000))
    s.state()
    s.put(b"more")
    s.state()

    def steps() -> Iterator[None]:
        for step in range(4):
            if step:
                yield
            peer_read(theirs, 65536)
            s.state()

    batches(steps())
    Socket.SetLoopTimeout(0)
    Socket.EventLoop()
    s.put(b"and after")
    s.state()


story(tell)
