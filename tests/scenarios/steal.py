# A stolen socket leaves epoll but stays open, and a new object can have it at once.
import socket
from collections.abc import Iterator

from danga_raw import Socket
from tests.scenarios.story import Teller, batches, note, pair, peer_read, peer_write, story


def tell() -> None:
    ours, theirs = pair()

    later: list[Teller] = []

    def give_away(s: Teller) -> None:
        s.take(3)
        handle = s.steal_socket()
        s.take(3)
        s.put(b"to nobody")
        s.watch_read(True)
        note("stolen twice", "no" if s.steal_socket() is None else "yes")
        assert isinstance(handle, socket.socket)
        second = Teller(handle, "second", read=lambda s: s.take(10))
        second.watch_read(True)
        second.put(b"hello")
        later.append(second)

    first = Teller(ours, "first", read=give_away)
    first.watch_read(True)
    peer_write(theirs, b"abcdef")

    def steps() -> Iterator[None]:
        peer_read(theirs, 10)
        yield
        later[0].close()
        yield

    batches(steps())
    Socket.SetLoopTimeout(0)
    Socket.EventLoop()


story(tell)
