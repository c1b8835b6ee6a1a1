"""A soak: millions of requests through our Perlbal, while backends come and go.

    python -m tests.perlbal.soak [--requests 2000000] [--samples 10]

In each share of the requests one backend is added and the oldest ends: it closes its listener and
all its connections, and is removed from the pool only later. A request on its way to it is lost,
and its client is disconnected; these are counted. After each share, with no client connected, the
server's memory and descriptors are recorded. The run fails if they have grown from the first sample
to the last, if more requests were lost than can have been under way, or if the number of answers
that clients received differs from the number that backends sent.
"""

from __future__ import annotations

import argparse
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import ROOT, environment
from benchmarks.progress import Progress
from danga_raw import Listener, Loop, Socket
from tests.perlbal.servers import OURS, PATIENCE, Perlbal, quick_recv, serving
from tests.perlbal.steps import get

CLIENTS = 32
OF_THEIR_OWN = 20
"""One in this many requests asks for its connection to be closed."""

MEMORY_TOLERANCE = 1024 * 1024
"""How many bytes the resident memory may grow by, since the allocator's use varies."""

KEPT = 8
"""Idle connections to backends that the server keeps."""

CONFIGURATION = """
CREATE POOL far
CREATE SERVICE proxy
  SET role   = reverse_proxy
  SET listen = {proxy}
  SET pool   = far
  SET persist_client  = on
  SET persist_backend = on
  SET backend_persist_cache = KEPT
ENABLE proxy
""".replace("KEPT", str(KEPT))
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 13\r\n\r\nHello, world!"
END = b"\r\n\r\nHello, world!"


# --- a backend, in its own process ----------------------------------------------------------------


class Served(Socket):
    """A connection to a backend; requests without a body."""

    count = 0
    __slots__ = ("head",)

    def __init__(self, sock: socket.socket, loop: Loop) -> None:
        super().__init__(sock, loop)
        self.head = b""
        self.watch_read(True)

    def event_read(self) -> None:
        data = self.read(65536)
        if data is None:
            self.close()
            return
        self.head += data
        if self.head.endswith(b"\r\n\r\n"):
            self.head = b""
            Served.count += 1
            self.write(ANSWER)

    def event_err(self) -> None:
        self.close("error")

    event_hup = event_read


def serve() -> None:
    """Print the port, answer until SIGTERM, close everything, and print the number of requests."""
    loop = Loop()
    sock = socket.create_server(("127.0.0.1", 0), backlog=128)
    Listener(sock, lambda connection, _: Served(connection, loop), loop)
    loop.add_signal_handler(signal.SIGTERM, loop.stop)
    print(sock.getsockname()[1], flush=True)
    loop.run()
    loop.reset()
    print(Served.count, flush=True)


class Backend:
    """A backend's process."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.perlbal.soak", "--backend"],
            env=environment(ROOT),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.address = f"127.0.0.1:{int(self.process.stdout.readline())}"

    def end(self) -> int:
        """Make it close everything; return the number of requests it has answered."""
        self.process.terminate()
        told, _ = self.process.communicate(timeout=PATIENCE)
        return int(told)


# --- the clients ----------------------------------------------------------------------------------


class Clients:
    """Connections that each send a request, wait for the answer, and repeat."""

    def __init__(self, server: Perlbal) -> None:
        self.server = server
        self.asked = self.answered = self.lost = 0
        self.poll = select.poll()
        self.waiting: dict[int, tuple[socket.socket, bytes, bool]] = {}

    def ask(self, client: socket.socket | None = None) -> None:
        client = client or self.server.connect("proxy")
        self.asked += 1
        last = self.asked % OF_THEIR_OWN == 0
        self.waiting[client.fileno()] = client, b"", last
        self.poll.register(client, select.POLLIN)
        try:
            client.sendall(get("/", "Connection: close") if last else get("/"))
        except (BrokenPipeError, ConnectionResetError):
            pass  # the loop will report it

    def run(self, count: int) -> None:
        """Send this many requests, until each is answered or lost."""
        until = self.asked + count
        for _ in range(min(CLIENTS, count)):
            self.ask()
        while self.waiting:
            ready = self.poll.poll(PATIENCE * 1000)
            if not ready:
                raise RuntimeError(f"{len(self.waiting)} clients wait in vain")
            for fd, _ in ready:
                self._hear(fd, until)

    def _hear(self, fd: int, until: int) -> None:
        client, before, last = self.waiting[fd]
        try:
            data = quick_recv(client)
        except ConnectionResetError:
            data = b""
        heard = before + data
        if data and not heard.endswith(END):
            self.waiting[fd] = client, heard, last
            return
        del self.waiting[fd]
        self.poll.unregister(fd)
        whole = heard.startswith(b"HTTP/1.0 200 OK\r\n") and heard.endswith(END)
        self.answered += whole
        self.lost += not whole
        if whole and not last and self.asked < until:
            self.ask(client)
            return
        if whole and last and quick_recv(client):
            raise RuntimeError("more came behind the last answer")
        client.close()
        if self.asked < until:
            self.ask()


@dataclass(frozen=True)
class Sample:
    """The server's resources when no client is connected."""

    answered: int
    lost: int
    seconds: float
    memory: int
    descriptors: int

    def __str__(self) -> str:
        return (
            f"{self.answered:>10,} answered {self.lost:>6,} lost {self.seconds:8.0f} s "
            f"{self.memory // 1024:>8,} KiB {self.descriptors:>4} descriptors"
        )


