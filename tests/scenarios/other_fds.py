# A descriptor of somebody else: its callback gets the state, and it is read by plain calls.
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
    ours, theirs = pair()
    s = Teller(ours, "s", read=lambda s: s.take(10))
    s.watch_read(True)
    peer_write(writer, b"one")

    def other(state: int) -> None:
        note("other", state)
        peer_read(reader, 10)

    Socket.AddOtherFds({reader.fileno(): other})

    def steps() -> Iterator[None]:
        peer_write(theirs, b"x")
        peer_write(writer, b"two")
        yield
        yield
        writer.close()
        yield
        note("others", len(Socket.OtherFds()))

    batches(steps())
    Socket.SetLoopTimeout(0)
    Socket.EventLoop()


story(tell)
