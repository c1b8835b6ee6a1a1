"""The example servers in processes of their own, and simple clients that talk to them."""

import contextlib
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"

PATIENCE = 60.0
"""Seconds after which something that should have arrived is considered lost."""


class Server:
    """A running example server."""

    def __init__(self, process: subprocess.Popen[bytes], greeting: str, errors: Path) -> None:
        self.process = process
        self.greeting = greeting
        self.port = int(greeting.rstrip("/").rpartition(":")[2])
        self.errors = errors

    def connect(self, receive_buffer: int = 0) -> socket.socket:
        client = socket.socket()
        if receive_buffer:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        client.settimeout(PATIENCE)
        client.connect(("127.0.0.1", self.port))
        return client

    def talk(self, *pieces: bytes) -> bytes:
        """Everything that the server answers to `pieces`, sent one by one, until it hangs up."""
        with self.connect() as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # The server may have finished and closed before everything is sent.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                for piece in pieces:
                    client.sendall(piece)
                client.shutdown(socket.SHUT_WR)
            return read_to_end(client)

    def peak_memory(self) -> int:
        """Its largest resident size so far, in bytes."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("no VmHWM in /proc")

    def cpu_seconds(self) -> float:
        times = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK")

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it by a signal, and return its exit code."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)


@contextlib.contextmanager
def serving(
    script: str,
    *arguments: str,
    backend: str = "",
    descriptors: int = 0,
    wrapper: tuple[str, ...] = (),
) -> Iterator[Server]:
    """Run an example, which must never write to standard error."""

    def limit() -> None:
        if descriptors:
            resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))

    environment = dict(os.environ)
    if backend:
        environment["DANGA_RAW_BACKEND"] = backend
    with tempfile.NamedTemporaryFile() as errors:
        with subprocess.Popen(
            [*wrapper, sys.executable, str(EXAMPLES / script), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment,
            preexec_fn=limit,
        ) as process:
            try:
                assert process.stdout is not None
                greeting = process.stdout.readline().decode().strip()
                assert greeting.startswith("listening on "), Path(errors.name).read_text()
                yield Server(process, greeting, Path(errors.name))
                assert process.poll() is None or process.returncode in (0, -15, -2)
            finally:
                process.kill()
        assert Path(errors.name).read_text() == ""


def failing_twice(change: int) -> tuple[str, ...]:
    """A wrapper for `serving`: the first accept(2) fails with EMFILE, and epoll_ctl(2) number
    `change` with ENOSPC, so that a listener can't be watched as it should."""
    return (
        *("strace", "-f", "-o", os.devnull, "-e", "trace=accept4,epoll_ctl"),
        *("-e", "inject=accept4:error=EMFILE:when=1"),
        *("-e", f"inject=epoll_ctl:error=ENOSPC:when={change}"),
    )


@contextlib.contextmanager
def children_end(server: Server) -> Iterator[None]:
    """Ends the children of a wrapper, which would go on without it."""
    tasks = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
    children = [int(child) for child in tasks.read_text().split()]
    try:
        yield
    finally:
        for child in children:
            os.kill(child, signal.SIGTERM)
        server.process.wait(PATIENCE)


def failing(script: str, *arguments: str) -> tuple[int, str]:
    """Run an example that can't start: its exit code and its error message."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / script), *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    return done.returncode, done.stderr


def read_to_end(client: socket.socket) -> bytes:
    pieces = []
    while piece := client.recv(1 << 16):
        pieces.append(piece)
    return b"".join(pieces)


FLOOD = 64 * 1024 * 1024
"""More bytes than fit into all buffers between a client and a server."""

TURNS = 1000
"""By then, a reading server has made room for the client: the kernel opens the window late."""


def flood(client: socket.socket, data: bytes, others: Callable[[], object]) -> int:
    """Send `data` repeatedly without reading, until no more is accepted; how many bytes that was.

    `others` makes the server answer another client, so that it has had its turns in between.
    """
    client.setblocking(False)
    sent = refused = 0
    while sent < FLOOD and refused < TURNS:
        try:
            sent += client.send(data[sent % len(data) :])
            refused = 0
        except BlockingIOError:
            refused += 1
            others()
    client.settimeout(PATIENCE)
    return sent


def split(data: bytes, chooser: random.Random, cuts: int) -> list[bytes]:
    """`data` in pieces, cut at random points."""
    points = [0, *sorted(chooser.randrange(len(data) + 1) for _ in range(cuts)), len(data)]
    return [data[start:end] for start, end in zip(points, points[1:]) if start < end]


class Answer(NamedTuple):
    """An HTTP answer as a client sees it."""

    status: int
    fields: dict[str, str]
    body: bytes


def read_answer(client: socket.socket, to_head: bool = False, body: bool = True) -> Answer:
    """Read exactly one answer."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = client.recv(1)
        assert byte, f"the server hung up in the middle of {head!r}"
        head += byte
    status, fields = parse_head(head)
    content = b""
    if body and not to_head and status != 304:
        length = int(fields["content-length"])
        while len(content) < length:
            piece = client.recv(length - len(content))
            assert piece, f"the server hung up after {len(content)} of {length} bytes"
            content += piece
    return Answer(status, fields, content)


def parse_head(head: bytes) -> tuple[int, dict[str, str]]:
    first, *lines = head.decode("ascii").removesuffix("\r\n\r\n").split("\r\n")
    version, status, _ = first.split(" ", 2)
    assert version == "HTTP/1.1"
    pairs = [line.split(": ", 1) for line in lines]
    return int(status), {name.lower(): value for name, value in pairs}


def answers(data: bytes, heads: tuple[int, ...] = ()) -> list[Answer]:
    """All the answers in `data`; those numbered in `heads` are to HEAD and so have no body."""
    found: list[Answer] = []
    while data:
        head, end, data = data.partition(b"\r\n\r\n")
        assert end, f"half an answer: {head!r}"
        status, fields = parse_head(head)
        bodiless = status == 304 or len(found) in heads
        length = 0 if bodiless else int(fields["content-length"])
        assert len(data) >= length
        found.append(Answer(status, fields, data[:length]))
        data = data[length:]
    return found
