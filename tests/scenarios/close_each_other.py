# Two objects are ready in one batch and the first closes the second: the second hears nothing,
# and both descriptors are closed after the batch, in the order of closing.
from collections.abc import Iterator

from danga_raw import Socket
from tests.scenarios.story import Teller, batches, note, pair, peer_write, story


def tell() -> None:
    one, peer_one = pair()
    two, peer_two = pair()

    def close_other(me: Teller) -> None:
        other = b if me is a else a
        other.close()
        me.take(10)
        me.close()

    a = Teller(one, "a", read=close_other)
    b = Teller(two, "b", read=close_other)
    a.watch_read(True)
    b.watch_read(True)
    peer_write(peer_two, b"to b")
    peer_write(peer_one, b"to a")

    def steps() -> Iterator[None]:
        note("still mapped", Socket.WatchedSockets())
        yield

    batches(steps())
    Socket.SetLoopTimeout(0)
    Socket.EventLoop()


story(tell)
