# A descriptor that was closed behind the object's back: a read ends, a write closes the object, a
# cork closes it too; leaving epoll and the last close then fail, and nothing comes of that.
from danga_raw import Socket
from tests.scenarios.story import Teller, batches, close_behind, pair, story


def tell() -> None:
    one, peer_one = pair()
    two, peer_two = pair()
    a = Teller(one, "a")
    a.watch_read(True)
    close_behind(one)
    a.take(5)
    a.put(b"x")
    a.state()

    b = Teller(two, "b")
    close_behind(two)
    b.tcp_cork(True)
    b.state()

    batches(iter(()))
    Socket.SetLoopTimeout(0)
    Socket.EventLoop()


story(tell)
