"""A conversation: steps taken by clients, backends and a manager, and what each of them received.

It runs against two servers with the same configuration, and the received bytes must be equal,
except for ports, folders and today's date.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.perlbal.backends import Backend, shorter
from tests.perlbal.servers import PATIENCE, Management, Perlbal, ended, quick_recv, serving

Transcript = dict[str, list[str]]
"""Participant -> what it received, in order."""


@dataclass(frozen=True)
class Setting:
    """The configuration of a server, and what it needs around it."""

    name: str
    configuration: str
    """Names in braces stand for addresses of services, backends and dead ends; {folder} for the
    folder."""
    services: tuple[str, ...]
    backends: tuple[str, ...] = ()
    dead: tuple[str, ...] = ()
    """Addresses where nobody listens."""
    files: Mapping[str, bytes] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)

    def at(self, service: str) -> ServiceSetting:
        return ServiceSetting(self, service)


@dataclass(frozen=True)
class ServiceSetting:
    """A setting, and the service that clients talk to by default."""

    setting: Setting
    service: str


class Lost(Exception):
    """Expected data did not arrive."""


class LiveConversation:
    """One conversation with one server, while it runs."""

    def __init__(self, deployment: Deployment, service: str) -> None:
        self.deployment = deployment
        self.service = service
        self.server = deployment.server
        self.transcript: Transcript = {}
        self.clients: dict[str, Client] = {}
        self._management: Management | None = None

    def note(self, who: str, what: str) -> None:
        self.transcript.setdefault(who, []).append(what)

    def client(self, name: str) -> Client:
        """The client of this name; a new one if there is none, or if it has left."""
        if name not in self.clients:
            self.clients[name] = Client(self, name)
        return self.clients[name]

    def backend(self, name: str) -> Backend:
        return self.deployment.backends[name]

    def management(self) -> Management:
        if self._management is None:
            self._management = Management(self.server)
        return self._management

    def barrier(self) -> None:
        """Wait until the server has handled everything sent so far, or has ended."""
        try:
            for _ in range(2):
                self.management().ask("proc")
        except ConnectionError:
            if not ended(self.server.process, PATIENCE):
                raise

    def end(self) -> None:
        for client in self.clients.values():
            client.end()
        for name, backend in self.deployment.backends.items():
            backend.end()
            if backend.script.got:
                self.transcript[f"backend {name}"] = backend.script.told()
        if self.server.process.poll() is None:
            self.barrier()
        if self._management:
            self._management.socket.close()


Step = Callable[[LiveConversation], None]


class Client:
    """A connection to a service."""

    def __init__(
        self,
        talk: LiveConversation,
        name: str,
        service: str = "",
        source: str = "127.0.0.1",
        buffer: int = 0,
    ) -> None:
        self.talk = talk
        self.name = name
        service = service or talk.service
        self.socket = talk.server.connect(service, source, buffer)
        self.rest = b""
        self.asked_head = False
        self.closed = False

    def note(self, what: str) -> None:
        self.talk.note(self.name, what)

    def send(self, data: bytes) -> None:
        self.asked_head = data.startswith(b"HEAD ")
        # The server may be gone before it has read everything.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.socket.sendall(data)

    def receive(self) -> bytes:
        """The next data; empty at the end."""
        if self.closed:
            return b""
        try:
            data = quick_recv(self.socket)
        except (ConnectionResetError, BrokenPipeError):
            data = b""
        except (TimeoutError, BlockingIOError):
            raise Lost(f"{self.name} waits in vain, and has {self.rest!r}") from None
        self.closed = not data
        return data

    def hear(self) -> None:
        """Read one answer, and on to the end of the connection if the answer announces that or is
        ended by it."""
        while b"\r\n\r\n" not in self.rest:
            piece = self.receive()
            self.rest += piece
            if not piece:
                self.note(self.rest.decode("latin-1") + "<closed>")
                self.rest = b""
                return
        head, _, self.rest = self.rest.partition(b"\r\n\r\n")
        head += b"\r\n\r\n"
        if re.match(rb"HTTP/1\.\d 1\d\d", head):
            self.note(head.decode("latin-1"))
            self.hear()
            return
        length = re.search(rb"\r\ncontent-length: *(\d+)\r\n", head, re.IGNORECASE)
        closes = re.search(rb"\r\nconnection: *close\r\n", head, re.IGNORECASE)
        bodiless = self.asked_head or re.match(rb"HTTP/1\.\d (204|304)", head)
        if closes or (not length and not bodiless):
            while piece := self.receive():
                self.rest += piece
            body, self.rest = self.rest, b""
        else:
            wanted = int(length[1]) if length and not bodiless else 0
            while len(self.rest) < wanted and (piece := self.receive()):
                self.rest += piece
            body, self.rest = self.rest[:wanted], self.rest[wanted:]
        closed = "<closed>" if self.closed else ""
        self.note(head.decode("latin-1") + shorter(body).decode("latin-1") + closed)

    def end(self) -> None:
        """Close; note the unread data and whether the connection was still open."""
        if self.socket.fileno() < 0:
            return
        if self.talk.server.process.poll() is None:
            self.talk.barrier()
        self.socket.setblocking(False)
        with contextlib.suppress(Lost):
            while piece := self.receive():
                self.rest += piece
        state = "<closed>" if self.closed else "<open>"
        self.note(shorter(self.rest).decode("latin-1") + state)
        self.socket.close()


class Deployment:
    """A server with some configuration, and everything around it."""

    def __init__(
        self, setting: Setting, server: Perlbal, backends: Mapping[str, Backend], folder: Path
    ) -> None:
        self.setting = setting
        self.server = server
        self.backends = backends
        self.folder = folder

    def hold(self, steps: Sequence[Step], service: str) -> Transcript:
        """Run a conversation, and return what each participant received."""
        for backend in self.backends.values():
            backend.begin()
        talk = LiveConversation(self, service)
        try:
            for step in steps:
                step(talk)
        except (Lost, TimeoutError, ConnectionError) as lost:
            talk.note("lost", f"{type(lost).__name__}: {lost}")
        finally:
            with contextlib.suppress(TimeoutError, ConnectionError):
                talk.end()
        return {
            who: [self.plain(each) for each in got] for who, got in sorted(talk.transcript.items())
        }

    def plain(self, text: str) -> str:
        """Replace what differs from run to run."""
        for name, port in self.server.ports.items():
            text = re.sub(rf"(?<!\d){port}(?!\d)", f"<{name}>", text)
        text = text.replace(str(self.folder), "<folder>")
        return re.sub(r"(?m)^Date: [A-Z][a-z]{2}, [^\r]* GMT\r$", "Date: <now>\r", text)


@contextlib.contextmanager
def deployment(
    setting: Setting, command: Sequence[str], folder: Path, wrapper: Sequence[str] = ()
) -> Iterator[Deployment]:
    """Start the backends and the server of a setting. The server must have printed no traceback at
    the end."""
    folder.mkdir(parents=True)
    for name, content in setting.files.items():
        write(folder / name, content)
    for each in folder.rglob("*"):
        os.utime(each, (MODIFIED, MODIFIED))
    with contextlib.ExitStack() as stack:
        backends = {name: Backend() for name in setting.backends}
        for backend in backends.values():
            stack.callback(backend.close)
        ports = {name: backend.port for name, backend in backends.items()}
        for name in setting.dead:
            # Bound, so that no other program gets the port; it refuses, because it doesn't listen.
            dead = stack.enter_context(socket.socket())
            dead.bind(("127.0.0.1", 0))
            ports[name] = dead.getsockname()[1]
        server = stack.enter_context(
            serving(
                command,
                setting.configuration,
                folder,
                ports,
                setting.services,
                setting.environment,
                wrapper,
            )
        )
        yield Deployment(setting, server, backends, folder)
        assert "Traceback" not in server.said(), server.said()


MODIFIED = 1_000_000_000
"""The modification time of all files of a setting."""


def write(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    os.utime(file, (MODIFIED, MODIFIED))
