"""The programs of docs/recipes.md, each tried for its purpose."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.clients import FLOOD, flood, read_to_end
from tests.needs import need
from tests.test_docs import (
    BLOCKS,
    ENVIRONMENT,
    PATIENCE,
    receive,
    servers,
    talk_echo,
    talk_lines,
)

RECIPES = {
    block.how.removeprefix("recipe "): block.text
    for block in BLOCKS
    if block.page == "recipes.md" and block.how.startswith("recipe ")
}
BACKENDS = ["epoll", "poll"]
LITTLE_MEMORY = 8 * 1024 * 1024


class Running(NamedTuple):
    """A running recipe."""

    process: subprocess.Popen[str]
    port: int

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), PATIENCE)

    def peak_memory(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        (peak,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
        return int(peak.split()[1]) * 1024


@contextlib.contextmanager
def running(
    text: str, *arguments: str, backend: str = "epoll", ends: int | None = None
) -> Iterator[Running]:
    """Run a program in its own process; it must print nothing to standard error. With `ends`, it
    must end by itself, with that status, after a SIGTERM."""
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", text, *arguments],
        env={**ENVIRONMENT, "DANGA_RAW_BACKEND": backend},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        try:
            said = process.stdout.readline()
            assert said, process.stderr.read()
            yield Running(process, int(said.split()[-1]))
            if process.poll() is None:
                process.terminate()
            assert process.wait(PATIENCE) == (-signal.SIGTERM if ends is None else ends)
        finally:
            process.kill()
        assert process.stderr.read() == ""


def test_every_recipe_is_tested_here() -> None:
    source = Path(__file__).read_text()
    assert [name for name in RECIPES if f'"{name}"' not in source] == []


# --- many processes -------------------------------------------------------------------------------


def answering_process(server: Running) -> int:
    """The process that answers a new connection."""
    with server.connect() as client:
        client.sendall(b"who?\n")
        client.shutdown(socket.SHUT_WR)
        return int(receive(client, 100))


@pytest.mark.parametrize("name", ["forked", "reuseport"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_processes_share_a_port_and_end_together(name: str, backend: str) -> None:
    with running(RECIPES[name], backend=backend, ends=0) as server:
        children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
        born = {int(child) for child in children.read_text().split()}
        assert len(born) == 4
        first = answering_process(server)
        assert first in born
        os.kill(first, signal.SIGKILL)
        # Where each has its own queue, the dead one's may still exist for a moment.
        deadline = time.monotonic() + PATIENCE
        while True:
            assert time.monotonic() < deadline
            with contextlib.suppress(OSError, ValueError):
                if answering_process(server) != first:
                    break
        if name == "forked":
            while len(set(map(int, children.read_text().split())) - {first}) < 4:
                assert time.monotonic() < deadline
                time.sleep(0.01)
        born |= {int(child) for child in children.read_text().split()}
    for child in born:
        assert not Path(f"/proc/{child}").exists()


@pytest.mark.parametrize("name", ["forked", "reuseport"])
def test_processes_end_when_their_parent_is_killed(name: str) -> None:
    with running(RECIPES[name], ends=-signal.SIGKILL) as server:
        children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
        born = [int(child) for child in children.read_text().split()]
        answering_process(server)
        server.process.kill()
        # They all share its standard output, so this is the end of the last.
        assert server.process.stdout is not None and server.process.stdout.read() == ""
        assert len(born) == 4


@pytest.mark.parametrize("name", ["forked", "reuseport"])
def test_failing_process_says_why(name: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", RECIPES[name].replace("loop.add_other_fds", "loop.nothing")],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.terminate()
        assert "AttributeError" in process.communicate(timeout=PATIENCE)[1]
        assert process.returncode == 0


# --- stopping, idling, copying --------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_graceful_stop_loses_no_answer(backend: str) -> None:
    with running(RECIPES["graceful"], backend=backend, ends=0) as server:
        with server.connect() as idle, server.connect() as asking:
            asking.sendall(b"one\ntwo\n")
            assert receive(asking, 5) == b"done\n"
            asking.sendall(b"three\n")
            idle.sendall(b"heard?\n")
            assert receive(idle, 5) == b"done\n"
            server.process.terminate()
            assert read_to_end(idle) == b""
            with pytest.raises(ConnectionError), server.connect() as late:
                late.recv(1)
            assert read_to_end(asking) == b"done\n" * 2
        assert server.process.wait(PATIENCE) == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_graceful_stop_resets_no_client(backend: str) -> None:
    """Neither a client whose request is still unread, nor one that keeps sending requests."""
    with running(RECIPES["graceful"], backend=backend, ends=0) as server:
        with server.connect() as asking, server.connect() as idle:
            idle.sendall(b"heard?\n")
            assert receive(idle, 5) == b"done\n"
            asking.sendall(b"one\n")
            server.process.send_signal(signal.SIGSTOP)
            with server.connect() as new:
                new.sendall(b"two\n")
                server.process.terminate()
                server.process.send_signal(signal.SIGCONT)
                assert read_to_end(idle) == b""  # It has come after the other.
                asking.sendall(b"too late\n")
                assert read_to_end(new) == read_to_end(asking) == b"done\n"
        # A second SIGTERM would find Python's exit, and no handler any more.
        server.process.wait(PATIENCE)


def told(server: Running) -> bytes:
    """The text of the worker that answers a new connection."""
    with server.connect() as client:
        client.sendall(b"?\n")
        client.shutdown(socket.SHUT_WR)
        return read_to_end(client)


def children_of(process: subprocess.Popen[str]) -> list[int]:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(child) for child in children.read_text().split()]


@pytest.mark.parametrize("backend", BACKENDS)
def test_reload_loses_no_client(backend: str, tmp_path: Path) -> None:
    """Neither who keeps a connection, nor who has not asked yet, nor who comes meanwhile."""
    text = tmp_path / "text"
    text.write_text("one\n")
    answers: list[bytes] = []
    done = threading.Event()
    with running(RECIPES["reload"], str(text), backend=backend, ends=0) as server:

        def keep_coming() -> None:
            while not done.is_set():
                answers.append(told(server))

        thread = threading.Thread(target=keep_coming)
        with server.connect() as silent, server.connect() as kept:
            kept.sendall(b"?\n?\n")
            assert receive(kept, 8) == b"one\n" * 2
            text.write_text("two\n")
            thread.start()
            try:
                server.process.send_signal(signal.SIGHUP)
                assert read_to_end(kept) == b""
                assert told(server) == b"two\n"
                silent.sendall(b"?\n")
                assert read_to_end(silent) == b"one\n"
            finally:
                done.set()
                thread.join()
    assert answers and set(answers) <= {b"one\n", b"two\n"}


def test_failing_reload_changes_nothing_and_dead_workers_are_replaced(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("one\n")
    with running(RECIPES["reload"], str(text), ends=0) as server:
        assert told(server) == b"one\n"
        (first,) = children_of(server.process)
        text.unlink()
        server.process.send_signal(signal.SIGHUP)
        assert server.process.stderr is not None
        while "FileNotFoundError" not in server.process.stderr.readline():
            pass
        assert told(server) == b"one\n"
        text.write_text("two\n")
        os.kill(first, signal.SIGKILL)
        assert told(server) == b"two\n"


def test_workers_end_with_a_killed_parent_and_a_parent_ends_without_workers(
    tmp_path: Path,
) -> None:
    text = tmp_path / "text"
    run = subprocess.run(
        [sys.executable, "-c", RECIPES["reload"], str(text)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert run.returncode == 1 and "FileNotFoundError" in run.stderr
    text.write_text("one\n")
    with running(RECIPES["reload"], str(text), ends=-signal.SIGKILL) as server:
        assert told(server) == b"one\n"
        server.process.kill()
        assert server.process.stdout is not None and server.process.stdout.read() == ""


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_idle_connections_are_closed(backend: str) -> None:
    text = (
        RECIPES["idle"].replace("IDLE = 60.0", "IDLE = 2.0").replace("EVERY = 1.0", "EVERY = 0.1")
    )
    assert text.count("2.0") == 1
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = min(500, soft // 2)
    with running(text, backend=backend) as server, contextlib.ExitStack() as stack:
        talker = stack.enter_context(server.connect())
        idle = [stack.enter_context(server.connect()) for _ in range(count)]
        done = threading.Event()

        def talk() -> None:
            while not done.wait(0.02):
                talker.sendall(b"x")
                assert talker.recv(1) == b"x"

        thread = threading.Thread(target=talk)
        thread.start()
        try:
            for client in idle:
                assert client.recv(1) == b""
        finally:
            done.set()
            thread.join()
        talker.sendall(b"still here")
        assert receive(talker, 10) == b"still here"


@pytest.mark.parametrize("backend", BACKENDS)
def test_proxy_forwards_everything_in_bounded_memory(backend: str) -> None:
    (echo,) = (block for block in servers("python") if block.how == "echo")
    with running(echo.text, backend=backend) as target:
        with running(RECIPES["proxy"], str(target.port), backend=backend) as proxy:
            talk_echo(("127.0.0.1", proxy.port))
            with proxy.connect() as client:
                data = random.Random(1).randbytes(3_000_000)

                def send() -> None:
                    client.sendall(data)
                    client.shutdown(socket.SHUT_WR)

                sender = threading.Thread(target=send)
                sender.start()
                assert read_to_end(client) == data
                sender.join()
            before = proxy.peak_memory()
            with proxy.connect() as deaf, proxy.connect() as other:

                def others() -> None:
                    other.sendall(b"x")
                    assert other.recv(1) == b"x"

                assert flood(deaf, bytes(65536), others) < FLOOD
            assert proxy.peak_memory() - before < LITTLE_MEMORY


@pytest.mark.parametrize("backend", BACKENDS)
def test_proxy_forwards_half_closes_ends_and_failures(backend: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as target:
        target.settimeout(PATIENCE)
        port = str(target.getsockname()[1])
        with running(RECIPES["proxy"], port, backend=backend) as proxy:
            # Either side may end first, and the other still sends.
            for first in (0, 1):
                ends = [proxy.connect(), target.accept()[0]]
                ends[first].sendall(b"question")
                ends[first].shutdown(socket.SHUT_WR)
                ends[1 - first].settimeout(PATIENCE)
                assert read_to_end(ends[1 - first]) == b"question"
                ends[1 - first].sendall(b"answer" * 100_000)
                ends[1 - first].close()
                assert read_to_end(ends[first]) == b"answer" * 100_000
                ends[first].close()
            # A reset ends both.
            for first in (0, 1):
                ends = [proxy.connect(), target.accept()[0]]
                ends[first].sendall(b"x")
                assert ends[1 - first].recv(1) == b"x"
                ends[first].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                ends[first].close()
                with contextlib.suppress(ConnectionError):
                    assert ends[1 - first].recv(1) == b""
                ends[1 - first].close()
            target.close()
            with proxy.connect() as client, contextlib.suppress(ConnectionError):
                assert client.recv(1) == b""


# --- lines ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_lines_are_answered_with_bounded_length_and_memory(backend: str) -> None:
    with running(RECIPES["lines"], backend=backend) as server:
        talk_lines(("127.0.0.1", server.port))
        with server.connect() as client, contextlib.suppress(ConnectionError):
            client.sendall(b"a" * 8192 + b"\n")
            assert receive(client, 8194) == b"A" * 8192 + b"\r\n"
            client.sendall(b"a" * 20_000)
            assert read_to_end(client) == b""
        before = server.peak_memory()
        with server.connect() as deaf, server.connect() as other:

            def others() -> None:
                other.sendall(b"x\n")
                assert receive(other, 3) == b"X\r\n"

            assert flood(deaf, b"line\n" * 10_000, others) < FLOOD
            assert server.peak_memory() - before < LITTLE_MEMORY


@pytest.mark.parametrize("backend", BACKENDS)
def test_datagrams_are_answered_whatever_arrives(backend: str) -> None:
    with running(RECIPES["datagrams"], backend=backend, ends=0) as server:
        with (
            socket.socket(type=socket.SOCK_DGRAM) as client,
            socket.socket(type=socket.SOCK_DGRAM) as gone,
        ):
            gone.sendto(b"hello", ("127.0.0.1", server.port))
            gone.close()  # the answer to it is refused
            client.settimeout(PATIENCE)
            client.connect(("127.0.0.1", server.port))
            for data in (b"hello", b"", bytes(60_000), b"x" * 1000):
                client.send(data)
                assert client.recv(65535) == data.upper()
            for number in range(150):  # more than one turn takes
                client.send(b"n%d" % number)
            assert [client.recv(10) for _ in range(150)] == [b"N%d" % n for n in range(150)]


# --- TLS ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    need("openssl")
    pytest.importorskip("ssl")  # Python may be built without it
    folder = tmp_path_factory.mktemp("tls")
    made, key = str(folder / "certificate.pem"), str(folder / "key.pem")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run(
        [*command.split(), *names, "-out", made, "-keyout", key], check=True, capture_output=True
    )
    return made, key


BODY = b"hello over TLS\n" * 10_000
REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.mark.needs("openssl", "curl")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_tls_works_with_curl_and_openssl(
    certificate: tuple[str, str], version: str, backend: str
) -> None:
    with running(RECIPES["tls"], *certificate, backend=backend) as server:
        url = f"https://localhost:{server.port}/"
        options = ["-sS", "--fail", "--cacert", certificate[0], "--tls-max", version]
        for _ in range(3):
            got = subprocess.run(
                ["curl", *options, f"--tlsv{version}", "-4", url], capture_output=True, check=True
            )
            assert got.stdout == BODY
        got = subprocess.run(
            ["openssl", "s_client", "-connect", f"127.0.0.1:{server.port}", "-quiet",
             "-verify_return_error", "-CAfile", certificate[0], f"-tls{version.replace('.', '_')}",
             "-ign_eof"],
            input=REQUEST,
            capture_output=True,
            timeout=PATIENCE,
            check=True,
        )  # fmt: skip
        assert got.stdout.endswith(b"\r\n\r\n" + BODY)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("piece", [1, 7, 5000])
def test_tls_accepts_pieces_of_any_size_and_ends_properly(
    certificate: tuple[str, str], piece: int, backend: str
) -> None:
    """Our proxy cuts the stream; if TLS did not end it before, SSLEOFError is raised."""
    import ssl

    context = ssl.create_default_context(cafile=certificate[0])
    with running(RECIPES["tls"], *certificate, backend=backend) as server:
        with server.connect() as raw:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            tls = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
            tls_said, asked = b"", False
            while True:
                try:
                    if not asked:
                        tls.do_handshake()
                        tls.write(REQUEST)
                        asked = True
                    got = tls.read(100_000)
                    if not got:
                        break
                    tls_said += got
                except ssl.SSLWantReadError:
                    data = outgoing.read()
                    for start in range(0, len(data), piece):
                        raw.sendall(data[start : start + piece])
                    if more := raw.recv(10_000):
                        incoming.write(more)
                    else:
                        incoming.write_eof()
            assert tls_said.endswith(b"\r\n\r\n" + BODY)


@pytest.mark.parametrize("greeting", [b"", b"welcome\n"])
def test_tls_server_survives_clients_that_do_not_speak_tls(
    certificate: tuple[str, str], greeting: bytes
) -> None:
    import ssl

    first = 'self.head = b""\n'
    assert first in RECIPES["tls"]
    greets = RECIPES["tls"].replace(first, f"{first}        self.send({greeting!r})\n")
    with running(greets, *certificate) as server:
        chooser = random.Random(5)
        for data in (REQUEST, b"", b"\x16\x03\x01", chooser.randbytes(3000), bytes(5)):
            with server.connect() as client, contextlib.suppress(ConnectionError):
                client.sendall(data)
                client.shutdown(socket.SHUT_WR)
                read_to_end(client)
        context = ssl.create_default_context(cafile=certificate[0])
        with context.wrap_socket(server.connect(), server_hostname="localhost") as vanishing:
            vanishing.sendall(b"GET ")
        with context.wrap_socket(server.connect(), server_hostname="localhost") as client:
            client.sendall(REQUEST)
            got = read_to_end(client)
            assert got.startswith(greeting + b"HTTP/1.1 200") and got.endswith(BODY)


# --- systemd --------------------------------------------------------------------------------------


AS_SYSTEMD = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execv(sys.argv[2], sys.argv[2:])
"""


