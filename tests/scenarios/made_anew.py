# An object that is made anew, on another socket when it has closed its own, and on that which was
# stolen from it.
import socket
from collections.abc import Iterator

from danga_raw import Socket
from tests.scenarios.story import Teller, batches, pair, peer_write, story


def tell() -> None:
    ours, theirs = pair()
    following, peer = pair()

    def read(s: Teller) -> None:
        got = s.take(10)
        handle: socket.socket | None = following
        if got:
            if got != b"once more":
                return
            handle = s.steal_socket()
        else:
            s.close("end")
        assert handle is not None
        Socket.__init__(s, handle)
        s.watch_read(True)

    s = Teller(ours, "it", read=read)
    s.watch_read(True)
    theirs.shutdown(socket.SHUT_WR)

    def steps() -> Iterator[None]:
        peer_write(peer, b"hello")
        yield
        peer_write(peer, b"once more")
        yield
        peer_write(peer, b"again")
        yield
        s.state()

    batches(steps())
    Socket.SetLoopTimeout(0)
    Socket.EventLoop()


story(tell)
