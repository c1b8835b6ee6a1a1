"""One loop per thread: threads.py LOOPS MESSAGES. Prints the messages per second of all loops.

Each loop plays ball with itself: over 32 pairs of connected sockets, both ends of which it watches.
"""

import socket
import sys
import threading
from time import perf_counter

from danga_raw import Loop, Socket

PAIRS = 32
BALL = b"x" * 64


class Player(Socket):
    __slots__ = ("left",)

    def __init__(self, sock: socket.socket, loop: Loop, left: list[int]) -> None:
        sock.setblocking(False)
        super().__init__(sock, loop)
        self.left = left
        self.watch_read(True)

    def event_read(self) -> None:
        data = self.read(256)
        if data:
            self.left[0] -= 1
            if self.left[0]:
                self.write(data)
            else:
                self.loop.stop()


def play(messages: int, ready: threading.Barrier, ended: list[float]) -> None:
    with Loop() as loop:
        left = [messages]
        for _ in range(PAIRS):
            near, far = socket.socketpair()
            Player(near, loop, left).write(BALL)
            Player(far, loop, left)
        ready.wait()
        loop.run()
        ended.append(perf_counter())
        for player in list(loop.descriptor_map.values()):
            player.close()


def main(loops: int, messages: int) -> None:
    # The threads record the times: under real-time scheduling they may finish before this one runs.
    begun: list[float] = []
    ended: list[float] = []
    ready = threading.Barrier(loops, lambda: begun.append(perf_counter()))
    threads = [threading.Thread(target=play, args=(messages, ready, ended)) for _ in range(loops)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(loops * messages / (max(ended) - begun[0]))


main(int(sys.argv[1]), int(sys.argv[2]))
