# A descriptor that is taken away while the loop runs, and then has data.
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

    def other(state: int) -> None:
        note("other")
        peer_read(reader, 10)

    Socket.AddOtherFds({reader.fileno(): other})

    def steps() -> Iterator[None]:
        Socket.OtherFds({})
        peer_write(writer, b"x")
        yield
        yield

    batches(steps())
    Socket.SetLoopTimeout(0)
    Socket.EventLoop()


story(tell)
