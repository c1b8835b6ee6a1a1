"""examples/perlbal: what is seen of its server only from within, or before it runs."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from danga_raw import Listener, Loop
from examples.perlbal import pools
from examples.perlbal.balancer import RETRY_SECONDS, Balancer
from examples.perlbal.language import Context
from examples.perlbal.server import Server
from examples.perlbal.webserver import NewFile
from tests.perlbal.servers import OURS

PATIENCE = 10.0


@pytest.fixture
def server() -> Iterator[Server]:
    with Loop() as loop:
        server = Server(loop)
        yield server
        server.stopping = True  # Or what is closed is made again.
        for each in list(server.sockets()):
            each.close()


def balancer(server: Server, port: int) -> Balancer:
    """That of a proxy to the port, which has nothing to do yet."""
    said: list[str] = []
    lines = f"CREATE POOL a\nPOOL a ADD 127.0.0.1:{port}\nCREATE SERVICE p"
    lines += "\nSET role = reverse_proxy\nSET pool = a\nSET listen = 127.0.0.1:0\nENABLE p"
    context = Context(verbose=False)
    for line in lines.split("\n"):
        assert server.language.run(line, said.append, context), said
    return server.services["p"].balancer


def turn(server: Server, until: Callable[[], bool]) -> None:
    """Let the loop run until it is so."""
    limit = server.loop.add_timer(PATIENCE, server.loop.stop)
    server.loop.set_post_loop_callback(lambda *_: not until())
    server.loop.run()
    limit.cancel()
    assert until()


def test_as_many_connections_are_made_ahead_as_are_asked_for(server: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as backend:
        queues = balancer(server, backend.getsockname()[1])
        server.services["p"].set("connect_ahead", "3")
        turn(server, lambda: len(queues.bored) == 3)
        assert [stats.attempts for stats in server.nodes.values()] == [3]


def test_a_node_that_ends_new_connections_at_once_is_left_alone_for_a_second(
    server: Server,
) -> None:
    backend = socket.create_server(("127.0.0.1", 0))
    balancer(server, backend.getsockname()[1])
    Listener(backend, lambda connection, address: connection.close(), server.loop)
    began = time.monotonic()
    server.services["p"].set("connect_ahead", "1")
    (stats,) = server.nodes.values()
    turn(server, lambda: stats.attempts > 1)
    assert (time.monotonic() - began) / RETRY_SECONDS > 1
    assert stats.attempts == 2


def test_a_nodefile_that_has_changed_counts_for_the_next_request(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "NODEFILE_CHECK_SECONDS", -1.0)
    file = tmp_path / "nodes"
    with ExitStack() as stack:
        old, new = (
            stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
            for _ in range(2)
        )
        queues = balancer(server, old)
        server.services["p"].set("connect_ahead", "1")
        turn(server, lambda: len(queues.bored) == 1)
        file.write_text(f"127.0.0.1:{old}\n")
        server.pools["a"].set("nodefile", str(file))
        file.write_text(f"127.0.0.1:{new}\n")
        os.utime(file, (1, 1))
        listener = server.services["p"].listener
        assert listener is not None and listener.sock is not None
        client = stack.enter_context(socket.create_connection(listener.sock.getsockname()))
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        turn(server, lambda: any(server.pools["a"].used.values()))
        assert server.pools["a"].used == {f"127.0.0.1:{new}": 1}


@pytest.mark.parametrize("heard", [True, False], ids=["heard", "with nobody who reads"])
def test_a_sigterm_while_it_starts_ends_it_once_it_has(tmp_path: Path, heard: bool) -> None:
    slow, pidfile = tmp_path / "slow.conf", tmp_path / "pid"
    os.mkfifo(slow)
    file = tmp_path / "perlbal.conf"
    file.write_text(
        f"SERVER pidfile = {pidfile}\nLOAD include\nSHOW SERVICE\nINCLUDE = {slow}\n"
        "CREATE SERVICE w\nSET role = web_server\nSET listen = 127.0.0.1:0\nENABLE w\n"
    )
    reader, writer = os.pipe()
    if not heard:
        os.close(reader)
    with subprocess.Popen([*OURS, str(file)], stdout=writer, stderr=writer) as server:
        os.close(writer)
        end = -1
        while end < 0 and server.poll() is None:
            with suppress(OSError):  # That there is nobody who reads it, yet.
                end = os.open(slow, os.O_WRONLY | os.O_NONBLOCK)
            time.sleep(0.01)
        server.send_signal(signal.SIGTERM)
        if end >= 0:
            os.close(end)
        assert server.wait(PATIENCE) == 0
    assert not pidfile.exists()
    if heard:
        with open(reader, "rb") as output:
            assert output.read() == b".\nRunning.\n"


def test_a_put_makes_more_folders_than_python_calls_itself(tmp_path: Path) -> None:
    (tmp_path / "stays").touch()
    folder = f"{tmp_path}{'/d' * 1200}"
    new = NewFile(f"{folder}/x", "")
    new.write(b"deep")
    try:
        assert new.finish() == (200, "")
        assert os.stat(f"{folder}/x").st_size == 4
    finally:
        os.unlink(f"{folder}/x")
        os.removedirs(folder)  # What tidies up behind tests calls itself too.
