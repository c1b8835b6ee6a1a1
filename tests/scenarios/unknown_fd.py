# An event for a descriptor that nobody knows: it leaves epoll and is closed.
from collections.abc import Iterator

from danga_raw import Socket
from tests.scenarios.story import Teller, batches, ends_of_pipe, pair, peer_write, story


def tell() -> None:
    ours, theirs = pair()
    s = Teller(ours, "s")
    reader, writer = ends_of_pipe()
    s.loop._registry.open().register(reader.fileno(), 1)
    peer_write(writer, b"x")

    def steps() -> Iterator[None]:
        yield

    batches(steps())
    Socket.SetLoopTimeout(0)
    Socket.EventLoop()


story(tell)
