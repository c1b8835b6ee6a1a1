"""The package, with timers: danga_raw_timers.py pending|renewed.

Either one timer is always pending, or each connection has one that every event puts off.
"""

import socket
import sys

from danga_raw_server import END, RESPONSE, Connection, serve

from danga_raw import Socket

LATER = 3600


class Renewing(Connection):
    __slots__ = ("timeout",)

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self.timeout = self.loop.add_timer(LATER, self.close)

    def event_read(self) -> None:
        self.timeout.cancel()
        self.timeout = self.loop.add_timer(LATER, self.close)
        data = self.read(256)
        if data is None:
            self.close()
        elif data.endswith(END):
            self.write(RESPONSE)


if sys.argv[1] == "pending":
    Socket.AddTimer(LATER, sys.exit)
    serve(Connection)
else:
    serve(Renewing)
