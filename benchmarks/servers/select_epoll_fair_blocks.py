"""The fair loop, writing as danga_raw_blocks.py does: select_epoll_fair_blocks.py BYTES COUNT."""

import socket
import sys

from select_epoll_fair import END, Connection, serve

BLOCK, BLOCKS = bytes(int(sys.argv[1])), int(sys.argv[2])


class Sender(Connection):
    __slots__ = ("left",)

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        self.left = 0

    def readable(self) -> None:
        data = self.sock.recv(256)
        if data.endswith(END):
            self.left = BLOCKS
            self.send_blocks()
        elif not data:
            self.close()

    def writable(self) -> None:
        super().writable()
        if not self.unsent:
            self.send_blocks()

    def send_blocks(self) -> None:
        while self.left and not self.unsent:
            self.left -= 1
            self.send(BLOCK)


serve(Sender)
