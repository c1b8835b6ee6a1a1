# At the end of the stream a read gives "end", each time; without a close the hang-up comes again
# in each batch, and without a wish to read it comes alone.
from collections.abc import Iterator

from danga_raw import Socket
from tests.scenarios.story import Teller, batches, pair, peer_write, story


def read_twice(s: Teller) -> None:
    s.take(10)
    s.take(10)


def tell() -> None:
    ours, theirs = pair()
    s = Teller(ours, "s", read=read_twice)
    s.watch_read(True)
    peer_write(theirs, b"bye")
    theirs.close()

    def steps() -> Iterator[None]:
        yield
        s.watch_read(False)
        yield
        s.close()
        s.take(5)
        yield

    batches(steps())
    Socket.SetLoopTimeout(0)
    Socket.EventLoop()


story(tell)
