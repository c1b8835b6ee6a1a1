# Each block that went out whole drops the watch before the next one is tried; a next one that
# blocks begins it again.
from collections.abc import Iterator

from danga_raw import Socket
from tests.scenarios.story import Teller, batches, fill, pair, peer_read, story


def tell() -> None:
    ours, theirs = pair(4608)
    s = Teller(ours, "s")
    for _ in range(6):
        s.put(fill(9500))
    s.state()

    def steps() -> Iterator[None]:
        for step in range(9):
            if step:
                yield
            peer_read(theirs, 9088 if step % 2 else 65536)
            s.state()

    batches(steps())
    Socket.SetLoopTimeout(0)
    Socket.EventLoop()


story(tell)
