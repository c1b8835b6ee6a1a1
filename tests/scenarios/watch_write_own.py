# A watch for writing that the class itself asked for is left alone by write(); one that write()
# began becomes the class's own once the class asks for it too.
from collections.abc import Iterator

from danga_raw import Socket
from tests.scenarios.story import Teller, batches, fill, pair, peer_read, story


def tell() -> None:
    one, peer_one = pair(4608)
    two, peer_two = pair(4608)
    a = Teller(one, "a")
    a.watch_write(True)
    a.put(fill(9500))
    a.state()
    b = Teller(two, "b")
    b.put(fill(9500))
    b.state()
    b.watch_write(True)
    b.state()

    def steps() -> Iterator[None]:
        peer_read(peer_one, 65536)
        yield
        a.watch_write(False)
        a.state()
        peer_read(peer_two, 65536)
        yield
        b.state()
        b.watch_write(False)
        yield
        b.put(b"small")
        b.state()
        yield

    batches(steps())
    Socket.SetLoopTimeout(0)
    Socket.EventLoop()


story(tell)
