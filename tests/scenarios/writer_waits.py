# A writer function that can't go on before something has been read, as in DJabberd's TLS: it writes
# nothing, and an overridden on_incomplete_write turns reading on and writing off until then.
import os
from collections.abc import Iterator

from danga_raw import Socket
from tests.scenarios.story import Teller, batches, note, pair, peer_write, story


class Waiter(Teller):
    waits = False

    def on_incomplete_write(self) -> None:
        self.said("on_incomplete_write")
        if not self.waits:
            super().on_incomplete_write()
            return
        self.watch_read(True)
        self.watch_write(False)


def tell() -> None:
    ours, theirs = pair()

    def read(_: Teller) -> None:
        if s.waits:
            s.waits = False
            s.watch_read(False)
            s.watch_write(True)
        else:
            s.take(10)

    def write(_: Teller) -> None:
        done = s.write(None)
        s.said("write", int(done))
        if done:
            s.watch_write(False)

    s = Waiter(ours, "s", read=read, write=write)
    first: list[int | None] = [None, 3, None, 0, 100, None, 100]

    def writer(data: bytes | memoryview, count: int, offset: int) -> int:
        most = first.pop(0)
        note("writer", count, offset, "wait" if most is None else most)
        if most is None:
            s.waits = True
            return 0
        return os.write(ours.fileno(), data[offset : offset + min(count, most)])

    s.set_writer_func(writer)
    s.put(b"0123456789")
    s.state()
    s.put(b"behind")

    def steps() -> Iterator[None]:
        for _ in range(8):
            s.state()
            if s.waits:
                peer_write(theirs, b"x")
            yield
        s.state()

    batches(steps())
    peer_write(theirs, b"x")
    Socket.SetLoopTimeout(0)
    Socket.EventLoop()


story(tell)