@pytest.mark.parametrize("backend", BACKENDS)
def test_socket_from_systemd_is_used(backend: str) -> None:
    with running(RECIPES["systemd"], backend=backend, ends=0) as server:
        talk_echo(("127.0.0.1", server.port))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port, fd = listener.getsockname()[1], listener.fileno()
        with subprocess.Popen(
            [sys.executable, "-c", AS_SYSTEMD, str(fd), sys.executable, "-c", RECIPES["systemd"]],
            env={**ENVIRONMENT, "DANGA_RAW_BACKEND": backend},
            stdout=subprocess.PIPE,
            pass_fds=[fd],
            text=True,
        ) as process:
            try:
                assert process.stdout is not None
                assert int(process.stdout.readline().split()[-1]) == port
                talk_echo(("127.0.0.1", port))
                process.terminate()
                assert process.wait(PATIENCE) == 0
            finally:
                process.kill()


def test_unix_socket_from_systemd_is_used(tmp_path: Path) -> None:
    with socket.create_server(str(tmp_path / "door"), family=socket.AF_UNIX) as listener:
        fd = listener.fileno()
        with subprocess.Popen(
            [sys.executable, "-c", AS_SYSTEMD, str(fd), sys.executable, "-c", RECIPES["systemd"]],
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            pass_fds=[fd],
            text=True,
        ) as process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline() == f"listening on {tmp_path / 'door'}\n"
                with socket.socket(socket.AF_UNIX) as client:
                    client.settimeout(PATIENCE)
                    client.connect(str(tmp_path / "door"))
                    client.sendall(b"hello")
                    client.shutdown(socket.SHUT_WR)
                    assert receive(client, 6) == b"hello"
                process.terminate()
                assert process.wait(PATIENCE) == 0
            finally:
                process.kill()


