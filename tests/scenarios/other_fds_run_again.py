# The loop is run twice with a descriptor of somebody else.
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
    Socket.SetLoopTimeout(0)
    for run in (1, 2):
        note("run", run)
        peer_write(writer, b"x")
        batches(iter(()))
        Socket.EventLoop()


story(tell)
