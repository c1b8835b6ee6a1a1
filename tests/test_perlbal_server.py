"""examples/perlbal: what can be seen of its server only from inside, or before it runs."""

import errno
import fcntl
import gc
import inspect
import os
import re
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from danga_raw import Listener, Loop, log_exception
from danga_raw.types import Block
from examples.perlbal import pools, proxy
from examples.perlbal.backends import KERNEL_BUFFER, BackendHTTP
from examples.perlbal.balancer import MAX_UNUSED, RETRY_SECONDS, UNVERIFIED_SECONDS, Balancer
from examples.perlbal.clients import Client, Exchange
from examples.perlbal.files import NewFile, open_file
from examples.perlbal.heads import Head
from examples.perlbal.language import Context
from examples.perlbal.management import ClientManage
from examples.perlbal.plugins import Plugin
from examples.perlbal.proxy import ProxyExchange
from examples.perlbal.reproxyhosts import KEPT_SECONDS, ReproxyHost
from examples.perlbal.selector import SelectorExchange
from examples.perlbal.server import Server, write_line
from examples.perlbal.uploads import Body
from tests.perlbal.servers import OURS
from tests.world import no_hanging

PATIENCE = 10.0


@pytest.fixture
def server() -> Iterator[Server]:
    with Loop() as loop:
        server = Server(loop)
        yield server
        server.stopping = True  # Otherwise it would reopen what is closed.
        while left := list(server.sockets()):
            for each in left:
                each.close()


def balancer(server: Server, port: int) -> Balancer:
    """The balancer of a proxy to this port, before its first request."""
    run_commands(
        server,
        f"CREATE POOL a\nPOOL a ADD 127.0.0.1:{port}\nCREATE SERVICE p\nSET role = reverse_proxy"
        "\nSET pool = a\nSET listen = 127.0.0.1:0\nENABLE p",
    )
    return server.services["p"].balancer


def run_commands(server: Server, lines: str) -> None:
    said: list[str] = []
    context = Context(verbose=False)
    for line in lines.split("\n"):
        assert server.language.run(line, said.append, context), said


def do_nothing() -> None:
    pass


def turn(server: Server, until: Callable[[], bool]) -> None:
    """Run the loop until the condition holds, for at least one turn."""
    server.loop.call_soon(do_nothing)  # There may be nothing else to wake it.
    limit = server.loop.add_timer(PATIENCE, server.loop.stop)
    server.loop.set_post_loop_callback(lambda *_: not until())
    server.loop.run()
    limit.cancel()
    assert until()


