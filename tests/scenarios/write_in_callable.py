# A callable that writes: before the rest of the queue when the queue is empty, behind it when not.
from collections.abc import Iterator

from danga_raw import Socket
from tests.scenarios.story import Teller, batches, fill, note, pair, peer_read, story


def tell() -> None:
    ours, theirs = pair(4608)
    s = Teller(ours, "s")

    def outer() -> None:
        s.put(b"one")
        s.put(lambda: s.put(b"two"))
        note("outer ends")

    def inner() -> None:
        s.put(b"inner")
        s.put(inner_callable)
        s.state()

    def inner_callable() -> None:
        note("inner callable")
        s.put(b"deep")

    def fills() -> None:
        s.put(fill(9500))
        s.put(b"after full")
        s.state()

    s.put(outer)
    s.put(fill(9500))
    s.put(inner)
    s.put(b"behind")
    s.put(fills)

    def steps() -> Iterator[None]:
        for step in range(5):
            if step:
                yield
            peer_read(theirs, 65536)
            s.state()

    batches(steps())
    Socket.SetLoopTimeout(0)
    Socket.EventLoop()


story(tell)
