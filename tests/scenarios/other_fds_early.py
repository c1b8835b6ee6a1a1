# A descriptor of somebody else that is added before the loop runs.
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
    ours, theirs = pair()
    s = Teller(ours, "s")
    peer_write(writer, b"x")
    batches(iter(()))
    Socket.SetLoopTimeout(0)
    Socket.EventLoop()


story(tell)
