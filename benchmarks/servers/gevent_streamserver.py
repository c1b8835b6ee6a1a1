"""gevent's StreamServer: a greenlet for each connection, libev or libuv beneath."""

import socket

from gevent.server import StreamServer  # type: ignore[import-not-found, unused-ignore]

END = b"\r\n\r\n"
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 13\r\n\r\nHello, world!"


def serve(connection: socket.socket, address: object) -> None:
    while data := connection.recv(256):
        if data.endswith(END):
            connection.sendall(RESPONSE)


server = StreamServer(("127.0.0.1", 0), serve, backlog=4096)
server.start()
print(server.server_port, flush=True)
server.serve_forever()
