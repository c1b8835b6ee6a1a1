# A close drops what is queued; the dead object says that its writes went out.
from collections.abc import Iterator

from danga_raw import Socket
from tests.scenarios.story import Teller, batches, fill, note, pair, peer_read, story


def tell() -> None:
    ours, theirs = pair(4608)
    s = Teller(ours, "s")
    s.put(fill(20000))
    s.put(lambda: note("never run"))

    def steps() -> Iterator[None]:
        peer_read(theirs, 65536)
        s.close()
        s.put(b"after")
        s.put(None)
        yield
        note("to close", len(Socket.ToClose()))
        peer_read(theirs, 10)
        yield
        s.close()

    batches(steps())
    Socket.SetLoopTimeout(0)
    Socket.EventLoop()


story(tell)
