"""examples/perlbal: the connections to backends that are made ahead, on a loop of this process."""

import socket
import time
from collections.abc import Callable, Iterator

import pytest

from danga_raw import Listener, Loop
from examples.perlbal.balancer import RETRY_SECONDS, Balancer
from examples.perlbal.language import Context
from examples.perlbal.server import Server

PATIENCE = 10.0


@pytest.fixture
def server() -> Iterator[Server]:
    with Loop() as loop:
        server = Server(loop)
        yield server
        for each in list(server.sockets()):
            each.close()


def balancer(server: Server, port: int) -> Balancer:
    """That of a proxy to the port, which has nothing to do yet."""
    said: list[str] = []
    lines = f"CREATE POOL a\nPOOL a ADD 127.0.0.1:{port}\nCREATE SERVICE p"
    lines += "\nSET role = reverse_proxy\nSET pool = a\nENABLE p"
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
