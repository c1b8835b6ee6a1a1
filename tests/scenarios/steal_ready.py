# An object whose socket is stolen while its event waits in the batch hears nothing.
from collections.abc import Iterator

from danga_raw import Socket
from tests.scenarios.story import Teller, batches, pair, peer_write, story


def tell() -> None:
    one, peer_one = pair()
    two, peer_two = pair()
    stolen: list[object] = []

    def steal_other(me: Teller) -> None:
        me.take(10)
        if not stolen:
            stolen.append((b if me is a else a).steal_socket())

    a = Teller(one, "a", read=steal_other)
    b = Teller(two, "b", read=steal_other)
    a.watch_read(True)
    b.watch_read(True)
    peer_write(peer_one, b"to a")
    peer_write(peer_two, b"to b")

    def steps() -> Iterator[None]:
        yield
        peer_write(peer_one, b"more for a")
        peer_write(peer_two, b"for b")
        yield

    batches(steps())
    Socket.SetLoopTimeout(0)
    Socket.EventLoop()


story(tell)
