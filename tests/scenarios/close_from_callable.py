# A queued callable that closes its own socket ends the write there.
from collections.abc import Iterator

from danga_raw import Socket
from tests.scenarios.story import Teller, batches, fill, note, pair, peer_read, story


def tell() -> None:
    ours, theirs = pair(4608)
    s = Teller(ours, "s")

    def closing() -> None:
        note("closing")
        s.close("done")

    s.put(fill(9500))
    s.put(b"tail")
    s.put(closing)
    s.put(b"never sent")
    s.put(lambda: note("never run"))

    def steps() -> Iterator[None]:
        for step in range(4):
            if step:
                yield
            peer_read(theirs, 65536)

    batches(steps())
    Socket.SetLoopTimeout(0)
    Socket.EventLoop()


story(tell)
