# A socket that can't be corked is asked each time, since it is never taken for corked.
from danga_raw import Socket
from tests.scenarios.story import Teller, batches, pair, story


def tell() -> None:
    ours, theirs = pair()
    s = Teller(ours, "s")
    s.tcp_cork(False)
    s.tcp_cork(True)
    s.tcp_cork(True)
    s.state()
    s.tcp_cork(False)
    s.put(b"data")
    s.tcp_cork(True)
    s.close()
    batches(iter(()))
    Socket.SetLoopTimeout(0)
    Socket.EventLoop()


story(tell)
