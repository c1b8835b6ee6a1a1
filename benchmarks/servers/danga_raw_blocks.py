"""The package, writing through a small send buffer: danga_raw_blocks.py BYTES COUNT.

A request is answered by COUNT blocks of BYTES bytes, each written after the previous one is out.
"""

import socket
import sys

from danga_raw_server import END, Connection, serve

BLOCK, BLOCKS = bytes(int(sys.argv[1])), int(sys.argv[2])


class Sender(Connection):
    __slots__ = ("left",)

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        self.left = 0

    def event_read(self) -> None:
        data = self.read(256)
        if data is None:
            self.close()
        elif data.endswith(END):
            self.left = BLOCKS
            self.send_blocks()

    def event_write(self) -> None:
        if self.write(None):
            self.send_blocks()

    def send_blocks(self) -> None:
        while self.left:
            self.left -= 1
            if not self.write(BLOCK):
                break


serve(Sender)
