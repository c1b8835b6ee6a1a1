# A class with a watch_write of its own.
from collections.abc import Iterator

from danga_raw import Socket
from tests.scenarios.story import Teller, batches, fill, pair, peer_read, story


class Watcher(Teller):
    __slots__ = ()

    def watch_write(self, on: bool) -> None:
        self.said("watch_write", int(on))
        super().watch_write(on)


def tell() -> None:
    ours, theirs = pair(4608)
    s = Watcher(ours, "s")
    s.put(fill(9500))

    def steps() -> Iterator[None]:
        for step in range(3):
            if step:
                yield
            peer_read(theirs, 65536)

    batches(steps())
    Socket.SetLoopTimeout(0)
    Socket.EventLoop()


story(tell)
