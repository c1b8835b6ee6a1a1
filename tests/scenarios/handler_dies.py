# A handler that dies ends the loop; a close from before it is still owed.
from danga_raw import Socket
from tests.scenarios.story import Teller, batches, note, pair, peer_write, story


class Died(Exception):
    pass


def dies(s: Teller) -> None:
    s.close()
    raise Died


def tell() -> None:
    ours, theirs = pair()
    s = Teller(ours, "s", read=dies)
    s.watch_read(True)
    peer_write(theirs, b"x")
    try:
        Socket.EventLoop()
    except Died:
        note("caught yes")
    batches(iter(()))
    Socket.SetLoopTimeout(0)
    Socket.EventLoop()


story(tell)