def test_connect_ahead_opens_that_many_connections(server: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as backend:
        queues = balancer(server, backend.getsockname()[1])
        server.services["p"].set("connect_ahead", "3")
        turn(server, lambda: len(queues.bored) == 3)
        assert [stats.attempts for stats in server.nodes.values()] == [3]


@pytest.mark.parametrize("verify", ["on", "off"])
def test_node_that_closes_new_connections_at_once_is_left_alone_for_a_second(
    server: Server, verify: str
) -> None:
    backend = socket.create_server(("127.0.0.1", 0))
    balancer(server, backend.getsockname()[1])
    server.services["p"].set("verify_backend", verify)
    Listener(backend, lambda connection, address: connection.close(), server.loop)
    began = time.monotonic()
    server.services["p"].set("connect_ahead", "1")
    (stats,) = server.nodes.values()
    turn(server, lambda: stats.attempts > MAX_UNUSED)
    assert (time.monotonic() - began) / RETRY_SECONDS > 1
    assert stats.attempts == MAX_UNUSED + 1


def test_node_that_closes_only_some_new_connections_is_tried_again_at_once(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restarting process does this: its other connections end before they are verified. The
    node used to be left alone for a second each time."""
    monkeypatch.setattr("examples.perlbal.balancer.RETRY_SECONDS", 3600)
    rounds, before_one_is_used = 3, MAX_UNUSED - 1
    with ExitStack() as stack:
        backend = socket.create_server(("127.0.0.1", 0))
        balancer(server, backend.getsockname()[1])
        server.services["p"].set("verify_backend", "on")
        accepted: list[socket.socket] = []

        def enter(connection: socket.socket, address: object) -> None:
            accepted.append(stack.enter_context(connection))
            if len(accepted) % (before_one_is_used + 1):
                return connection.close()
            connection.sendall(b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n\r\n")

        stats = server.nodes[f"127.0.0.1:{backend.getsockname()[1]}"]
        Listener(backend, enter, server.loop)
        for count in range(1, rounds + 1):
            client = client_of(server, stack)
            turn(server, lambda: any(each.exchange for each in backend_connections(server)))
            accepted[-1].sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n")
            turn(server, lambda: not backend_connections(server))
            client.settimeout(PATIENCE)
            assert client.recv(1000).startswith(b"HTTP/1.0 200 OK\r\n")
            assert stats.requests == count
        assert stats.attempts == rounds * (before_one_is_used + 1)


def backend_connections(server: Server) -> list[BackendHTTP]:
    """The connections to backends."""
    return [each for each in server.sockets() if isinstance(each, BackendHTTP)]


@pytest.mark.parametrize("verify", ["on", "off"])
def test_request_that_waits_for_a_silent_node_is_served_by_another(
    server: Server, monkeypatch: pytest.MonkeyPatch, verify: str
) -> None:
    """The silent node is a stopped process or a dead machine. The request used to wait for it until
    the timeout of 15 seconds, while another node was idle."""
    for seconds in ("QUICK_SECONDS", "RETRY_SECONDS"):
        monkeypatch.setattr(f"examples.perlbal.balancer.{seconds}", 0.01)
    with ExitStack() as stack:
        silent = stack.enter_context(socket.socket())
        silent.bind(("127.0.0.1", 0))
        silent.listen(0)
        if verify == "off":
            # Fill the queue, so that no connect is answered.
            for _ in range(2):
                filling = stack.enter_context(socket.socket())
                filling.setblocking(False)
                filling.connect_ex(silent.getsockname())
        quick = socket.create_server(("127.0.0.1", 0))
        queues = balancer(server, silent.getsockname()[1])
        server.services["p"].set("verify_backend", verify)

        def enter(connection: socket.socket, address: object) -> None:
            stack.enter_context(connection)
            connection.sendall(b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n\r\n")

        Listener(quick, enter, server.loop)
        client_of(server, stack)
        turn(server, lambda: queues.waiting() == 1)
        server.pools["a"].add(*quick.getsockname())
        assert len(queues.pending) == 1
        turn(server, lambda: not queues.waiting())
        assert [each.age() for each in queues.pending.values()] == [0]


def test_refused_connection_counts_as_connected(server: Server) -> None:
    """As in the original, which counts at the first event of any kind."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and doesn't listen
        balancer(server, taken.getsockname()[1])
        server.services["p"].set("connect_ahead", "1")
        (stats,) = server.nodes.values()
        turn(server, lambda: stats.connects > 0)
        assert stats.connects == stats.attempts and stats.lastconnect >= stats.lastattempt


def client_of(
    server: Server, stack: ExitStack, path: str = "/", field: str = "A: b", method: str = "GET"
) -> socket.socket:
    """A client with small buffers. It has sent a request, unless `method` is empty."""
    listener = server.services["p"].listener
    assert listener is not None and listener.sock is not None
    client = stack.enter_context(socket.socket())
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(listener.sock.getsockname())
    if method:
        client.sendall(f"{method} {path} HTTP/1.0\r\n{field}\r\n\r\n".encode())
    return client


@pytest.mark.parametrize("begun", [False, True], ids=["has its answer", "has half of it"])
def test_kept_alive_client_that_asks_again_during_a_graceful_stop_is_answered(
    server: Server, begun: bool
) -> None:
    """It was told "keep-alive", and its request is on its way when the server starts to end."""
    with ExitStack() as stack:
        backend = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        balancer(server, backend.getsockname()[1])
        server.services["p"].set("persist_client", "on")
        client = client_of(server, stack, "/", "Connection: keep-alive")
        turn(server, lambda: any(each.exchange for each in backend_connections(server)))
        asked = stack.enter_context(backend.accept()[0])
        asked.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 4\r\n\r\nha")
        (taken,) = (each for each in server.sockets() if isinstance(each, Client))
        turn(server, lambda: taken.state == "xfer_res")
        if begun:
            server.shut_down_gracefully()
        asked.sendall(b"lf")
        turn(server, lambda: taken.exchange is None)
        if not begun:
            server.shut_down_gracefully()
        client.sendall(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        turn(server, lambda: any(each.exchange for each in backend_connections(server)))
        stack.enter_context(backend.accept()[0]).sendall(
            b"HTTP/1.0 200 OK\r\nContent-Length: 4\r\n\r\nmore"
        )
        turn(server, lambda: not server.clients)
        client.settimeout(PATIENCE)
        answers = b"".join(iter(lambda: client.recv(1 << 16), b""))
        assert answers.endswith(b"\r\nConnection: close\r\n\r\nmore")


@pytest.mark.parametrize("end", [b"quit\n", b""])
def test_management_client_that_quits_or_ends_gets_all_answers_first(
    server: Server, end: bytes
) -> None:
    run_commands(
        server, "CREATE SERVICE m\nSET role = management\nSET listen = 127.0.0.1:0\nENABLE m"
    )
    listener = server.services["m"].listener
    assert listener is not None and listener.sock is not None
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(listener.sock.getsockname())
        # Answers too long for the kernel's buffers, while nobody reads them.
        client.sendall(b"help\n" * 2000 + b"show pool\n" + end)
        if not end:
            client.shutdown(socket.SHUT_WR)

        def clients() -> list[ClientManage]:
            return [each for each in server.sockets() if isinstance(each, ClientManage)]

        turn(server, lambda: listener.accepted_count == 1)
        turn(server, lambda: not any(each.event_watch & select.POLLIN for each in clients()))
        client.settimeout(PATIENCE)
        heard = bytearray()

        def read() -> None:
            while data := client.recv(1 << 20):
                heard.extend(data)

        reader = threading.Thread(target=read)
        reader.start()
        turn(server, lambda: not clients())
        reader.join(PATIENCE)
    assert heard.count(b"\r\n.\r\n") == 2000
    assert heard.endswith(b"\r\nversion\r\n.\r\n.\r\n")


def test_write_line_does_not_block_on_a_full_pipe() -> None:
    """Standard error may be a pipe. Once it was full, no client was served any more."""
    read, write = os.pipe()
    try:
        write_line("ab" * select.PIPE_BUF, write)
        assert os.read(read, 3 * select.PIPE_BUF) == b"ab" * select.PIPE_BUF + b"\n"
        with no_hanging():
            for _ in range(200):
                write_line("x" * 1000, write)
    finally:
        os.close(read)
    write_line("closed", write)
    os.close(write)
    write_line("not there", write)


def test_changed_nodefile_is_read_again_and_waiting_clients_are_served(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "NODEFILE_CHECK_SECONDS", 0.01)
    file = tmp_path / "nodes"
    with ExitStack() as stack:
        old, new = (
            stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
            for _ in range(2)
        )
        queues, pool = balancer(server, old), server.pools["a"]
        server.services["p"].set("connect_ahead", "1")
        turn(server, lambda: len(queues.bored) == 1)
        file.write_text(f"127.0.0.1:{old}\n")
        pool.set("nodefile", str(file))
        file.write_text("# nobody, for a time\n")
        turn(server, lambda: not queues.bored)
        client_of(server, stack)
        turn(server, lambda: queues.waiting() == 1)
        file.unlink()
        file.write_text(f"127.0.0.1:{new}\n")
        turn(server, lambda: any(pool.used.values()))
        assert pool.used == {f"127.0.0.1:{new}": 1}
        pool.set("nodefile", "none")
        file.write_text(f"127.0.0.1:{old}\n")
        pause = 5 * pools.NODEFILE_CHECK_SECONDS
        server.loop.add_timer(pause, server.loop.stop)
        server.loop.set_post_loop_callback(None)
        server.loop.run()
        assert list(pool.used) == [f"127.0.0.1:{new}"]


def test_nodefile_replaced_by_a_pipe_does_not_block(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "NODEFILE_CHECK_SECONDS", 0.01)
    file = tmp_path / "nodes"
    file.write_text("127.0.0.1:80\n")
    run_commands(server, f"CREATE POOL a\nSET nodefile = {file}")
    file.unlink()
    os.mkfifo(file)
    server.loop.add_timer(5 * pools.NODEFILE_CHECK_SECONDS, server.loop.stop)
    with no_hanging(2):
        server.loop.run()
    assert list(server.pools["a"].used) == ["127.0.0.1:80"]


@pytest.mark.parametrize("node", ["127.0.0.1:99999", "999.0.0.1:80"])
def test_unreachable_node_of_a_nodefile_affects_no_other(
    server: Server, tmp_path: Path, node: str
) -> None:
    with ExitStack() as stack:
        backend = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        good = f"127.0.0.1:{backend.getsockname()[1]}"
        (tmp_path / "nodes").write_text(f"{node}\n{good}\n{good}\n")
        queues = balancer(server, backend.getsockname()[1])
        server.pools["a"].set("nodefile", str(tmp_path / "nodes"))
        server.services["p"].set("connect_ahead", "3")
        assert (list(queues.pending), queues.blocked) == ([good], {node})
        assert server.nodes[good].attempts == 1


def test_circular_services_are_reported(server: Server) -> None:
    run_commands(server, "CREATE SERVICE p\nSET role = selector\nSET default_service = p")
    run_commands(server, "USE p\nSET listen = 127.0.0.1:0\nENABLE p")
    with ExitStack() as stack:
        answer = answer_to(server, client_of(server, stack))
    assert answer.startswith(b"HTTP/1.0 500 ") and answer.endswith(b"Services lead in a circle")


def test_signal_logs_the_status(server: Server, capfd: pytest.CaptureFixture[str]) -> None:
    balancer(server, 1)
    server.install_signal_handlers()
    os.kill(os.getpid(), signal.SIGUSR1)
    server.loop.add_timer(0, server.stop)
    server.loop.run()
    logged = capfd.readouterr().err
    assert "SERVICE p\n" in logged and "\np-normal.count 0\n" in logged


def test_pidfile_that_cannot_be_written_is_logged(
    server: Server, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    server.pidfile = pidfile = str(tmp_path / "no" / "pid")
    server.loop.call_soon(server.stop)
    server.run()
    assert capfd.readouterr().err.startswith(f"couldn't create pidfile '{pidfile}': ")


def test_removed_node_is_not_waited_for(server: Server) -> None:
    with ExitStack() as stack:
        slow, quick = (
            stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
            for _ in range(2)
        )
        queues, pool = balancer(server, slow), server.pools["a"]
        server.services["p"].set("verify_backend", "on")
        client_of(server, stack)
        turn(server, lambda: any(each.state != "connecting" for each in queues.pending.values()))
        pool.add("127.0.0.1", quick)
        pool.remove("127.0.0.1", slow)
        assert list(queues.pending) == [f"127.0.0.1:{quick}"]


def test_verified_connection_that_has_ended_is_garbage_collected(server: Server) -> None:
    with ExitStack() as stack:
        backend = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        queues = balancer(server, backend.getsockname()[1])
        server.services["p"].set("verify_backend", "on")
        server.services["p"].set("connect_ahead", "1")
        turn(server, lambda: any(each.write_buf_size == 0 for each in queues.pending.values()))
        accepted = stack.enter_context(backend.accept()[0])
        accepted.sendall(b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n\r\n")
        turn(server, lambda: len(queues.bored) == 1)
        ended = weakref.ref(queues.bored[0])
        server.services["p"].set("connect_ahead", "0")
        accepted.close()
        turn(server, lambda: not queues.bored)
        turn(server, lambda: True)  # It is removed from the loop at the end of the batch.
        gc.collect()
        assert ended() is None


@pytest.mark.parametrize(
    ("pieces", "verified"),
    [
        (["HTTP/1.0 200 OK\r\nConn", "ection: keep-alive\r\n\r\n"], True),
        (["HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\n", "ok"], True),
        (["HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nmore"], False),
        (["HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n"], False),
        (["nonsense\r\n\r\n"], False),
    ],
    ids=["in pieces", "with a body", "too much", "closing", "nonsense"],
)
def test_backend_is_verified_by_a_complete_answer_that_keeps_it_alive(
    server: Server, pieces: list[str], verified: bool
) -> None:
    with ExitStack() as stack:
        backend = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        name = "127.0.0.1:%d" % backend.getsockname()[1]
        queues = balancer(server, backend.getsockname()[1])
        server.services["p"].set("verify_backend", "on")
        server.services["p"].set("connect_ahead", "1")
        turn(server, lambda: any(each.write_buf_size == 0 for each in queues.pending.values()))
        server.services["p"].connect_ahead = 0
        accepted = stack.enter_context(backend.accept()[0])
        for piece in pieces:
            assert list(queues.pending) == [name] and not server.no_verify
            accepted.sendall(piece.encode())
            turn(server, lambda: True)
        turn(server, lambda: not queues.pending)
        told = [each.as_string().partition("; ")[2] for each in queues.bored]
        assert told == ["uses=0; bored; has_attention=yes"] * verified
        assert list(server.no_verify) == [name] * (not verified)


@pytest.mark.parametrize("verified", [True, False])
def test_long_idle_connection_is_used_only_if_it_was_verified(
    server: Server, verified: bool
) -> None:
    with ExitStack() as stack:
        backend = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        queues = balancer(server, backend.getsockname()[1])
        server.services["p"].set("connect_ahead", "1")
        turn(server, lambda: len(queues.bored) == 1)
        (first,) = queues.bored
        first.has_attention = verified
        client_of(server, stack)
        first.created -= UNVERIFIED_SECONDS
        turn(server, lambda: any(each.exchange for each in backend_connections(server)))
        assert (first.exchange is not None) is verified and first.closed is not verified


def test_unrequested_protocol_switch_of_a_backend_is_malformed(server: Server) -> None:
    with ExitStack() as stack:
        backend = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        balancer(server, backend.getsockname()[1])
        client = client_of(server, stack)
        turn(server, lambda: any(each.exchange for each in backend_connections(server)))
        answer = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\nwhatever"
        stack.enter_context(backend.accept()[0]).sendall(answer)
        assert answer_to(server, client).startswith(b"HTTP/1.0 502 ")


def test_client_and_backend_that_both_send_before_reading_do_not_deadlock(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proxy, "DEADLOCK_SECONDS", 0.05)
    whole = 20_000_000
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        queues = balancer(server, listener.getsockname()[1])
        client = client_of(server, stack, "/", f"Content-Length: {whole}")
        client.settimeout(PATIENCE)

        def answer() -> None:
            backend = stack.enter_context(listener.accept()[0])
            backend.settimeout(PATIENCE)
            head = f"HTTP/1.0 200 OK\r\nContent-Length: {whole}\r\n\r\n"
            backend.sendall(head.encode() + bytes(whole))

        def ask() -> None:
            client.sendall(bytes(whole))
            came.append(sum(map(len, iter(lambda: client.recv(1 << 16), b""))))
            server.loop.call_soon_threadsafe(do_nothing)

        came: list[int] = []
        threads = [threading.Thread(target=each) for each in (answer, ask)]
        for each in threads:
            each.start()
        turn(server, lambda: bool(came))
        for each in threads:
            each.join(PATIENCE)
        assert came[0] > whole
        assert not queues.waiting()


def ask_for_url(server: Server, stack: ExitStack, first: socket.socket, port: int) -> None:
    """Have a client send a request, and its backend name a URL at this port."""
    asked = server.nodes[f"127.0.0.1:{first.getsockname()[1]}"]
    before = asked.connects
    client_of(server, stack)
    turn(server, lambda: asked.connects > before)
    backend = stack.enter_context(first.accept()[0])
    backend.sendall(f"HTTP/1.0 200 OK\r\nX-REPROXY-URL: http://127.0.0.1:{port}/\r\n\r\n".encode())


def test_reproxy_host_that_refuses_a_second_connection_is_not_retried_endlessly(
    server: Server,
) -> None:
    with ExitStack() as stack:
        first, host = (
            stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)
        )
        port = host.getsockname()[1]
        stats = server.nodes[f"127.0.0.1:{port}"]
        balancer(server, first.getsockname()[1])
        server.services["p"].set("enable_reproxy", "on")
        ask_for_url(server, stack, first, port)
        turn(server, lambda: stats.connects == 1)
        stack.enter_context(host.accept()[0])
        host.close()
        ask_for_url(server, stack, first, port)
        turn(server, lambda: stats.attempts > 1)
        server.loop.set_post_loop_callback(None)
        server.loop.add_timer(0.6, server.loop.stop)
        server.loop.run()
        assert stats.attempts < 10
        turn(server, lambda: stats.attempts > 2)


def test_any_number_of_expired_reproxy_connections_can_be_dropped(server: Server) -> None:
    many = 100
    with ExitStack() as stack:
        first, listener = (
            stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=2 * many))
            for _ in range(2)
        )
        node = pools.Node("127.0.0.1", listener.getsockname()[1])
        balancer(server, first.getsockname()[1])
        server.services["p"].set("enable_reproxy", "on")
        host = server.reproxy_hosts[node] = ReproxyHost(server.reproxy_hosts, node)
        for _ in range(many):
            host.connecting = BackendHTTP.open(host, node, PATIENCE)
            turn(server, lambda: host.connecting is None)
        for each in host.bored:
            each.idle_since -= 2 * KEPT_SECONDS
        deepest = sys.getrecursionlimit()
        stack.callback(sys.setrecursionlimit, deepest)
        sys.setrecursionlimit(len(inspect.stack()) + 2 * many)
        ask_for_url(server, stack, first, node.port)
        turn(server, lambda: any(each.exchange is not None for each in host.connected))
        assert len(host.connected) == 1


def client_that_reads_nothing(
    server: Server, stack: ExitStack, folder: Path
) -> tuple[socket.socket, Client]:
    """A client that has asked for a big file and reads nothing of it, and the server's end of the
    connection. Returns when the kernel's buffers are full."""
    with open(folder / "file", "wb") as file:
        file.truncate(100 * KERNEL_BUFFER)
    run_commands(
        server,
        f"CREATE SERVICE p\nSET role = web_server\nSET docroot = {folder}"
        "\nSET listen = 127.0.0.1:0\nENABLE p",
    )
    reader = client_of(server, stack, "/file")
    turn(server, lambda: server.requests == 1)
    (client,) = (each for each in server.sockets() if isinstance(each, Client))
    assert client.sock is not None
    poll = select.poll()
    poll.register(client.sock, select.POLLOUT)
    turn(server, lambda: not poll.poll(0))
    return reader, client


@pytest.mark.skipif(
    not hasattr(socket, "TCP_NOTSENT_LOWAT"), reason="the kernel's buffer can't be told its size"
)
def test_little_of_an_answer_is_buffered_by_the_kernel_for_a_slow_reader(
    server: Server, tmp_path: Path
) -> None:
    """Otherwise the socket becomes writable so rarely that the client counts as idle."""
    with ExitStack() as stack:
        reader, client = client_that_reads_nothing(server, stack, tmp_path)
        assert client.sock is not None
        client.sock.shutdown(socket.SHUT_WR)  # The kernel still delivers its data and the end.
        reader.settimeout(PATIENCE)
        came = 0
        while data := reader.recv(1 << 16):
            came += len(data)
        assert came < 6 * KERNEL_BUFFER


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says when something was taken")
def test_client_is_idle_only_if_it_takes_nothing_of_its_answer(
    server: Server, tmp_path: Path
) -> None:
    """Even if it reads too little for the kernel to report the socket as writable."""
    with ExitStack() as stack:
        _, client = client_that_reads_nothing(server, stack, tmp_path)
        client.last_active -= 2000
        assert not client.is_idle(1000, time.monotonic())
        server.services["p"].idle_timeout = 1
        server.idle.check_at(0)
        turn(server, lambda: client.closed)


@pytest.mark.parametrize("heard", [True, False], ids=["heard", "with nobody who reads"])
def test_sigterm_during_startup_ends_the_server_once_it_has_started(
    tmp_path: Path, heard: bool
) -> None:
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
            with suppress(OSError):  # No reader yet.
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


@pytest.mark.parametrize("role", ["web_server", "selector"])
def test_kept_alive_connection_is_not_idle_during_its_next_request(
    server: Server, tmp_path: Path, role: str
) -> None:
    run_commands(
        server,
        f"CREATE SERVICE w\nSET role = web_server\nSET docroot = {tmp_path}\nSET enable_put = on"
        f"\nCREATE SERVICE p\nSET role = {role}\nSET persist_client = on"
        "\nSET listen = 127.0.0.1:0\nENABLE p",
    )
    service = server.services["p"]
    service.docroot, service.enable_put = str(tmp_path), True
    service.default_service = server.services["w"]
    with ExitStack() as stack:
        client = client_of(server, stack, field="Connection: keep-alive")
        turn(server, lambda: any(isinstance(each, Client) for each in server.sockets()))
        (here,) = (each for each in server.sockets() if isinstance(each, Client))
        turn(server, lambda: here.state == "persist_wait")
        service.latency = 50
        client.sendall(b"PUT /file HTTP/1.0\r\nContent-Length: 4\r\n\r\nha")
        turn(server, lambda: here.exchange is not None)
        server.shut_down_gracefully()
        client.sendall(b"lf")
        turn(server, lambda: here.closed)
        client.settimeout(PATIENCE)
        with client.makefile("rb") as heard:
            answers = heard.read()
    assert answers.count(b"HTTP/1.0 200 ") == 2 and (tmp_path / "file").read_bytes() == b"half"


def test_pidfile_removed_by_someone_else_is_not_an_error_at_the_end(
    server: Server, tmp_path: Path
) -> None:
    pidfile = tmp_path / "pid"
    run_commands(server, "CREATE SERVICE m\nSET role = management\nSET listen = 0\nENABLE m")
    server.pidfile = str(pidfile)

    def end() -> None:
        pidfile.unlink()
        server.stop()

    server.loop.call_soon(end)
    server.run()
    assert not list(server.sockets())


def test_put_can_create_more_nested_folders_than_the_recursion_limit(tmp_path: Path) -> None:
    (tmp_path / "stays").touch()
    folder = f"{tmp_path}{'/d' * 1200}"
    new = NewFile(f"{folder}/x", "")
    new.write(b"deep")
    try:
        assert new.finish() == (200, "")
        assert os.stat(f"{folder}/x").st_size == 4
    finally:
        os.unlink(f"{folder}/x")
        os.removedirs(folder)  # The cleanup after the test makes calls too.


def start_web_server(server: Server, docroot: Path) -> None:
    run_commands(
        server,
        f"CREATE SERVICE p\nSET role = web_server\nSET docroot = {docroot}\nSET dirindexing = on"
        "\nSET enable_concatenate_get = on\nSET listen = 127.0.0.1:0\nENABLE p",
    )


def answer_to(server: Server, client: socket.socket) -> bytes:
    """All that a client receives until the server closes."""
    client.settimeout(PATIENCE)
    came: list[bytes] = []

    def read() -> None:
        came.append(b"".join(iter(lambda: client.recv(1 << 16), b"")))
        server.loop.call_soon_threadsafe(do_nothing)

    reader = threading.Thread(target=read)
    reader.start()
    turn(server, lambda: bool(came))
    reader.join(PATIENCE)
    return came[0]


def test_client_that_left_before_its_body_was_read_is_garbage_collected(
    server: Server, tmp_path: Path
) -> None:
    """Its time limit ends with it."""
    start_web_server(server, tmp_path)
    with ExitStack() as stack:
        client = client_of(server, stack, "/", "Content-Length: 9")
        turn(server, lambda: any(isinstance(each, Client) for each in server.sockets()))
        (left,) = (weakref.ref(each) for each in server.sockets() if isinstance(each, Client))
        assert answer_to(server, client)
    turn(server, lambda: server.clients == 0)
    turn(server, lambda: True)  # It is removed from the loop at the end of the batch.
    gc.collect()
    assert left() is None


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.0\r\n\r\n\r\n",
        b"PUT /x HTTP/1.0\r\nContent-Length: 1\r\n\r\nx\r\n",
    ],
    ids=["behind GET", "behind a body"],
)
def test_empty_line_after_the_last_request_is_not_waited_for(
    server: Server, tmp_path: Path, data: bytes
) -> None:
    start_web_server(server, tmp_path)
    run_commands(server, "SET p.enable_put = on")
    with ExitStack() as stack:
        client = client_of(server, stack, method="")
        client.sendall(data)
        assert answer_to(server, client).startswith(b"HTTP/1.0 200 OK\r\n")
        assert server.clients == 0


