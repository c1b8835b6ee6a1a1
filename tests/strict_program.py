"""A program as a user of strict type checkers would write it, without a cast or an ignored error.
mypy and pyright check it with the rest, and `test_types.py` runs it."""

from __future__ import annotations

import os
import signal
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from io import FileIO
from typing import TypeVar

from danga_raw import Listener, Loop, Socket, Timer, log_exception
from danga_raw.types import Handle, SocketAddress, Writable

AnyHandle = TypeVar("AnyHandle", bound=Handle)


class Reader(Socket[AnyHandle], ABC):
    """Still generic in its handle, and abstract."""

    def __init__(self, sock: AnyHandle, loop: Loop) -> None:
        super().__init__(sock, loop)
        self.idle: Timer = loop.add_timer(60, self.time_out)

    def time_out(self) -> None:
        self.close("idle")

    @abstractmethod
    def got(self, data: bytes) -> None: ...

    def event_read(self) -> None:
        data = self.read(4096)
        if data is None:
            self.close("end")
        else:
            self.got(data)

    def event_hup(self) -> None:
        self.event_read()

    def event_err(self) -> None:
        self.close("error")

    def close(self, reason: str | None = None) -> None:
        self.idle.cancel()
        super().close(reason)


class Pipe(Reader[FileIO]):
    __slots__ = ("chunks",)

    def __init__(self, sock: FileIO, loop: Loop) -> None:
        super().__init__(sock, loop)
        self.chunks: list[bytes] = []
        self.watch_read(True)

    def got(self, data: bytes) -> None:
        self.chunks.append(data)

    def mode(self) -> str | None:
        return None if self.sock is None else self.sock.mode


class Upper(Reader[socket.socket]):
    def __init__(self, sock: socket.socket, server: Server) -> None:
        super().__init__(sock, server.loop)
        self.server = server
        self.watch_read(True)

    def got(self, data: bytes) -> None:
        if not self.write(data.upper()):
            self.watch_read(False)

    def event_write(self) -> None:
        if self.write(None):
            self.watch_read(True)


class Client(Socket):
    """Without type arguments: its handle is a `socket.socket`."""

    def __init__(self, sock: socket.socket, loop: Loop, *, greeting: Writable) -> None:
        super().__init__(sock, loop)
        self.answer = b""
        self.write(greeting)

    def event_connect(self, error: OSError | None) -> None:
        if error is None:
            self.watch_read(True)

    def event_read(self) -> None:
        self.answer += self.read(100) or b""
        if self.answer.endswith(b"\n"):
            self.loop.stop()


class Quiet(Loop):
    """A subclass of `Loop`; `with` returns it with its own type."""

    patience = 60.0


class Server:
    def __init__(self, loop: Loop, sock: socket.socket) -> None:
        self.loop = loop
        self.peers: set[str] = set()
        self.listener: Listener | None = Listener(sock, self.accepted, loop)
        loop.on_exception = self.failed
        loop.set_post_loop_callback(self.after)
        loop.add_signal_handler(signal.SIGTERM, self.stop)

    def accepted(self, connection: socket.socket, address: object) -> None:
        match address:
            case (str(host), int()):
                self.peers.add(host)
            case _:
                pass
        Upper(connection, self)

    def failed(self, obj: Socket | None, error: Exception) -> None:
        log_exception(obj, error)

    def after(
        self, sockets: Mapping[int, Socket], others: Mapping[int, Callable[[int], object]]
    ) -> bool:
        for obj in sockets.values():
            if obj.peer_ip_string() is not None and obj.write_buf_size > 1_000_000:
                obj.close("slow")
        return bool(sockets)

    def stop(self) -> None:
        if self.listener is not None:
            handle: socket.socket | None = self.listener.steal_socket()
            if handle is not None:
                handle.close()
        self.loop.stop()


def main() -> None:
    here, there = os.pipe()
    os.set_blocking(here, False)
    with Quiet() as loop, socket.create_server(("127.0.0.1", 0)) as sock:
        loop.add_timer(loop.patience, loop.stop)
        server = Server(loop, sock)
        pipe = Pipe(FileIO(here), loop)
        os.write(there, b"logged")
        address: SocketAddress = sock.getsockname()
        client = Client.connect(address, loop, greeting=b"hello\n", timeout=5.0)
        loop.call_soon_threadsafe(lambda: None)
        loop.run()
        print(client.answer, pipe.chunks, pipe.mode(), server.peers)
        for obj in list(loop.descriptor_map.values()):
            obj.close("done")
    os.close(there)


if __name__ == "__main__":
    main()
