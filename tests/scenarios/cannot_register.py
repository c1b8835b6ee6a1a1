# The same descriptor twice: the second object dies, the first is none the worse.
from danga_raw import Socket
from tests.scenarios.story import Teller, note, pair, story


def tell() -> None:
    ours, theirs = pair()
    s = Teller(ours, "s")
    try:
        Teller(ours, "twin")
    except OSError:
        note("died yes")
    s.put(b"x")
    s.watch_read(True)
    s.state()
    note("watched", Socket.WatchedSockets())


story(tell)
