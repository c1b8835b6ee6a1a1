# Corking around queued data: the option is set once each way, also from queued callables, and a
# close while corked uncorks before it leaves epoll.
from collections.abc import Iterator

from danga_raw import Socket
from tests.scenarios.story import Teller, batches, note, story, tcp_pair


def tell() -> None:
    ours, theirs = tcp_pair()
    s = Teller(ours, "s")
    s.tcp_cork(False)
    s.tcp_cork(True)
    s.tcp_cork(True)
    s.put(b"header ")

    def between() -> None:
        note("between")
        s.tcp_cork(True)

    def after() -> None:
        s.tcp_cork(False)
        s.state()

    s.put(between)
    s.put(b"body")
    s.put(after)
    s.tcp_cork(False)

    def steps() -> Iterator[None]:
        s.tcp_cork(True)
        s.put(b"last")
        s.close()
        s.tcp_cork(True)
        s.tcp_cork(False)
        yield

    batches(steps())
    Socket.SetLoopTimeout(0)
    Socket.EventLoop()


story(tell)
