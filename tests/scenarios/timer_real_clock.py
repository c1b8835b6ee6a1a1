# Timers by the machine's own clock.
from collections.abc import Iterator

from danga_raw import Socket
from tests.scenarios.story import Teller, batches, note, pair, peer_write, story


def tell() -> None:
    ours, theirs = pair()
    s = Teller(ours, "s", read=lambda s: s.take(10))
    s.watch_read(True)

    def at_once() -> None:
        note("at once")
        peer_write(theirs, b"x")

    Socket.AddTimer(3600, lambda: note("never"))
    Socket.AddTimer(0, at_once)

    def steps() -> Iterator[None]:
        peer_write(theirs, b"y")
        yield

    batches(steps())
    Socket.EventLoop()


story(tell)
