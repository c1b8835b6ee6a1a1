# Watching a descriptor that was closed behind the object's back.
from tests.scenarios.story import Teller, close_behind, note, pair, story


def tell() -> None:
    ours, theirs = pair()
    s = Teller(ours, "s")
    close_behind(ours)
    for _ in range(2):
        try:
            s.watch_read(True)
        except OSError:
            note("raised")


story(tell)
