"""A queue to a slow reader: write_queue.py writes COUNT | memory BLOCKS.

Both ends are in this one thread: in each turn of the loop the reader takes a little. `memory`
prints the most memory, in bytes, that the package used beyond the blocks themselves while they were
queued and sent, and then how much a queued small write takes.
"""

import socket
import sys
import tracemalloc

from danga_raw import Loop, Socket

SMALL = bytes(64)
BLOCK = 4 * 1024 * 1024


class Queue:
    """A socket to write to, and its reader."""

    def __init__(self, taken_each_turn: int) -> None:
        ours, self.theirs = socket.socketpair()
        for end in ours, self.theirs:
            end.setblocking(False)
        self.loop = Loop()
        self.writer = Socket(ours, self.loop)
        self.buffer = bytearray(taken_each_turn)
        self.expected = 0

    def drain(self, expected: int) -> None:
        self.expected = expected
        self.loop.add_other_fds({self.theirs.fileno(): self.take})
        self.loop.run()

    def take(self, state: int) -> None:
        self.expected -= self.theirs.recv_into(self.buffer)
        if not self.expected:
            self.loop.stop()


def writes(count: int) -> None:
    queue = Queue(4096)
    for _ in range(count):
        queue.writer.write(SMALL)
    if count:
        queue.drain(count * len(SMALL))


def memory(blocks: int) -> None:
    queue = Queue(100_000)
    data = [bytes([number]) * BLOCK for number in range(blocks)]
    tracemalloc.start()
    for block in data:
        queue.writer.write(block)
    queue.drain(blocks * BLOCK)
    most = tracemalloc.get_traced_memory()[1]
    while queue.writer.write(SMALL):
        pass
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(10_000):
        queue.writer.write(SMALL)
    print(most, (tracemalloc.get_traced_memory()[0] - before) / 10_000)


{"writes": writes, "memory": memory}[sys.argv[1]](int(sys.argv[2]))
