"""Bytes to a reader that drains: stream.py package|blocking BLOCKS. Prints the seconds it took."""

import os
import socket
import sys
from time import perf_counter

from danga_raw import Loop, Socket

BLOCK = bytes(256 * 1024)


class Sender(Socket):
    __slots__ = ("left",)

    def __init__(self, sock: socket.socket, loop: Loop, blocks: int) -> None:
        super().__init__(sock, loop)
        self.left = blocks

    def more(self) -> None:
        """Write until something is queued; go on when that has been sent."""
        while self.left:
            self.left -= 1
            if not self.write(BLOCK):
                self.write(self.more)
                return
        assert isinstance(self.sock, socket.socket)
        self.sock.shutdown(socket.SHUT_WR)
        self.watch_read(True)

    def event_read(self) -> None:
        if self.read(1):
            self.loop.stop()

    def event_hup(self) -> None:
        """The reader exits once it has answered, possibly before we have read the answer."""


def package(sock: socket.socket, blocks: int) -> None:
    sock.setblocking(False)
    with Loop() as loop:
        Sender(sock, loop, blocks).more()
        loop.run()


def blocking(sock: socket.socket, blocks: int) -> None:
    for _ in range(blocks):
        sock.sendall(BLOCK)
    sock.shutdown(socket.SHUT_WR)
    sock.recv(1)


def drain(port: int, expected: int) -> None:
    """Read to the end, then answer with one byte if all of it came."""
    buffer = bytearray(1024 * 1024)
    with socket.create_connection(("127.0.0.1", port)) as sock:
        while count := sock.recv_into(buffer):
            expected -= count
        if not expected:
            sock.send(b"!")


def main(how: str, blocks: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        reader = os.fork()
        if not reader:
            drain(listener.getsockname()[1], blocks * len(BLOCK))
            os._exit(0)
        sock, _ = listener.accept()
    before = perf_counter()
    {"package": package, "blocking": blocking}[how](sock, blocks)
    print(perf_counter() - before)
    os.waitpid(reader, 0)


main(sys.argv[1], int(sys.argv[2]))
