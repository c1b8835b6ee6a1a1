"""asyncore as it lives on in the package pyasyncore, with its ``poll`` loop."""

import asyncore  # type: ignore[import-not-found, unused-ignore]
import socket

END = b"\r\n\r\n"
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 13\r\n\r\nHello, world!"


class Connection(asyncore.dispatcher):  # type: ignore[misc, unused-ignore]
    def writable(self) -> bool:
        return False

    def handle_read(self) -> None:
        if self.recv(256).endswith(END):
            self.send(RESPONSE)


class Listener(asyncore.dispatcher):  # type: ignore[misc, unused-ignore]
    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self.accepting = True

    def writable(self) -> bool:
        return False

    def handle_accepted(self, sock: socket.socket, addr: object) -> None:
        Connection(sock)


listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
print(listener.getsockname()[1], flush=True)
Listener(listener)
asyncore.loop(use_poll=True)
