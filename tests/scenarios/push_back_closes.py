# An object that closes itself on reading pushed-back data is closed with the same batch.
from collections.abc import Iterator

from danga_raw import Socket
from tests.scenarios.story import Teller, batches, pair, peer_write, story


def tell() -> None:
    ours, theirs = pair()
    times = 0

    def read(s: Teller) -> None:
        nonlocal times
        s.take(10)
        times += 1
        if times > 1:
            s.close()
        else:
            s.push_back_read(b"one")
            s.push_back_read(b"two")

    s = Teller(ours, "s", read=read)
    s.watch_read(True)
    peer_write(theirs, b"x")

    def steps() -> Iterator[None]:
        yield

    batches(steps())
    Socket.SetLoopTimeout(0)
    Socket.EventLoop()


story(tell)
