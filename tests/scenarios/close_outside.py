# A close before the loop, in a timer or in a post-loop callback waits for the end of the next
# batch; one in a handler for the end of its own.
from collections.abc import Iterator

from danga_raw import Socket
from tests.scenarios.story import Teller, batches, note, pair, peer_write, story


def tell() -> None:
    one, peer_one = pair()
    two, peer_two = pair()
    three, peer_three = pair()
    a = Teller(one, "a")
    b = Teller(two, "b")
    c = Teller(three, "c", read=lambda s: s.close())
    c.watch_read(True)
    a.close()
    note("waiting", len(Socket.ToClose()))

    def steps() -> Iterator[None]:
        b.close()
        note("waiting", len(Socket.ToClose()))
        yield
        peer_write(peer_three, b"x")
        yield
        note("waiting", len(Socket.ToClose()))

    batches(steps())
    Socket.SetLoopTimeout(0)
    Socket.EventLoop()


story(tell)
