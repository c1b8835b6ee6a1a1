# A read asks for what the caller asked for, up to 1 MiB; no data yet is an empty read.
from collections.abc import Iterator

from danga_raw import Socket
from tests.scenarios.story import Teller, batches, fill, pair, peer_write, story


def drain(s: Teller) -> None:
    s.take(4)
    s.take(1048575)
    s.take(1048576)
    s.take(1048577)
    s.take(50_000_000)
    s.take(1)


def tell() -> None:
    ours, theirs = pair()
    s = Teller(ours, "s", read=drain)
    s.watch_read(True)
    peer_write(theirs, b"abcdefgh")

    def steps() -> Iterator[None]:
        peer_write(theirs, fill(5000))
        yield

    batches(steps())
    Socket.EventLoop()


story(tell)
