# Asking for the mechanism, before there is anything to watch.
from danga_raw import Socket
from tests.scenarios.story import Teller, batches, note, pair, peer_write, story


def tell() -> None:
    ours, theirs = pair()
    note("epoll", "yes" if Socket.HaveEpoll() else "no")
    peer_write(theirs, b"x")
    s = Teller(ours, "s", read=lambda s: s.take(10))
    s.watch_read(True)
    batches(iter(()))
    Socket.EventLoop()


story(tell)
