# A callable that writes while nothing but an empty string is queued behind it.
from collections.abc import Iterator

from danga_raw import Socket
from tests.scenarios.story import Teller, batches, fill, pair, peer_read, story


def tell() -> None:
    ours, theirs = pair(4608)
    s = Teller(ours, "s")

    def writes() -> None:
        s.state()
        s.put(b"written")
        s.state()

    s.put(fill(9500))
    s.put(writes)
    s.put(b"")

    def steps() -> Iterator[None]:
        for step in range(3):
            if step:
                yield
            peer_read(theirs, 65536)

    batches(steps())
    Socket.SetLoopTimeout(0)
    Socket.EventLoop()
    s.state()


story(tell)
