# A descriptor of somebody else that is added while the loop runs, which then runs again.
from collections.abc import Iterator

from danga_raw import Socket
from tests.scenarios.story import (
    Teller,
    batches,
    ends_of_pipe,
    note,
    pair,
    peer_read,
    peer_write,
    story,
)


def tell() -> None:
    reader, writer = ends_of_pipe()
    Teller(pair()[0], "any")
    peer_write(writer, b"x")

    def other(state: int) -> None:
        note("other")
        peer_read(reader, 10)

    def steps() -> Iterator[None]:
        Socket.AddOtherFds({reader.fileno(): other})
        yield

    batches(steps())
    Socket.SetLoopTimeout(0)
    Socket.EventLoop()
    note("again")

    def more_steps() -> Iterator[None]:
        peer_write(writer, b"y")
        yield

    batches(more_steps())
    Socket.EventLoop()


story(tell)
