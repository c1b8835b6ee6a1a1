"""The package, accepting with a Listener: all pending connections in a turn."""

import socket

from danga_raw_server import Connection

from danga_raw import Listener, Socket


def accepted(sock: socket.socket, address: object) -> None:
    Connection(sock).watch_read(True)


listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
Listener(listener, accepted)
print(listener.getsockname()[1], flush=True)
Socket.EventLoop()
