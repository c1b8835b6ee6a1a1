# A close in the post-loop callback that ends the loop waits for the next batch, which is that of
# another run.
from danga_raw import Socket
from tests.scenarios.story import Teller, note, pair, story


def tell() -> None:
    ours, theirs = pair()
    s = Teller(ours, "s")

    def closes(descriptors: object, others: object) -> bool:
        s.close()
        return False

    def looks(descriptors: object, others: object) -> bool:
        note("waiting", len(Socket.ToClose()))
        return False

    Socket.SetLoopTimeout(0)
    Socket.SetPostLoopCallback(closes)
    Socket.EventLoop()
    note("waiting", len(Socket.ToClose()))
    Socket.SetPostLoopCallback(looks)
    Socket.EventLoop()


story(tell)
