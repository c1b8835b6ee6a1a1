# on_incomplete_write runs for a partial write, not for one that finds no room; a class that
# overrides it decides on the watch.
from collections.abc import Iterator

from danga_raw import Socket
from tests.scenarios.story import Teller, batches, fill, pair, peer_read, story


class Quiet(Teller):
    __slots__ = ()

    def on_incomplete_write(self) -> None:
        self.said("on_incomplete_write")


def tell() -> None:
    ours, theirs = pair(4608)
    s = Quiet(ours, "s")
    s.put(fill(9500))
    s.state()
    s.put(None)
    s.state()

    def steps() -> Iterator[None]:
        peer_read(theirs, 65536)
        yield
        peer_read(theirs, 65536)
        s.state()
        yield

    batches(steps())
    Socket.SetLoopTimeout(0)
    Socket.EventLoop()

    more, more_theirs = pair(4608)
    t = Quiet(more, "t")
    t.put(fill(9500))
    peer_read(more_theirs, 65536)

    def more_steps() -> Iterator[None]:
        t.put(None)
        t.state()
        yield

    batches(more_steps())
    Socket.EventLoop()


story(tell)
