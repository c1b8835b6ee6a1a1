"""Our Perlbal under load: wrk, ab and curl through it, to nginx and to examples/httpd.py."""

from __future__ import annotations

import contextlib
import hashlib
import random
import re
import resource
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import needs
from tests.clients import serving as example
from tests.perlbal.backends import Answer
from tests.perlbal.conversation import Deployment, Setting, deployment
from tests.perlbal.nginx import FILES, nginx
from tests.perlbal.servers import OURS, PATIENCE, Perlbal, serving
from tests.perlbal.steps import get, good, request

PIECE = 1 << 20
BIG = 200 * PIECE
MAX_MEMORY_GROWTH = 6 * PIECE
"""How much the memory may grow with any traffic: the buffers, with data held twice."""

PROXY = """
CREATE POOL far
  POOL far ADD {far}
CREATE SERVICE proxy
  SET role   = reverse_proxy
  SET listen = {proxy}
  SET pool   = far
  SET persist_client  = on
  SET persist_backend = on
  SET idle_timeout    = 120
ENABLE proxy
CREATE SERVICE web
  SET role    = web_server
  SET listen  = {web}
  SET docroot = {folder}
  SET persist_client = on
ENABLE web
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tree")
    (folder / "small.txt").write_bytes(b"x" * 1024)
    dice = random.Random(1)
    with (folder / "big.bin").open("wb") as big:
        for _ in range(BIG // PIECE):
            big.write(dice.randbytes(PIECE))
    (folder / "put").mkdir(mode=0o777)
    return folder


@contextlib.contextmanager
def many_descriptors() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@contextlib.contextmanager
def proxying(port: int, folder: Path) -> Iterator[Perlbal]:
    folder.mkdir()
    (folder / "small.txt").write_bytes(b"x" * 1024)
    with (
        many_descriptors(),
        serving(OURS, PROXY, folder, {"far": port}, ("proxy", "web")) as server,
    ):
        yield server
        assert "Traceback" not in server.said(), server.said()


@pytest.fixture(scope="module", params=["nginx", "httpd"])
def server(
    request: pytest.FixtureRequest, tree: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Perlbal]:
    folder = tmp_path_factory.mktemp("load")
    with contextlib.ExitStack() as stack:
        if request.param == "nginx":
            needs.need("nginx")
            far = stack.enter_context(nginx(folder / "nginx", FILES.format(tree=tree))).port
        else:
            far = stack.enter_context(example("httpd.py", str(tree), "--port", "0")).port
        yield stack.enter_context(proxying(far, folder / "ours"))


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def count(text: str, name: str) -> int:
    found = re.search(rf"{name}: +(\d+)", text)
    return int(found[1]) if found else 0


@pytest.mark.needs("ab")
@pytest.mark.parametrize("kept", [True, False], ids=["kept", "not kept"])
@pytest.mark.parametrize("service", ["proxy", "web"])
def test_ab_gets_every_answer_on_64_connections(server: Perlbal, service: str, kept: bool) -> None:
    url = f"http://127.0.0.1:{server.ports[service]}/small.txt"
    said = run("ab", "-q", "-s", "60", "-n", "1500", "-c", "64", *(["-k"] if kept else []), url)
    assert count(said, "Complete requests") == 1500
    assert count(said, "Failed requests") == count(said, "Non-2xx responses") == 0
    assert count(said, "HTML transferred") == 1500 * 1024
    assert count(said, "Keep-Alive requests") == (1500 if kept else 0)


@pytest.mark.needs("wrk")
@pytest.mark.parametrize("service", ["proxy", "web"])
def test_wrk_gets_only_good_answers_on_64_connections(server: Perlbal, service: str) -> None:
    url = f"http://127.0.0.1:{server.ports[service]}/small.txt"
    said = run("wrk", "-t1", "-c64", "-d1s", "--timeout", "30s", url)
    assert "Non-2xx" not in said and "Socket errors" not in said, said
    assert (found := re.search(r"(\d+) requests in ", said)) and int(found[1]) > 0


@pytest.mark.needs("curl")
def test_download_of_200_mb_arrives_unchanged_in_constant_memory(
    server: Perlbal, tree: Path
) -> None:
    url = f"http://127.0.0.1:{server.ports['proxy']}/big.bin"
    run("curl", "-sf", "-o", "/dev/null", url.replace("big.bin", "small.txt"))
    before = server.memory("VmRSS")
    command = ["curl", "-sf", "--max-time", "100", url]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as curl:
        assert curl.stdout is not None
        found = hashlib.sha256()
        while piece := curl.stdout.read(PIECE):
            found.update(piece)
        assert curl.wait() == 0
    assert found.digest() == hashlib.sha256((tree / "big.bin").read_bytes()).digest()
    assert server.memory("VmHWM") - before < MAX_MEMORY_GROWTH


@pytest.mark.needs("curl", "nginx")
def test_upload_of_200_mb_arrives_unchanged_in_constant_memory(tree: Path, tmp_path: Path) -> None:
    with nginx(tmp_path / "nginx", FILES.format(tree=tree)) as far:
        with proxying(far.port, tmp_path / "ours") as server:
            url = f"http://127.0.0.1:{server.ports['proxy']}/put/up.bin"
            run("curl", "-sf", "-T", str(tree / "small.txt"), url)
            before = server.memory("VmRSS")
            run("curl", "-sf", "--max-time", "100", "-T", str(tree / "big.bin"), url)
            assert (tree / "put" / "up.bin").read_bytes() == (tree / "big.bin").read_bytes()
            (tree / "put" / "up.bin").unlink()
            assert server.memory("VmHWM") - before < MAX_MEMORY_GROWTH


def test_client_that_does_not_read_costs_no_more_than_the_buffers(server: Perlbal) -> None:
    with server.connect("proxy", buffer=4096) as lazy, server.connect("proxy") as other:
        before = server.memory()
        lazy.sendall(get("/big.bin"))
        for _ in range(200):
            ask(other, "/small.txt")
        assert server.memory() - before < MAX_MEMORY_GROWTH
        spent = server.cpu_seconds()
        time.sleep(0.5)
        assert server.cpu_seconds() - spent < 0.2, "it spins"
        taken = 0
        while taken < PIECE:
            taken += len(lazy.recv(1 << 16))
    ask_on_new_connection(server)


def test_backend_that_does_not_read_costs_no_more_than_the_buffers(tmp_path: Path) -> None:
    with socket.socket() as lazy, contextlib.ExitStack() as stack:
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        lazy.settimeout(PATIENCE)
        lazy.bind(("127.0.0.1", 0))
        lazy.listen()
        server = stack.enter_context(proxying(lazy.getsockname()[1], tmp_path / "ours"))
        client = stack.enter_context(server.connect("proxy", buffer=4096))
        before = server.memory()
        client.sendall(request("POST", "/", f"Content-Length: {BIG}"))
        client.settimeout(0.5)
        sent = 0
        with contextlib.suppress(TimeoutError):
            while sent < BIG:
                sent += client.send(b"x" * 65536)
        assert sent < BIG, "all of it was read"
        assert server.memory() - before < MAX_MEMORY_GROWTH
        spent = server.cpu_seconds()
        time.sleep(0.5)
        assert server.cpu_seconds() - spent < 0.2, "it spins"
        backend = stack.enter_context(lazy.accept()[0])
        heard = b"".join(iter(lambda: backend.recv(1), b"\n"))
        assert heard.startswith(b"POST / HTTP/1.0\r")
        client.setblocking(False)
        taken = 0
        while taken < sent + PIECE:
            with contextlib.suppress(BlockingIOError):
                client.send(b"x" * 65536)
            taken += len(backend.recv(1 << 16))
        assert server.memory() - before < MAX_MEMORY_GROWTH


def ask(client: socket.socket, path: str) -> None:
    """Send a request, and read its whole answer: 1,024 times an x."""
    client.sendall(get(path))
    heard = b""
    while not heard.endswith(b"x" * 1024):
        piece = client.recv(1 << 16)
        assert piece, heard
        heard += piece
    assert heard.startswith(b"HTTP/1.0 200 "), heard[:200]


def ask_on_new_connection(server: Perlbal) -> None:
    with server.connect("proxy") as client:
        ask(client, "/small.txt")


@contextlib.contextmanager
def served(answer: Callable[[socket.socket, int], None]) -> Iterator[int]:
    """A port where a thread answers each request. `answer` gets the length of the body."""

    def serve() -> None:
        with contextlib.suppress(OSError):  # The listener has been shut down.
            while True:
                connection, _ = listener.accept()
                with connection, contextlib.suppress(OSError):
                    connection.settimeout(PATIENCE)
                    head = b""
                    while b"\r\n\r\n" not in head and (byte := connection.recv(1)):
                        head += byte
                    if length := re.search(rb"Content-Length: (\d+)", head):
                        answer(connection, int(length[1]))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)  # A close alone doesn't wake the accept.
            thread.join(PATIENCE)
            assert not thread.is_alive()


def uploaded(server: Perlbal, body: bytes) -> bytes:
    """Send the body in another thread, and return everything that the server sends back."""
    with server.connect("proxy") as client:
        head = request("POST", "/", f"Content-Length: {len(body)}", version="1.0")

        def upload() -> None:
            with contextlib.suppress(OSError):
                client.sendall(head + body)

        sender = threading.Thread(target=upload)
        sender.start()
        back = b"".join(iter(lambda: client.recv(1 << 16), b""))
        sender.join(PATIENCE)
        return back


@pytest.mark.parametrize("disk", ["off", "on"])
def test_backend_that_answers_while_it_reads_gets_the_whole_body(tmp_path: Path, disk: str) -> None:
    def echo(connection: socket.socket, length: int) -> None:
        connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % length)
        while length > 0 and (piece := connection.recv(1 << 16)):
            length -= len(piece)
            connection.sendall(piece)

    body = random.Random(1).randbytes(5 * PIECE)
    with served(echo) as port, proxying(port, tmp_path / "d") as server:
        server.manage("SET proxy.buffer_uploads_path = " + str(tmp_path))
        server.manage(f"SET proxy.buffer_uploads = {disk}")
        _, _, back = uploaded(server, body).partition(b"\r\n\r\n")
    assert hashlib.sha256(back).digest() == hashlib.sha256(body).digest()


@pytest.mark.parametrize("size", [10, 10_000])
def test_answer_is_complete_if_the_backend_closes_in_the_middle_of_the_body(
    tmp_path: Path, size: int
) -> None:
    def refuse(connection: socket.socket, length: int) -> None:
        connection.sendall(b"HTTP/1.0 413 Too much\r\n\r\n" + b"x" * size)

    with served(refuse) as port, proxying(port, tmp_path / "d") as server:
        for _ in range(20):
            head, _, body = uploaded(server, bytes(5 * PIECE)).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.0 413 ")
            assert len(body) == size


def test_1000_idle_clients_cost_little_and_hinder_no_one(server: Perlbal) -> None:
    descriptors = server.descriptors()
    with many_descriptors(), contextlib.ExitStack() as idle:
        warm = [idle.enter_context(server.connect("proxy")) for _ in range(100)]
        for client in warm:
            ask(client, "/small.txt")
        before = server.memory("RssAnon")
        for number in range(1000):
            client = idle.enter_context(server.connect("proxy" if number % 2 else "web"))
            if number % 100 == 99:
                ask(client, "/small.txt")  # the server has accepted it and all before it
        assert server.memory("RssAnon") - before < 1000 * 3 * 1024
        ask_on_new_connection(server)
    limit = time.monotonic() + 20
    while server.descriptors() > descriptors + 2 and time.monotonic() < limit:
        time.sleep(0.05)  # one or two kept backend connections may be new
    assert server.descriptors() <= descriptors + 2
    ask_on_new_connection(server)


# --- faulty backends ------------------------------------------------------------------------------

TWO_BACKENDS = Setting(
    "two",
    """
    CREATE POOL both
      POOL both ADD {good}
      POOL both ADD {bad}
    CREATE SERVICE proxy
      SET role   = reverse_proxy
      SET listen = {proxy}
      SET pool   = both
      SET persist_client  = on
      SET persist_backend = on
    ENABLE proxy
    CREATE POOL alone
      POOL alone ADD {bad}
    CREATE SERVICE slow
      SET role   = reverse_proxy
      SET listen = {slow}
      SET pool   = alone
    ENABLE slow
    CREATE POOL other
      POOL other ADD {good}
    CREATE SERVICE fast
      SET role   = reverse_proxy
      SET listen = {fast}
      SET pool   = other
      SET persist_client = on
    ENABLE fast
    """,
    services=("proxy", "slow", "fast"),
    backends=("good", "bad"),
)
GOOD = good(b"x" * 1024)


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Deployment]:
    with deployment(TWO_BACKENDS, OURS, tmp_path / "h") as opened:
        yield opened


def test_slow_backend_hinders_no_one_and_is_read_to_the_end(two: Deployment) -> None:
    bad = two.backends["bad"]
    body = bytes(range(256)) * 8
    answer = good(body)
    for _ in range(20):
        bad.script.answers.append(Answer(answer.data[:-1], gate="go", rest=answer.data[-1:]))
    two.backends["good"].script.answers.extend([GOOD] * 300)
    with contextlib.ExitStack() as stack:
        waiting = [stack.enter_context(two.server.connect("slow")) for _ in range(20)]
        for client in waiting:
            client.sendall(get("/slow"))
        bad.wait(lambda script: len(script.got) == 20)
        with two.server.connect("fast") as client:
            for _ in range(300):
                ask(client, "/")
        bad.gate("go").set()
        for client in waiting:
            heard = b""
            while piece := client.recv(1 << 16):
                heard += piece
            assert heard.endswith(b"\r\n\r\n" + body)


def test_backend_that_dies_in_the_middle_fails_only_its_own_clients(two: Deployment) -> None:
    """One of two backends dies while it has requests, and its address then refuses connections."""
    bad = two.backends["bad"]
    answer = good(b"x" * 1024)
    half = Answer(answer.data[:500], gate="never", rest=b"never")
    bad.script.answers.extend([half] * 1000)
    # If it answered at once, a single connection to it might serve all of the slow threads.
    good_ones = two.backends["good"]
    good_ones.script.answers.extend([Answer(b"", gate="both asked", rest=answer.data)] * 1000)
    ends: list[bool] = []

    def client() -> None:
        with two.server.connect("proxy") as connection:
            try:
                ask(connection, "/")
                ends.append(True)
            except (AssertionError, ConnectionResetError):
                ends.append(False)

    threads = [threading.Thread(target=client) for _ in range(40)]
    for thread in threads:
        thread.start()
    assert bad.wait(lambda script: len(script.got) > 3)
    asked = len(bad.script.got)
    bad.close()
    good_ones.gate("both asked").set()
    for thread in threads:
        thread.join()
    assert len(ends) == 40
    # How many requests the dead one had is unknown, because the kernel had accepted some for it.
    # But each request to the other one is answered, and none is sent twice.
    assert ends.count(True) == len(good_ones.script.got) > 0
    assert asked > 3
    for _ in range(40):
        with two.server.connect("proxy") as connection:
            ask(connection, "/")
