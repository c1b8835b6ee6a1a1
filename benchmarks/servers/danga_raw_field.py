"""The package, with a subclass that adds one field, as real ones do, to measure memory."""

import socket

from danga_raw_server import Connection, serve


class Counted(Connection):
    __slots__ = ("requests",)

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self.requests = 0

    def event_read(self) -> None:
        self.requests += 1
        super().event_read()


serve(Counted)
