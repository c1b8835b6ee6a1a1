# The end of the stream, read after an empty read: of the same object before, and of another one
# just then in the same batch.
import socket
from collections.abc import Iterator

from danga_raw import Socket
from tests.scenarios.story import Teller, batches, pair, peer_write, story


def drain(s: Teller) -> None:
    s.take(10)
    s.take(10)


def tell() -> None:
    one, peer_one = pair()
    two, peer_two = pair()
    a = Teller(one, "a", read=drain)
    b = Teller(two, "b", read=drain)
    a.watch_read(True)
    b.watch_read(True)
    peer_write(peer_one, b"data")

    def steps() -> Iterator[None]:
        peer_one.shutdown(socket.SHUT_WR)
        yield
        a.close()
        peer_write(peer_two, b"data")
        yield
        peer_two.shutdown(socket.SHUT_WR)
        yield

    batches(steps())
    Socket.SetLoopTimeout(0)
    Socket.EventLoop()

    three, peer_three = pair()
    four, peer_four = pair()
    c = Teller(three, "c", read=drain)
    d = Teller(four, "d", read=drain)
    c.watch_read(True)
    d.watch_read(True)
    peer_write(peer_three, b"data")
    peer_four.shutdown(socket.SHUT_WR)
    b.close()

    def more_steps() -> Iterator[None]:
        c.close()
        d.close()
        yield

    batches(more_steps())
    Socket.EventLoop()


story(tell)
