# With the socket full, corking waits in the queue with the data around it.
from collections.abc import Iterator

from danga_raw import Socket
from tests.scenarios.story import Teller, batches, fill, pair, peer_read, story


def tell() -> None:
    ours, theirs = pair(4608)
    s = Teller(ours, "s")

    def cork(on: bool) -> None:
        s.tcp_cork(on)
        s.state()

    s.put(fill(9500))
    s.put(lambda: cork(True))
    s.put(b"corked")
    s.put(lambda: cork(False))

    def steps() -> Iterator[None]:
        for step in range(3):
            if step:
                yield
            peer_read(theirs, 65536)

    batches(steps())
    Socket.SetLoopTimeout(0)
    Socket.EventLoop()


story(tell)
