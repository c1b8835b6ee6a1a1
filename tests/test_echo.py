"""The echo server of the command line, `python3 -m danga_raw echo`, at the limits."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients import (
    FLOOD,
    PATIENCE,
    Server,
    children_end,
    failing_twice,
    flood,
    read_to_end,
)

BACKENDS = ["epoll", "poll"]
LITTLE_MEMORY = 8 * 1024 * 1024


@contextlib.contextmanager
def echoing(backend: str, descriptors: int = 0, wrapper: tuple[str, ...] = ()) -> Iterator[Server]:
    """The server in its own process; it must not write to standard error."""

    def limit() -> None:
        if descriptors:
            resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))

    with tempfile.NamedTemporaryFile() as errors:
        with subprocess.Popen(
            [*wrapper, sys.executable, "-m", "danga_raw", "echo"],
            cwd=Path(__file__).parent.parent,
            env={**os.environ, "DANGA_RAW_BACKEND": backend},
            stdout=subprocess.PIPE,
            stderr=errors,
            preexec_fn=limit,
        ) as process:
            try:
                assert process.stdout is not None
                greeting = process.stdout.readline().decode().strip()
                yield Server(process, greeting, Path(errors.name))
            finally:
                process.kill()
        assert Path(errors.name).read_text() == ""


def echoed(client: socket.socket, data: bytes) -> bool:
    client.sendall(data)
    got = b""
    while len(got) < len(data) and (piece := client.recv(len(data) - len(got))):
        got += piece
    return got == data


def silent(client: socket.socket) -> bool:
    client.setblocking(False)
    with pytest.raises(BlockingIOError):
        client.recv(1)
    client.settimeout(PATIENCE)
    return True


@pytest.mark.parametrize("backend", BACKENDS)
def test_connected_clients_are_served_at_the_descriptor_limit_and_others_wait(backend: str) -> None:
    limit = 24
    with echoing(backend, limit) as server, contextlib.ExitStack() as stack:
        room = limit - server.descriptors()
        clients = [stack.enter_context(server.connect()) for _ in range(room + 4)]
        for client in clients[:room]:
            assert echoed(client, b"first")
        before = server.cpu_seconds()
        time.sleep(1)
        # It checks five times a second whether there is room; a spin would take all the time.
        assert server.cpu_seconds() - before < 0.5
        for client in clients[room:]:
            client.sendall(b"let me in")
        for client in clients[:room]:
            assert echoed(client, b"second" * 10_000)
        assert all(silent(client) for client in clients[room:])
        for leaves, comes in zip(clients, clients[room:]):
            leaves.close()
            assert comes.recv(100) == b"let me in"
        for client in clients[4:]:
            assert echoed(client, b"third")


@pytest.mark.parametrize("backend", BACKENDS)
def test_client_that_does_not_read_is_not_read_from(backend: str) -> None:
    with echoing(backend) as server, server.connect() as client, server.connect() as other:
        assert echoed(other, b"x" * 100_000)
        before = server.peak_memory()
        sent = flood(client, bytes(1 << 16), lambda: echoed(other, b"x"))
        assert sent < FLOOD
        assert server.peak_memory() - before < LITTLE_MEMORY


@pytest.mark.needs("strace")
@pytest.mark.parametrize("change", [4, 5])
def test_lack_of_descriptors_and_of_poller_entries_does_not_end_the_server(change: int) -> None:
    with echoing("epoll", wrapper=failing_twice(change)) as server, children_end(server):
        with server.connect() as client:
            assert echoed(client, b"hello")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_server_prints_its_totals_at_the_end(backend: str, number: int) -> None:
    with echoing(backend) as server:
        with server.connect() as client:
            assert echoed(client, b"hello")
            client.shutdown(socket.SHUT_WR)
            assert read_to_end(client) == b""
        assert server.stop(number) == 0
        assert server.process.stdout is not None
        assert server.process.stdout.read() == b"1 connections, 5 bytes echoed\n"
