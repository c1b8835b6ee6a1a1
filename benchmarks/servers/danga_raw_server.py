"""The package itself."""

import socket
from collections.abc import Callable

from danga_raw import Socket

END = b"\r\n\r\n"
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 13\r\n\r\nHello, world!"


class Connection(Socket):
    __slots__ = ()

    def event_read(self) -> None:
        data = self.read(256)
        if data is None:
            self.close()
        elif data.endswith(END):
            self.write(RESPONSE)

    def event_err(self) -> None:
        self.close()

    def event_hup(self) -> None:
        self.close()


def serve(connect: Callable[[socket.socket], Connection]) -> None:
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    listener.setblocking(False)

    def accept(state: int) -> None:
        connection, _ = listener.accept()
        connection.setblocking(False)
        connect(connection).watch_read(True)

    Socket.AddOtherFds({listener.fileno(): accept})
    print(listener.getsockname()[1], flush=True)
    Socket.EventLoop()


if __name__ == "__main__":
    serve(Connection)
