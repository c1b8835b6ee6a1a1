# Any other error of the wait.
from collections.abc import Iterator

from danga_raw import Socket
from tests.scenarios.story import Teller, batches, note, pair, peer_write, story


def tell() -> None:
    ours, theirs = pair()
    s = Teller(ours, "s", read=lambda s: s.take(10))
    s.watch_read(True)
    peer_write(theirs, b"x")

    def steps() -> Iterator[None]:
        peer_write(theirs, b"y")
        yield
        note("went on")
        yield

    batches(steps())
    try:
        Socket.EventLoop()
    except OSError:
        note("raised")


story(tell)
