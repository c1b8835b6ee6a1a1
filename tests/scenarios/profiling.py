# Profiling changes nothing in the calls.
from collections.abc import Iterator

from danga_raw import Socket
from tests.scenarios.story import Teller, batches, pair, peer_write, story


def tell() -> None:
    ours, theirs = pair()
    Socket.EnableProfiling()
    s = Teller(ours, "s", read=lambda s: s.take(10))
    s.watch_read(True)
    s.watch_write(True)
    peer_write(theirs, b"x")
    theirs.close()

    def steps() -> Iterator[None]:
        s.close()
        yield

    batches(steps())
    Socket.SetLoopTimeout(0)
    Socket.EventLoop()


story(tell)
