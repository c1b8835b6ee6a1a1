"""The fair mark: the hand-written loop, doing what a real server can't do without.

Unlike select_epoll.py it has an object for each connection with a method for each event, survives
any error on a connection, and later sends what the kernel didn't take at once.
"""

import select
import socket
import sys
from collections import deque
from select import EPOLLIN, EPOLLOUT

END = b"\r\n\r\n"
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 13\r\n\r\nHello, world!"

NOTHING: deque[memoryview] = deque()  # a queue of its own is dear in numbers

poller = select.epoll()
connections: dict[int, "Connection"] = {}


class Connection:
    __slots__ = ("sock", "unsent")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.unsent = NOTHING

    def readable(self) -> None:
        data = self.sock.recv(256)
        if data.endswith(END):
            self.send(RESPONSE)
        elif not data:
            self.close()

    def writable(self) -> None:
        while self.unsent:
            block = self.unsent[0]
            sent = self.sock.send(block)
            if sent < len(block):
                self.unsent[0] = block[sent:]
                return
            self.unsent.popleft()
        poller.modify(self.sock, EPOLLIN)

    def send(self, data: bytes) -> None:
        if self.unsent:
            self.unsent.append(memoryview(data))
            return
        try:
            sent = self.sock.send(data)
        except BlockingIOError:
            sent = 0
        if sent < len(data):
            self.unsent = deque((memoryview(data)[sent:],))
            poller.modify(self.sock, EPOLLIN | EPOLLOUT)

    def close(self) -> None:
        del connections[self.sock.fileno()]
        self.sock.close()


def serve(connect: type[Connection], accepts: int = 1) -> None:
    """Serve for ever; accept at most that many pending connections per turn."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    listener.setblocking(False)
    listening = listener.fileno()
    poller.register(listening, EPOLLIN)
    print(listener.getsockname()[1], flush=True)
    while True:
        for fd, events in poller.poll():
            if fd == listening:
                for _ in range(accepts):
                    try:
                        sock, address = listener.accept()
                    except OSError:
                        break  # none waits, or it has gone again
                    sock.setblocking(False)
                    fd = sock.fileno()
                    connections[fd] = connect(sock)
                    poller.register(fd, EPOLLIN)
                continue
            connection = connections[fd]
            try:
                if events & EPOLLOUT:
                    connection.writable()
                if events != EPOLLOUT:  # readable, or else recv tells what is wrong
                    connection.readable()
            except BlockingIOError:
                pass
            except OSError:
                connection.close()


if __name__ == "__main__":
    serve(Connection, *map(int, sys.argv[1:]))