def sample(server: Perlbal, clients: Clients, since: float, idle: int) -> Sample:
    limit = time.monotonic() + PATIENCE
    while server.descriptors() > idle and time.monotonic() < limit:
        time.sleep(0.05)
    spent = time.monotonic() - since
    return Sample(clients.answered, clients.lost, spent, server.memory(), server.descriptors())


def soak(requests: int, samples: int, progress: Progress) -> list[str]:
    """Send the requests in equal shares; return what is wrong, in words."""
    found: list[Sample] = []
    given = 0
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "f")
        place.mkdir()
        with serving(OURS, CONFIGURATION, place, {}, ("proxy",)) as server:
            clients = Clients(server)
            backends = deque(Backend() for _ in range(2))
            server.manage(*(f"POOL far ADD {backend.address}" for backend in backends))
            # The idle ones, and one per address that was opened for a client that has left.
            idle = server.descriptors() + KEPT + 3
            since = time.monotonic()
            progress.begin(samples)
            try:
                for number in range(1, samples + 1):
                    progress.step(f"{clients.asked:,} requests")
                    share = requests // samples
                    backends.append(Backend())
                    server.manage(f"POOL far ADD {backends[-1].address}")
                    clients.run(share // 3)
                    gone = backends.popleft()
                    gone.process.terminate()
                    clients.run(share // 3)
                    given += gone.end()
                    server.manage(f"POOL far REMOVE {gone.address}")
                    clients.run(share - 2 * (share // 3))
                    found.append(sample(server, clients, since, idle))
                    if progress.live:
                        progress.end()
                    print(found[-1], flush=True)
            finally:
                given += sum(backend.end() for backend in backends)
            told = server.manage("PROC")[0].split("reqs: ")[1].split()[0]
            said = server.said()
    wrong = []
    if given != clients.answered or clients.answered + clients.lost != clients.asked:
        wrong.append(f"{given:,} answers given, {clients.answered:,} got, {clients.lost:,} lost")
    if int(told) != clients.asked:
        wrong.append(f"{clients.asked:,} requests, of which the server counts {int(told):,}")
    if clients.lost > samples * CLIENTS:
        wrong.append(f"{clients.lost:,} lost, of {samples} times {CLIENTS} under way")
    if "Traceback" in said:
        wrong.append(said)
    if len(found) > 1:
        if (grown := found[-1].memory - found[0].memory) > MEMORY_TOLERANCE:
            wrong.append(f"{grown:,} bytes more memory than at the first sample")
        if (more := found[-1].descriptors - idle) > 0:
            wrong.append(f"{more} descriptors too many")
    return wrong


def main() -> None:
    if sys.argv[1:] == ["--backend"]:
        serve()
        return
    parser = argparse.ArgumentParser(
        prog="tests.perlbal.soak", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--requests", type=int, default=2_000_000)
    parser.add_argument("--samples", type=int, default=10)
    options = parser.parse_args()
    if wrong := soak(options.requests, options.samples, Progress()):
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