# --- a container ----------------------------------------------------------------------------------

UNDER_PROFILE = """
import os, sys
from tests.seccomp import install
install(sys.argv[1].split(","))
os.execv(sys.executable, [sys.executable, "-c", sys.argv[2]])
"""


@pytest.mark.needs("seccomp")
@pytest.mark.parametrize("backend", BACKENDS)
def test_container_needs_no_calls_beyond_its_profile(backend: str) -> None:
    """A call that isn't allowed kills it here, while under Docker it only fails."""
    profile = json.loads(
        subprocess.run(
            [sys.executable, "-m", "danga_raw", "info", "--seccomp"],
            env=ENVIRONMENT,
            capture_output=True,
            check=True,
        ).stdout
    )
    names = {name for entry in profile["syscalls"] for name in entry["names"]}
    for taken_off in (set[str](), {"accept4", "accept"}):
        allowed = ",".join(sorted(names - taken_off))
        with subprocess.Popen(
            [sys.executable, "-c", UNDER_PROFILE, allowed, RECIPES["container"]],
            env={**ENVIRONMENT, "DANGA_RAW_BACKEND": backend},
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                assert process.stdout is not None
                port = int(process.stdout.readline().split()[-1])
                if not taken_off:
                    talk_echo(("127.0.0.1", port))
                    process.terminate()
                    assert process.wait(PATIENCE) == 0
                else:
                    # It may be gone before the connection is established.
                    with contextlib.suppress(ConnectionError):
                        socket.create_connection(("127.0.0.1", port), PATIENCE).close()
                    assert process.wait(PATIENCE) == -signal.SIGSYS
            finally:
                process.kill()
