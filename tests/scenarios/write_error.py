# Any other error of a write closes the object too, with the reason write_error.
import errno

from danga_raw import Socket
from tests.scenarios.story import Teller, batches, datagram_pair, fill, pair, story


def fails(data: object, count: int, offset: int) -> int:
    raise OSError(errno.EIO, "I/O error")


def tell() -> None:
    ours, theirs = datagram_pair(4608)
    s = Teller(ours, "s")
    s.put(b"a datagram")
    s.put(fill(50000))
    s.put(b"too late")
    two, peer_two = pair()
    t = Teller(two, "t")
    t.set_writer_func(fails)
    t.put(b"y")
    batches(iter(()))
    Socket.SetLoopTimeout(0)
    Socket.EventLoop()


story(tell)
