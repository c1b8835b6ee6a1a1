# A descriptor number that comes back after a close belongs to the new object alone.
from collections.abc import Iterator

from danga_raw import Socket
from tests.scenarios.story import Teller, batches, pair, peer_write, story


def tell() -> None:
    one, peer_one = pair()

    def last(s: Teller) -> None:
        s.take(10)
        s.close()

    a = Teller(one, "a", read=last)
    a.watch_read(True)
    peer_write(peer_one, b"to a")

    def steps() -> Iterator[None]:
        two, peer_two = pair()
        b = Teller(two, "b", read=lambda s: s.take(10))
        b.watch_read(True)
        peer_write(peer_two, b"to b")
        yield
        a.watch_write(True)
        a.put(b"x")
        a.close()
        yield
        b.close()
        yield

    batches(steps())
    Socket.SetLoopTimeout(0)
    Socket.EventLoop()


story(tell)
