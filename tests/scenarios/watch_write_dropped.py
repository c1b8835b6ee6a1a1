# A watch that write() began and the class dropped: the queue waits until it is kicked.
from collections.abc import Iterator

from danga_raw import Socket
from tests.scenarios.story import Teller, batches, fill, pair, peer_read, story


def tell() -> None:
    ours, theirs = pair(4608)
    s = Teller(ours, "s")
    s.put(fill(20000))
    s.watch_write(False)
    s.state()

    def steps() -> Iterator[None]:
        peer_read(theirs, 65536)
        yield
        s.put(b"more")
        s.put(None)
        s.state()
        yield
        peer_read(theirs, 65536)
        yield
        peer_read(theirs, 65536)
        s.state()

    batches(steps())
    Socket.SetLoopTimeout(0)
    Socket.EventLoop()


story(tell)
