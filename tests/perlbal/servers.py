"""A Perlbal, the original or ours, in its own process, with ports chosen by the kernel."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.clients import EXAMPLES

ORIGINAL = ("perlbal", "--config")
OURS = (sys.executable, str(EXAMPLES / "perlbal"))

START = 15.0
"""Seconds until the management port must be open."""

PATIENCE = 10.0
"""Seconds after which a missing answer counts as lost."""

# Perlbal's answers depend on whether IO::AIO is installed, which Debian's package recommends: with
# it, the body of a request may arrive before a file is found to be missing.
MANAGEMENT = """
SERVER aio_mode = none
CREATE SERVICE management
  SET role   = management
  SET listen = {management}
ENABLE management
"""


class Gone(Exception):
    """A server ended instead of starting. The argument is its output."""


class Perlbal:
    """A running server."""

    def __init__(
        self, process: subprocess.Popen[bytes], ports: Mapping[str, int], output: Path
    ) -> None:
        self.process = process
        self.ports = ports
        self.output = output

    def connect(self, service: str, source: str = "127.0.0.1", buffer: int = 0) -> socket.socket:
        """Connect to one of its services, from a loopback address."""
        client = socket.socket()
        try:
            client.settimeout(PATIENCE)
            if buffer:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
            if source != "127.0.0.1":
                client.bind((source, 0))
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client.connect(("127.0.0.1", self.ports[service]))
        except OSError:
            client.close()
            raise
        return client

    def manage(self, *lines: str) -> list[str]:
        """The management port's answers to these lines, on a new connection."""
        with Management(self) as management:
            return [management.ask(line) for line in lines]

    def memory(self, field: str = "VmRSS") -> int:
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
        raise AssertionError(f"no {field} in /proc")

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def cpu_seconds(self) -> float:
        times = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK")

    def said(self) -> str:
        """Its standard output and standard error so far."""
        return self.output.read_text("latin-1")


class Management:
    """A connection to the management port."""

    MARK = "thatisall"
    """An unknown command: everything before the error that names it is one whole answer."""

    def __init__(self, server: Perlbal) -> None:
        self.socket = server.connect("management")
        self.rest = b""

    def __enter__(self) -> Management:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def ask(self, line: str) -> str:
        self.socket.sendall(f"{line}\r\n{self.MARK}\r\n".encode())
        end = f"ERROR: unknown command: {self.MARK}\r\n".encode()
        while end not in self.rest:
            piece = quick_recv(self.socket)
            if not piece:
                answer, self.rest = self.rest, b""
                return answer.decode("latin-1") + "<closed>"
            self.rest += piece
        answer, _, self.rest = self.rest.partition(end)
        return answer.decode("latin-1")


def quick_recv(connection: socket.socket) -> bytes:
    """The next data, acknowledged at once: a server that writes line by line without TCP_NODELAY
    waits for the acknowledgement, which would be 40 ms late each time."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
    return connection.recv(1 << 16)


@contextmanager
def reserved_ports(names: Sequence[str]) -> Iterator[dict[str, int]]:
    """A free port for each name.

    They stay bound here, so that the kernel gives none of them to another connection before the
    server has them. The server can still listen, since both have SO_REUSEADDR and we don't listen.
    """
    with ExitStack() as held:
        ports = {}
        for name in names:
            holder = held.enter_context(socket.socket())
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            holder.bind(("127.0.0.1", 0))
            ports[name] = int(holder.getsockname()[1])
        yield ports


def ended(process: subprocess.Popen[bytes], seconds: float) -> bool:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


@contextmanager
def serving(
    command: Sequence[str],
    configuration: str,
    folder: Path,
    ports: Mapping[str, int],
    services: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    wrapper: Sequence[str] = (),
) -> Iterator[Perlbal]:
    """Start a server and wait for its management port, which is added to the configuration.

    Each of `services` gets a port; `ports` are those of backends and dead ends. In the
    configuration, {name} stands for 127.0.0.1 and the port of that name, {folder} for the folder.
    """
    with reserved_ports([*services, "management"]) as own:
        known = {**ports, **own}
        file = folder.parent / f"{folder.name}.conf"
        addresses = {name: f"127.0.0.1:{port}" for name, port in known.items()}
        file.write_text((configuration + MANAGEMENT).format(folder=folder, **addresses))
        output = folder.parent / f"{folder.name}.out"
        with output.open("wb") as out:
            process = subprocess.Popen(
                [*wrapper, *command, str(file)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                cwd=folder.parent,
                env={**os.environ, **(environment or {})},
            )
        server = Perlbal(process, known, output)
        try:
            if not wait_for(server):
                raise Gone(server.said())
            yield server
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.wait()


def wait_for(server: Perlbal) -> bool:
    """True if it answers on its management port."""
    limit = time.monotonic() + START
    while time.monotonic() < limit:
        try:
            server.connect("management").close()
        except ConnectionRefusedError:
            if ended(server.process, 0.02):
                return False
        else:
            return True
    return False
