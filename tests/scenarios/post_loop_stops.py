# Post-loop callbacks: the object's first, then the global one; a false one ends the loop and the
# rest are not asked. Closing the object forgets its own.
from danga_raw import Socket
from tests.scenarios.story import Teller, note, pair, story


def tell() -> None:
    ours, theirs = pair()
    s = Teller(ours, "s")
    own, whole = 3, 2

    def own_callback(descriptors: object, others: object) -> int:
        nonlocal own
        note("own", own)
        own -= 1
        return own

    def global_callback(descriptors: object, others: object) -> int:
        nonlocal whole
        note("global", whole)
        whole -= 1
        return whole

    s.SetPostLoopCallback(own_callback)
    Socket.SetPostLoopCallback(global_callback)
    Socket.SetLoopTimeout(0)
    Socket.EventLoop()
    note("ended by the global one")
    whole = 5
    Socket.EventLoop()
    note("ended by its own")
    own = 5
    s.SetPostLoopCallback(None)
    whole = 2
    Socket.EventLoop()
    s.SetPostLoopCallback(own_callback)
    s.close()
    whole = 2
    Socket.EventLoop()


story(tell)
