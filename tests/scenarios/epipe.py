# Writing to a peer that is gone closes the object with the reason EPIPE, from a write of its own
# and from the queue.
from collections.abc import Iterator

from danga_raw import Socket
from tests.scenarios.story import Teller, batches, fill, pair, peer_read, story


def tell() -> None:
    one, peer_one = pair()
    two, peer_two = pair(4608)
    a = Teller(one, "a")
    b = Teller(two, "b", hup=lambda s: s.put(b"too late"))
    b.put(fill(9500))
    b.put(b"queued")
    peer_one.close()
    a.put(b"into the void")
    a.put(b"again")
    a.state()

    def steps() -> Iterator[None]:
        peer_read(peer_two, 65536)
        peer_two.close()
        yield
        b.state()
        yield

    batches(steps())
    Socket.SetLoopTimeout(0)
    Socket.EventLoop()


story(tell)