def replace_after_stat(
    monkeypatch: pytest.MonkeyPatch, file: Path, replace: Callable[[], object]
) -> None:
    """Replace a file right after its stat."""
    ask_what_it_is = os.stat
    asked: list[bytes] = []

    def stat(path: bytes | str | int, **how: bool) -> os.stat_result:
        found = ask_what_it_is(path, **how)
        if path == os.fsencode(file) and not asked:
            asked.append(path)
            file.unlink()
            replace()
        return found

    monkeypatch.setattr(os, "stat", stat)


@pytest.mark.parametrize("content", ["a longer one", "short", "x" * 1_000_000])
def test_file_replaced_while_it_is_requested_is_served_consistently(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    """The head used to have the old file's length, so the new one was cut, or broken off."""
    file = tmp_path / "file"
    file.write_text("the file")
    start_web_server(server, tmp_path)

    def replace() -> None:
        file.write_text(content)
        os.utime(file, (0, 0))

    replace_after_stat(monkeypatch, file, replace)
    with ExitStack() as stack:
        head, _, body = answer_to(server, client_of(server, stack, "/file")).partition(b"\r\n\r\n")
    assert f"Content-Length: {len(content)}\r\n".encode() in head
    assert b"Last-Modified: Thu, 01 Jan 1970 00:00:00 GMT\r\n" in head
    assert body.decode() == content


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_pipe_in_the_docroot_is_not_a_file(server: Server, tmp_path: Path, method: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    start_web_server(server, tmp_path)
    with ExitStack() as stack, no_hanging():
        answer = answer_to(server, client_of(server, stack, "/pipe", method=method))
    assert answer.startswith(b"HTTP/1.0 404 ")


@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize("pieces", [1, 2])
def test_put_without_disk_space_gets_an_error(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pieces: int, checked: bool
) -> None:
    def no_room(fd: int, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    start_web_server(server, tmp_path)
    server.services["p"].set("enable_put", "on")
    monkeypatch.setattr("examples.perlbal.files.write_all", no_room)
    field = "Content-Length: 4" + "\r\nContent-MD5: x" * checked
    with ExitStack() as stack:
        client = client_of(server, stack, "/file", field, "PUT")
        for number in range(pieces):
            client.sendall(b"data"[number::pieces])
            turn(server, lambda: True)
        answer = answer_to(server, client)
    assert answer.startswith(b"HTTP/1.0 500 ") and answer.endswith(b"Error saving file")
    assert [each.name for each in tmp_path.iterdir()] == ["file"] * (not checked)


@pytest.mark.parametrize("path", ["/file", "/??file"])
@pytest.mark.parametrize("kind", ["pipe", "nothing"])
def test_pipe_that_replaced_a_file_does_not_block(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, kind: str
) -> None:
    file = tmp_path / "file"
    file.write_text("the file")
    start_web_server(server, tmp_path)
    replace_after_stat(
        monkeypatch, file, (lambda: os.mkfifo(file)) if kind == "pipe" else (lambda: None)
    )
    with ExitStack() as stack, no_hanging():
        answer = answer_to(server, client_of(server, stack, path))
    assert answer.startswith(b"HTTP/1.0 404 ")


def test_replaced_file_among_concatenated_ones_is_not_cut_to_its_old_length(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The length of all files is promised when the first one is sent."""
    (tmp_path / "one").write_text("one")
    two = tmp_path / "two"
    two.write_text("two")
    start_web_server(server, tmp_path)
    replace_after_stat(monkeypatch, two, lambda: two.write_text("three"))
    with ExitStack() as stack:
        answer = answer_to(server, client_of(server, stack, "/??one,two"))
    assert b"\r\nContent-Length: 6\r\n" in answer and answer.endswith(b"\r\n\r\none")


@pytest.mark.parametrize("path", ["/file", "/", "/??file,file", "reproxied"])
def test_lack_of_descriptors_for_a_file_is_answered_with_503(
    server: Server, tmp_path: Path, path: str
) -> None:
    (tmp_path / "file").write_text("the file")
    with ExitStack() as stack:
        if path == "reproxied":
            first = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            asked = server.nodes[f"127.0.0.1:{first.getsockname()[1]}"]
            balancer(server, first.getsockname()[1])
            server.services["p"].set("enable_reproxy", "on")
            client = client_of(server, stack)
            turn(server, lambda: bool(asked.connects))
            backend = stack.enter_context(first.accept()[0])
            backend.sendall(f"HTTP/1.0 200 OK\r\nX-REPROXY-FILE: {tmp_path}/file\r\n\r\n".encode())
        else:
            start_web_server(server, tmp_path)
            client = client_of(server, stack, path)
            listener = server.services["p"].listener
            assert listener is not None
            listener.event_read()
        server.loop.call_soon_threadsafe(do_nothing)  # The pipe that wakes it takes a descriptor.
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, before)
        free = os.dup(client.fileno())
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, before[1]))
        answer = answer_to(server, client)
    assert answer.startswith(b"HTTP/1.0 503 ")


@pytest.mark.skipif(not hasattr(fcntl, "F_SETLEASE"), reason="no leases of files here")
def test_file_with_a_lease_does_not_block(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("the file")
    start_web_server(server, tmp_path)
    with ExitStack() as stack, open(file, "r+b") as held, no_hanging():
        # The holder gets a signal that another process wants it.
        stack.callback(signal.signal, signal.SIGIO, signal.signal(signal.SIGIO, signal.SIG_IGN))
        try:
            fcntl.fcntl(held, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        except OSError as error:
            pytest.skip(f"no leases on this file system: {error}")
        answer = answer_to(server, client_of(server, stack, "/file"))
    assert answer.startswith(b"HTTP/1.0 503 ")


def test_last_modified_is_rounded_down_to_the_second(server: Server, tmp_path: Path) -> None:
    """As a float, the last moments of a second are rounded to the next one."""
    file = tmp_path / "file"
    file.touch()
    last = 1_700_000_000 * 10**9 - 1
    os.utime(file, ns=(last, last))
    start_web_server(server, tmp_path)
    for path in "/file", "/??file":
        with ExitStack() as stack:
            answer = answer_to(server, client_of(server, stack, path))
        assert b"\r\nLast-Modified: Tue, 14 Nov 2023 22:13:19 GMT\r\n" in answer


def test_half_closed_client_gets_the_whole_file(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 60_000)
    start_web_server(server, tmp_path)
    server.services["p"].set("client_sndbuf_size", "4k")
    with ExitStack() as stack:
        client = client_of(server, stack, "/file")
        client.shutdown(socket.SHUT_WR)
        turn(server, lambda: server.clients == 1)
        (taken,) = (each for each in server.sockets() if isinstance(each, Client))
        turn(server, lambda: not taken.event_watch & select.POLLIN)
        assert taken.write_buf_size
        assert answer_to(server, client).endswith(b"x" * 60_000)


class FailingPlugin(Plugin):
    def backend_client_assigned(self, exchange: ProxyExchange, head: Head) -> None:
        raise ValueError("a plugin's fault")

    def select(self, exchange: SelectorExchange) -> bool:
        raise ValueError("a plugin's fault")


@pytest.mark.parametrize("ahead", ["0", "1"], ids=["that connects", "that is there"])
def test_failing_plugin_closes_its_client_and_backend_and_leaves_none_waiting(
    server: Server, ahead: str, caplog: pytest.LogCaptureFixture
) -> None:
    server.loop.on_exception = log_exception
    with ExitStack() as stack:
        backend = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        queues = balancer(server, backend.getsockname()[1])
        service = server.services["p"]
        service.set("connect_ahead", ahead)
        turn(server, lambda: len(queues.bored) == int(ahead))
        service.plugins.append(FailingPlugin(server))
        first = list(queues.bored)
        client = client_of(server, stack)
        service.connect_ahead = 0
        assert answer_to(server, client) == b""
        turn(server, lambda: not any(isinstance(each, Client) for each in server.sockets()))
        assert all(each.closed for each in first)
        assert not any(each.exchange for each in server.sockets() if isinstance(each, BackendHTTP))
    assert "a plugin's fault" in caplog.text


def test_plugin_that_fails_after_the_latency_closes_its_client(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    server.loop.on_exception = log_exception
    run_commands(
        server,
        "CREATE SERVICE p\nSET role = selector\nSET latency = 1\nSET listen = 127.0.0.1:0\nENABLE p",
    )
    server.services["p"].plugins.append(FailingPlugin(server))
    with ExitStack() as stack:
        assert answer_to(server, client_of(server, stack)) == b""
    assert "a plugin's fault" in caplog.text


def test_plugin_that_fails_when_a_backend_is_retried_closes_its_client(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    server.loop.on_exception = log_exception
    with ExitStack() as stack:
        backend = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        queues = balancer(server, backend.getsockname()[1])
        service = server.services["p"]
        service.set("enable_error_retries", "on")
        service.set("error_retry_schedule", "0.01")
        client = client_of(server, stack)
        turn(server, lambda: any(each.exchange for each in backend_connections(server)))
        service.set("connect_ahead", "1")
        turn(server, lambda: len(queues.bored) == 1)
        service.plugins.append(FailingPlugin(server))
        stack.enter_context(backend.accept()[0]).sendall(b"HTTP/1.0 500 No\r\n\r\n")
        assert answer_to(server, client) == b""
    assert "a plugin's fault" in caplog.text


def test_graceful_stop_closes_idle_backends_only(server: Server) -> None:
    with ExitStack() as stack:
        backend = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        queues = balancer(server, backend.getsockname()[1])
        client_of(server, stack)
        turn(server, lambda: any(each.exchange for each in backend_connections(server)))
        server.services["p"].set("connect_ahead", "1")
        turn(server, lambda: len(queues.bored) == 1)
        server.shut_down_gracefully()
        assert [each.state for each in backend_connections(server)] == [
            "wait_res"
        ] and not queues.bored


def test_url_of_an_unknown_host_is_not_waited_for(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    with ExitStack() as stack:
        backend = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        balancer(server, backend.getsockname()[1])
        server.services["p"].set("enable_reproxy", "on")
        client = client_of(server, stack)
        turn(server, lambda: any(each.exchange for each in backend_connections(server)))
        monkeypatch.setattr(socket, "getaddrinfo", unknown)
        answer = b"HTTP/1.0 200 OK\r\nX-REPROXY-URL: http://no.such/\r\n\r\n"
        stack.enter_context(backend.accept()[0]).sendall(answer)
        assert answer_to(server, client).startswith(b"HTTP/1.0 503 ")


def test_plugin_that_fails_after_a_backend_closes_its_client(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    server.loop.on_exception = log_exception
    with ExitStack() as stack:
        backend = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        balancer(server, backend.getsockname()[1])
        server.services["p"].set("enable_reproxy", "on")
        run_commands(server, "CREATE SERVICE s\nSET role = selector")
        server.services["s"].plugins.append(FailingPlugin(server))
        client = client_of(server, stack)
        turn(server, lambda: any(each.exchange for each in backend_connections(server)))
        answer = b"HTTP/1.0 200 OK\r\nX-REPROXY-SERVICE: s\r\n\r\n"
        stack.enter_context(backend.accept()[0]).sendall(answer)
        assert answer_to(server, client) == b""
    assert "a plugin's fault" in caplog.text


def raise_would_block(data: Block, count: int, offset: int) -> int:
    raise BlockingIOError


class RejectingPlugin(Plugin):
    def start_http_request(self, exchange: Exchange) -> bool:
        if exchange.request.method == "POST":
            exchange.client.send_page(403)
        return exchange.request.method == "POST"


@pytest.mark.parametrize(
    ("settings", "pieces"),
    [
        ("SET buffer_uploads = off", [b"Transfer-Encoding: chunked\r\n\r\n", b"5\r\nstray\r\n"]),
        ("SET buffer_backend_connect = 3", [b"Content-Length: 9\r\n\r\n", b"stray"]),
        (
            "SET buffer_uploads = on\nSET buffer_uploads_path = {folder}",
            [b"Transfer-Encoding: chunked\r\n\r\n5\r\nstray??", b"\r\n0\r\n\r\n"],
        ),
    ],
    ids=["without a length", "refused by a plugin", "with a broken chunk"],
)
def test_body_of_a_rejected_request_is_not_forwarded(
    server: Server, settings: str, pieces: list[bytes], tmp_path: Path
) -> None:
    """While the client reads no answer, its request still exists, and could be given the body."""
    with ExitStack() as stack:
        backend = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        balancer(server, backend.getsockname()[1])
        run_commands(server, "USE p\n" + settings.format(folder=tmp_path))
        if b"Content-Length" in pieces[0]:
            server.services["p"].plugins.append(RejectingPlugin(server))
        client = client_of(server, stack, method="")
        turn(server, lambda: server.clients == 1)
        (taken,) = (each for each in server.sockets() if isinstance(each, Client))
        taken.set_writer_func(raise_would_block)
        client.sendall(b"POST / HTTP/1.1\r\nHost: h\r\n")
        for piece in pieces:
            client.sendall(piece)
            for _ in range(2):
                turn(server, lambda: True)
        assert taken.write_buf_size
        client_of(server, stack)
        turn(server, lambda: any(each.exchange for each in backend_connections(server)))
        asked = stack.enter_context(backend.accept()[0])
        asked.settimeout(PATIENCE)
        assert re.fullmatch(rb"GET / HTTP/1.0\r\n([^\r\n]+\r\n)+\r\n", asked.recv(1 << 16))


@pytest.mark.parametrize("when", ["before it is there", "as it is sent"])
def test_body_lost_by_the_disk_is_reported(server: Server, tmp_path: Path, when: str) -> None:
    with ExitStack() as stack:
        backend = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        queues = balancer(server, backend.getsockname()[1])
        folder = tmp_path / "uploads"
        folder.mkdir()
        run_commands(server, f"USE p\nSET buffer_uploads_path = {folder}\nSET buffer_uploads = on")
        server.services["p"].set("buffer_upload_threshold_size", "1")
        if when == "before it is there":
            folder.rmdir()
        client = client_of(server, stack, field="Content-Length: 3", method="POST")
        client.sendall(b"ab")
        if when == "before it is there":
            assert answer_to(server, client).startswith(b"HTTP/1.0 500 ")
        else:
            turn(server, lambda: any(folder.iterdir()))
            os.truncate(next(folder.iterdir()), 0)
            client.sendall(b"c")
            turn(server, lambda: any(each.exchange for each in backend_connections(server)))
            os.truncate(next(folder.iterdir()), 0)
            assert answer_to(server, client) == b""
            assert not any(folder.iterdir())
        assert not queues.waiting()


def test_client_that_does_not_read_a_selectors_answer_is_not_read_from(server: Server) -> None:
    """Everything that it sent used to be kept for the service to be found, and there is none."""
    run_commands(
        server, "CREATE SERVICE p\nSET role = selector\nSET listen = 127.0.0.1:0\nENABLE p"
    )
    with ExitStack() as stack:
        client = client_of(server, stack, method="")
        turn(server, lambda: server.clients == 1)
        (taken,) = (each for each in server.sockets() if isinstance(each, Client))
        taken.set_writer_func(raise_would_block)
        client.sendall(b"POST / HTTP/1.0\r\nContent-Length: 99\r\n\r\nsome")
        turn(server, lambda: taken.write_buf_size > 0)
        assert not taken.event_watch & select.POLLIN


def raise_reset(data: Block, count: int, offset: int) -> int:
    raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")


def test_no_backend_is_asked_for_a_client_that_left_before_sending_its_body(server: Server) -> None:
    with ExitStack() as stack:
        backend = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        queues = balancer(server, backend.getsockname()[1])
        server.services["p"].set("buffer_backend_connect", "0")
        client = client_of(server, stack, method="")
        turn(server, lambda: server.clients == 1)
        (taken,) = (each for each in server.sockets() if isinstance(each, Client))
        taken.set_writer_func(raise_reset)
        fields = b"Host: h\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n"
        client.sendall(b"POST / HTTP/1.1\r\n" + fields)
        turn(server, lambda: not server.clients)
        assert not queues.waiting() and not backend_connections(server)


def test_client_that_was_rejected_before_the_next_retry_is_not_retried(server: Server) -> None:
    with ExitStack() as stack:
        backend = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        queues = balancer(server, backend.getsockname()[1])
        server.services["p"].set("enable_error_retries", "on")
        server.services["p"].set("error_retry_schedule", "0.5")
        client = client_of(server, stack)
        turn(server, lambda: any(each.exchange for each in backend_connections(server)))
        (taken,) = (each for each in server.sockets() if isinstance(each, Client))
        stack.enter_context(backend.accept()[0]).sendall(b"HTTP/1.0 500 No\r\n\r\n")
        turn(server, lambda: not backend_connections(server))
        taken.set_writer_func(raise_would_block)
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        turn(server, lambda: taken.write_buf_size > 0)
        server.loop.set_post_loop_callback(None)
        server.loop.add_timer(0.6, server.loop.stop)
        server.loop.run()
        assert not queues.waiting() and not backend_connections(server)


def test_buffered_upload_without_disk_space_gets_an_error(server: Server, tmp_path: Path) -> None:
    with ExitStack() as stack:
        balancer(server, 1)
        run_commands(
            server,
            f"USE p\nSET buffer_uploads = on\nSET buffer_uploads_path = {tmp_path}"
            "\nSET buffer_upload_threshold_size = 1",
        )
        client = client_of(server, stack, method="")
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        stack.callback(resource.setrlimit, resource.RLIMIT_FSIZE, before)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
        client.sendall(b"POST / HTTP/1.0\r\nContent-Length: 30000\r\n\r\n" + bytes(30_000))
        answer = answer_to(server, client)
    assert answer.startswith(b"HTTP/1.0 500 ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", ["/small", "/large", "/??small,large"])
def test_answer_is_complete_even_if_closing_its_file_fails(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """A file system may report what became of another write, as those do that are served over a
    network."""
    (tmp_path / "small").write_bytes(b"s")
    (tmp_path / "large").write_bytes(b"l" * 100_000)
    start_web_server(server, tmp_path)
    server.services["p"].set("enable_concatenate_get", "on")
    close = os.close

    def report(fd: int) -> None:
        close(fd)
        raise OSError(errno.EIO, "Input/output error")

    with ExitStack() as stack:
        client = client_of(server, stack, path)
        monkeypatch.setattr(os, "close", report)
        answer = answer_to(server, client)
    length = re.search(rb"Content-Length: (\d+)\r", answer)
    assert length is not None and len(answer.partition(b"\r\n\r\n")[2]) == int(length[1])


def test_file_is_discarded_even_if_closing_it_fails(tmp_path: Path) -> None:
    unchecked = NewFile(str(tmp_path / "file"), "md5")
    os.close(unchecked._file.fileno())
    unchecked.abandon()
    body = Body()
    body.file = str(tmp_path / "body")
    body.write(b"some")
    os.close(body._fd)
    body.purge()
    assert not list(tmp_path.iterdir())


def test_file_whose_fstat_fails_is_not_left_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stale(fd: int) -> os.stat_result:
        raise OSError(errno.ESTALE, "Stale file handle")

    path = tmp_path / "file"
    path.touch()
    free = os.dup(2)
    os.close(free)
    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr(os, "fstat", stale)
        open_file(os.fsencode(path))
    again = os.dup(2)
    os.close(again)
    assert again == free
