"""Scripted backends, which record the requests they get."""

from __future__ import annotations

import re
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

from tests.perlbal.servers import PATIENCE

LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)


@dataclass(frozen=True)
class Answer:
    """What a backend does with a request."""

    data: bytes
    then: Literal["stay", "close", "reset"] = "stay"
    gate: str = ""
    """The name of a gate; the backend waits until the conversation opens it."""
    rest: bytes | None = None
    """Sent after `data` once the gate is open (`data` itself is then sent at once)."""
    pieces: tuple[bytes, ...] = ()
    """`data` in pieces, if it isn't sent in one go."""
    early: bool = False
    """Answers without waiting for the body of the request."""


OK = Answer(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nok")


@dataclass
class Script:
    """A backend's part in one conversation."""

    answers: deque[Answer] = field(default_factory=deque)
    verifications: deque[Answer] = field(default_factory=deque)
    """The answers to OPTIONS."""
    got: list[tuple[socket.socket, str]] = field(default_factory=list)
    connections: list[socket.socket] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)
    begun: int = 0
    """How many answers have been sent in part."""
    given: int = 0
    """How many answers have been sent."""
    ended: int = 0
    """How many connections the server has closed."""
    gates: dict[str, threading.Event] = field(default_factory=dict)
    over: bool = False

    def told(self) -> list[str]:
        """The requests on each connection, leaving out connections without any.

        They are in the order in which the connections were made, not in that of the requests: it
        is a matter of chance which of two threads first reports its request.
        """
        asked = [each for each in self.connections if any(each is one for one, _ in self.got)]
        return [
            f"#{number} {text}"
            for number, each in enumerate(asked, 1)
            for one, text in self.got
            if each is one
        ]


class Backend:
    """A listener whose connections are each served by a thread."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = int(self.listener.getsockname()[1])
        self.changed = threading.Condition()
        self.script = Script()
        self.acceptor = threading.Thread(target=self._accept, daemon=True)
        self.acceptor.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self.changed:
                script = self.script
                if script.over:
                    connection.close()
                    continue
                thread = threading.Thread(target=self._serve, args=(connection, script))
                thread.daemon = True
                script.connections.append(connection)
                script.threads.append(thread)
                thread.start()
                self.changed.notify_all()

    def begin(self) -> None:
        """Begin a new conversation."""
        with self.changed:
            self.script = Script()

    def end(self) -> None:
        """Close everything that the conversation left open."""
        with self.changed:
            script = self.script
            script.over = True
            for gate in script.gates.values():
                gate.set()
            for connection in script.connections:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
        for thread in script.threads:
            thread.join(PATIENCE)

    def close(self) -> None:
        """Stop listening. Calling it again does nothing."""
        if self.listener.fileno() < 0:
            return
        # A close doesn't wake accept(2) in another thread.
        self.listener.shutdown(socket.SHUT_RDWR)
        self.end()
        self.acceptor.join(PATIENCE)
        self.listener.close()

    def gate(self, name: str) -> threading.Event:
        with self.changed:
            return self.script.gates.setdefault(name, threading.Event())

    def wait(self, until: Callable[[Script], bool]) -> bool:
        """True if the condition was met in time."""
        with self.changed:
            return self.changed.wait_for(lambda: until(self.script), PATIENCE)

    def _serve(self, connection: socket.socket, script: Script) -> None:
        with connection:
            try:
                rest = b""
                while True:
                    rest = self._one_request(connection, script, rest)
            except (OSError, EOFError):
                pass
            with self.changed:
                script.ended += 1
                self.changed.notify_all()

    def _one_request(self, connection: socket.socket, script: Script, rest: bytes) -> bytes:
        while b"\r\n\r\n" not in rest:
            rest += receive(connection)
        head, _, rest = rest.partition(b"\r\n\r\n")
        head += b"\r\n\r\n"
        found = LENGTH.search(head)
        length = int(found[1]) if found else 0
        with self.changed:
            waiting = script.verifications if head.startswith(b"OPTIONS") else script.answers
            answer = waiting.popleft() if waiting else OK
        if not answer.early:
            while len(rest) < length:
                rest += receive(connection)
        body, rest = rest[:length], rest[length:]
        with self.changed:
            shown = head if answer.early else head + shorter(body)
            script.got.append((connection, shown.decode("latin-1")))
            self.changed.notify_all()
        self._give(connection, script, answer)
        with self.changed:
            script.given += 1
            self.changed.notify_all()
        if answer.early:
            missing = length - len(body)
            while len(rest) < missing:
                rest += receive(connection)
            rest = rest[missing:]
        return rest

    def _give(self, connection: socket.socket, script: Script, answer: Answer) -> None:
        if answer.gate:
            with self.changed:
                gate = script.gates.setdefault(answer.gate, threading.Event())
            if answer.rest is not None:
                connection.sendall(answer.data)
                with self.changed:
                    script.begun += 1
                    self.changed.notify_all()
            limit = time.monotonic() + PATIENCE
            while not gate.wait(0.01) and time.monotonic() < limit:
                with suppress(BlockingIOError):
                    if not connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT):
                        raise EOFError
            if script.over:
                raise EOFError
            connection.sendall(answer.data if answer.rest is None else answer.rest)
        else:
            for piece in answer.pieces or (answer.data,):
                connection.sendall(piece)
        if answer.then == "close":
            raise EOFError
        if answer.then == "reset":
            no_linger = struct.pack("ii", 1, 0)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, no_linger)
            raise EOFError


def receive(connection: socket.socket) -> bytes:
    data = connection.recv(1 << 16)
    if not data:
        raise EOFError
    return data


def shorter(data: bytes) -> bytes:
    """Replace a long body with its length and the sum of its bytes."""
    if len(data) <= 2000:
        return data
    return f"<{len(data)} bytes, sum {sum(data)}>".encode()
