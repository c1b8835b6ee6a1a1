"""A request's steps, for counting: budget.py HANDLER CONNECTIONS ROUNDS.

All requests of all rounds are sent before the loop begins, and no answer is read, so that nothing
but the loop and the handler is counted. HANDLER says how much the handler does:

    nothing   it returns
    read      it reads the request
    write     it reads, and writes the answer
    answer    it does all that the servers under test do
    calls     no loop: os.read and os.write, as often
"""

import os
import socket
import sys

from danga_raw import Loop, Socket

END = b"\r\n\r\n"
REQUEST = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 13\r\n\r\nHello, world!"


class Nothing(Socket):
    __slots__ = ()

    def event_read(self) -> None:
        pass


class Read(Socket):
    __slots__ = ()

    def event_read(self) -> None:
        self.read(len(REQUEST))


class Write(Socket):
    __slots__ = ()

    def event_read(self) -> None:
        self.read(len(REQUEST))
        self.write(RESPONSE)


class Answer(Socket):
    __slots__ = ()

    def event_read(self) -> None:
        data = self.read(len(REQUEST))
        if data is None:
            self.close()
        elif data.endswith(END):
            self.write(RESPONSE)


HANDLERS = {"nothing": Nothing, "read": Read, "write": Write, "answer": Answer}


def ready(connections: int, rounds: int) -> tuple[list[socket.socket], list[socket.socket]]:
    """Connections whose requests have all arrived, and their other ends."""
    pairs = [socket.socketpair() for _ in range(connections)]
    for near, far in pairs:
        near.setblocking(False)
        far.send(REQUEST * (rounds + 1))  # one more, so that the last turn is like the others
    return [near for near, _ in pairs], [far for _, far in pairs]


def in_loop(kind: type[Socket], sockets: list[socket.socket], rounds: int) -> None:
    left = rounds

    def another(*_: object) -> bool:
        nonlocal left
        left -= 1
        return left > 0

    loop = Loop()
    for sock in sockets:
        kind(sock, loop).watch_read(True)
    loop.set_post_loop_callback(another)
    loop.run()


def without_loop(sockets: list[socket.socket], rounds: int) -> None:
    numbers = [sock.fileno() for sock in sockets]
    for _ in range(rounds):
        for fd in numbers:
            os.read(fd, len(REQUEST))
            os.write(fd, RESPONSE)


def main(handler: str, connections: int, rounds: int) -> None:
    near, far = ready(connections, rounds)
    if handler == "calls":
        without_loop(near, rounds)
    else:
        in_loop(HANDLERS[handler], near, rounds)


main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
