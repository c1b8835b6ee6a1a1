# A writer function stands in for write(2): it is given what is to go out and from where, its
# short counts and its EAGAIN are a partial and a blocked write.
import errno
import os
from collections.abc import Iterator

from danga_raw import Socket
from tests.scenarios.story import Teller, batches, note, pair, story


def tell() -> None:
    ours, theirs = pair()
    s = Teller(ours, "s")
    allowed = [4, 3, None, 100, 0, 100]

    def writer(data: bytes | memoryview, count: int, offset: int) -> int:
        note("writer", count, offset)
        most = allowed.pop(0)
        if most is None:
            raise BlockingIOError(errno.EAGAIN, "try again")
        return os.write(ours.fileno(), data[offset : offset + min(count, most)])

    s.set_writer_func(writer)
    s.put(b"four")
    s.put(b"0123456789")
    s.state()
    s.put(b"behind")

    def steps() -> Iterator[None]:
        for step in range(4):
            if step:
                yield
            s.state()

    batches(steps())
    Socket.SetLoopTimeout(0)
    Socket.EventLoop()
    s.set_writer_func(None)
    s.put(b"plain")


story(tell)
