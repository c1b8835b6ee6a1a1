# Asking for what is watched already makes no call; asking for a change makes one.
from collections.abc import Iterator

from danga_raw import Socket
from tests.scenarios.story import Teller, batches, pair, peer_write, story


def tell() -> None:
    ours, theirs = pair()
    s = Teller(ours, "s")
    s.watch_read(True)
    s.watch_read(True)
    s.watch_write(True)
    s.watch_write(True)
    s.watch_read(False)
    s.watch_read(False)
    s.watch_write(False)
    s.watch_write(False)
    s.watch_write(True)
    s.watch_read(True)
    s.state()

    def steps() -> Iterator[None]:
        s.watch_write(False)
        peer_write(theirs, b"x")
        yield
        s.close()
        s.watch_read(True)
        s.watch_write(True)
        s.watch_read(False)
        yield

    batches(steps())
    Socket.SetLoopTimeout(0)
    Socket.EventLoop()


story(tell)
