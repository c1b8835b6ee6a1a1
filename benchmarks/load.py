"""The load: connections that send in rounds, so that the server's work is the same every time."""

import resource
import socket
from types import TracebackType

REQUEST = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 13\r\n\r\nHello, world!"
ANSWER_SECONDS = 120  # a server under valgrind that says nothing for so long has died


class Client:
    """Some connections to a server on this machine."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.connections: list[socket.socket] = []

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for connection in self.connections:
            connection.close()

    def connect(self, count: int) -> list[socket.socket]:
        """Open `count` connections; on return the server has taken in all but the last few.

        Servers take connections in the order they came, so an answer on the newest says that
        the older ones are in. It is asked for now and then, or the server's backlog overflows.
        """
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        fresh = []
        for number in range(1, count + 1):
            connection = socket.create_connection(("127.0.0.1", self.port), ANSWER_SECONDS)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            fresh.append(connection)
            if number % 256 == 0 or number == count:
                ask([connection], 1)
        self.connections += fresh
        return fresh


def ask(connections: list[socket.socket], rounds: int) -> None:
    """In each round send one request on every connection, then read every answer."""
    for _ in range(rounds):
        for connection in connections:
            connection.send(REQUEST)
        for connection in connections:
            answer = connection.recv(len(RESPONSE))
            while 0 < len(answer) < len(RESPONSE):
                answer += connection.recv(len(RESPONSE) - len(answer))
            if answer != RESPONSE:
                raise RuntimeError(f"the server answered {answer!r}")
