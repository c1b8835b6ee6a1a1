"""The package, with idle timeouts by one timer for all, as in docs/performance.md."""

import socket
from time import monotonic

from danga_raw_server import END, RESPONSE, Connection, serve

from danga_raw import Socket

IDLE_SECONDS = 60
SWEEP_SECONDS = 5


class Client(Connection):
    __slots__ = ("last_active",)

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self.last_active = monotonic()

    def event_read(self) -> None:
        self.last_active = monotonic()
        data = self.read(256)
        if data is None:
            self.close()
        elif data.endswith(END):
            self.write(RESPONSE)


def sweep() -> None:
    Socket.AddTimer(SWEEP_SECONDS, sweep)
    oldest = monotonic() - IDLE_SECONDS
    for client in list(Socket.DescriptorMap().values()):
        if isinstance(client, Client) and client.last_active < oldest:
            client.close()


sweep()
serve(Client)
