# A reset by the peer reaches whoever writes or reads first: the write closes the object with the
# reason ECONNRESET, the read ends.
from collections.abc import Iterator

from danga_raw import Socket
from tests.scenarios.story import Teller, batches, reset_peer, story, tcp_pair


def read_twice(s: Teller) -> None:
    s.take(10)
    s.take(10)


def tell() -> None:
    one, peer_one = tcp_pair()
    two, peer_two = tcp_pair()
    a = Teller(one, "a", read=lambda s: s.put(b"x"))
    b = Teller(two, "b", read=read_twice, hup=lambda s: s.close("hung up"))
    a.watch_read(True)
    reset_peer(peer_one)

    def steps() -> Iterator[None]:
        b.watch_read(True)
        reset_peer(peer_two)
        yield

    batches(steps())
    Socket.EventLoop()


story(tell)
