# Reset forgets all and closes the mechanism; what comes after it starts anew.
from danga_raw import Socket
from tests.scenarios.story import Teller, batches, note, pair, peer_write, story


def tell() -> None:
    one, peer_one = pair()
    two, peer_two = pair()
    a = Teller(one, "a", read=lambda s: s.take(10))
    b = Teller(two, "b")
    a.watch_read(True)
    Socket.AddTimer(5, lambda: note("never"))
    Socket.SetLoopTimeout(5)
    batches(iter(()))
    b.close()
    peer_write(peer_one, b"x")
    Socket.Reset()
    note("watched", Socket.WatchedSockets(), "waiting", len(Socket.ToClose()))

    three, peer_three = pair()
    c = Teller(three, "c", read=lambda s: s.take(10))
    c.watch_read(True)
    peer_write(peer_three, b"y")
    batches(iter(()))
    Socket.EventLoop()


story(tell)
