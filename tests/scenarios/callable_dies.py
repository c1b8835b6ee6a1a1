# A queued callable that dies is gone, the rest of the queue survives and leaves when kicked.
from collections.abc import Callable

from tests.scenarios.story import Teller, fill, note, pair, peer_read, story


class Died(Exception):
    pass


def dies(what: str) -> None:
    raise Died(what)


def caught(s: Teller, what: str, data: bytes | Callable[[], object] | None) -> None:
    try:
        s.put(data)
    except Died as error:
        note("caught", "yes" if what in str(error) else "no")


def tell() -> None:
    ours, theirs = pair(4608)
    s = Teller(ours, "s")
    caught(s, "at once", lambda: dies("at once"))
    s.state()
    s.put(fill(9500))
    s.put(b"tail")
    s.put(lambda: dies("later"))
    s.put(b"survives")
    peer_read(theirs, 65536)
    caught(s, "later", None)
    s.state()
    s.put(None)
    s.state()


story(tell)
