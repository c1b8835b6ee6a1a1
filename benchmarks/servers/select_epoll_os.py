"""The same loop over ``os.read`` and ``os.write``, which cost less than a socket's methods."""

import os
import select
import socket

END = b"\r\n\r\n"
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 13\r\n\r\nHello, world!"


def main() -> None:
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    listener.setblocking(False)
    listening = listener.fileno()
    poller = select.epoll()
    poller.register(listening, select.EPOLLIN)
    connections: dict[int, socket.socket] = {}
    print(listener.getsockname()[1], flush=True)
    while True:
        for fd, _ in poller.poll():
            if fd == listening:
                connection, _ = listener.accept()
                connection.setblocking(False)
                connections[connection.fileno()] = connection
                poller.register(connection, select.EPOLLIN)
            else:
                data = os.read(fd, 256)
                if data.endswith(END):
                    os.write(fd, RESPONSE)
                elif not data:
                    connections.pop(fd).close()


main()
