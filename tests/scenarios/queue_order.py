# Data and callables leave in the order they came; a callable runs once all before it is out.
from collections.abc import Iterator

from danga_raw import Socket
from tests.scenarios.story import Teller, batches, fill, note, pair, peer_read, story


def tell() -> None:
    ours, theirs = pair(4608)
    s = Teller(ours, "s")

    def tells(what: str) -> None:
        note(what)
        s.state()

    s.put(lambda: note("nothing before me"))
    s.put(fill(9500))
    s.put(lambda: tells("first callable"))
    s.put(b"between")
    s.put(b"by reference")
    s.put(lambda: tells("second callable"))
    s.put(lambda: note("third callable"))
    s.put(None)
    s.state()

    def steps() -> Iterator[None]:
        for step in range(3):
            if step:
                yield
            peer_read(theirs, 65536)

    batches(steps())
    Socket.SetLoopTimeout(0)
    Socket.EventLoop()
    s.state()


story(tell)
