# A peer that only shuts its sending side: readable with nothing to read, and still writable.
import socket
from collections.abc import Iterator

from danga_raw import Socket
from tests.scenarios.story import Teller, batches, pair, peer_read, story


def answer(s: Teller) -> None:
    s.take(10)
    s.put(b"answer")
    s.close()


def tell() -> None:
    ours, theirs = pair()
    s = Teller(ours, "s", read=answer)
    s.watch_read(True)
    theirs.shutdown(socket.SHUT_WR)

    def steps() -> Iterator[None]:
        peer_read(theirs, 20)
        yield from ()

    batches(steps())
    Socket.EventLoop()


story(tell)
