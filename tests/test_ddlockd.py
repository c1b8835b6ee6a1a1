"""examples/ddlockd.py, with good and hostile clients over loopback."""

import contextlib
import os
import random
import re
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from errno import EADDRINUSE

import pytest

from danga_raw import Socket, default_loop
from tests.clients import (
    EXAMPLES,
    FLOOD,
    PATIENCE,
    Server,
    children_end,
    failing,
    failing_twice,
    flood,
    read_to_end,
    serving,
    split,
)

OK = b"OK \r\n"
TAKEN = b"ERR taken "
LITTLE_MEMORY = 8 * 1024 * 1024


@pytest.fixture(scope="module", params=["epoll", "poll"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with serving("ddlockd.py", "0", backend=request.param) as running:
        yield running


class Client:
    """A client that reads an answer for each line, as the original's does."""

    def __init__(self, server: Server) -> None:
        self.sock = server.connect()
        self.stream = self.sock.makefile("rb")

    def ask(self, line: bytes) -> bytes:
        self.sock.sendall(line)
        return self.stream.readline()

    def locks(self, count: int) -> list[bytes]:
        """The answer to "locks", which must contain `count` of them."""
        assert self.ask(b"locks\r\n") == b"LOCKS:\n"
        return [self.stream.readline() for _ in range(count)]

    def leave(self) -> None:
        self.stream.close()
        self.sock.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()


def test_lock_has_one_holder_and_only_the_holder_releases_it(server: Server) -> None:
    with Client(server) as one, Client(server) as other:
        assert one.ask(b"trylock lock=a\r\n") == OK
        assert other.ask(b"trylock lock=a\r\n").startswith(TAKEN)
        assert one.ask(b"trylock lock=a\r\n").startswith(TAKEN)
        assert other.ask(b"trylock lock=b\r\n") == OK
        assert other.ask(b"releaselock lock=a\r\n").startswith(b"ERR didnthave ")
        assert one.ask(b"releaselock lock=a\r\n") == OK
        assert one.ask(b"releaselock lock=a\r\n").startswith(b"ERR didnthave ")
        assert other.ask(b"trylock lock=a\r\n") == OK


@pytest.mark.parametrize("reset", [False, True])
def test_lock_is_released_when_its_connection_ends(server: Server, reset: bool) -> None:
    with Client(server) as heir:
        with Client(server) as holder:
            assert holder.ask(b"trylock lock=mortal\r\n") == OK
            if reset:
                holder.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        # The kernel may tell the server of the end a little later.
        deadline = time.monotonic() + PATIENCE
        while (said := heir.ask(b"trylock lock=mortal\r\n")) != OK:
            assert said.startswith(TAKEN) and time.monotonic() < deadline


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        (b"noop\r\n", OK),
        (b"noop\n", OK),
        (b"NoOp\r\n", OK),
        (b"noop whatever=1\r\n", OK),
        (b"TRYLOCK lock=case\r\n", OK),
        (b"trylock other=1&lock=second&more=2\r\n", OK),
        (b"trylock   lock=spaces\n", OK),
        (b"trylock\r\n", b"ERR empty_lock "),
        (b"trylock lock\r\n", b"ERR empty_lock "),
        (b"trylock lock=\r\n", b"ERR empty_lock "),
        (b"trylock Lock=a\r\n", b"ERR empty_lock "),
        (b"releaselock\r\n", b"ERR empty_lock "),
        (b"releaselock lock=never\r\n", b"ERR didnthave "),
        (b"\r\n", b"ERR unknown_command "),
        (b"\n", b"ERR unknown_command "),
        (b" noop\r\n", b"ERR unknown_command "),
        (b"trylocklock=a\r\n", b"ERR unknown_command "),
        (b"close\r\n", b"ERR unknown_command "),
        (b"__init__\r\n", b"ERR unknown_command "),
        (b"\xff\xfe\0\r\n", b"ERR unknown_command "),
    ],
)
def test_each_line_gets_its_answer(server: Server, line: bytes, answer: bytes) -> None:
    with Client(server) as client:
        said = client.ask(line)
        assert said.startswith(answer) and said.endswith(b"\r\n")
        if said != OK:
            # ERR, the code, and a text in one word, as it is URL-encoded.
            assert re.fullmatch(rb"ERR \w+ [\w%+]+\r\n", said)
        assert client.ask(b"noop\r\n") == OK


def test_names_are_url_encoded(server: Server) -> None:
    with Client(server) as one, Client(server) as other:
        assert one.ask(b"trylock lock=a+b%26c%3D%e9\r\n") == OK
        assert other.ask(b"trylock lock=%61%20b%26c=\xe9\r\n").startswith(TAKEN)
        assert other.ask(b"trylock lock=a%2Bb\r\n") == OK


def test_locks_lists_every_lock_and_its_holder() -> None:
    with serving("ddlockd.py", "0") as server, Client(server) as one, Client(server) as other:
        assert one.locks(0) == []
        assert one.ask(b"trylock lock=the+second\r\n") == OK
        assert other.ask(b"trylock lock=first\r\n") == OK
        # A name can't pass for another line, nor overwrite what comes before it.
        assert other.ask(b"trylock lock=x%0D%0A++false+%3D+me%7F\r\n") == OK
        ports = [client.sock.getsockname()[1] for client in (one, other)]
        assert one.locks(3) == [
            b"  first = Client(R): open to 127.0.0.1:%d\n" % ports[1],
            b"  the second = Client(R): open to 127.0.0.1:%d\n" % ports[0],
            b"  x%%0D%%0A  false = me%%7F = Client(R): open to 127.0.0.1:%d\n" % ports[1],
        ]


def test_lines_are_answered_however_they_are_split(server: Server) -> None:
    dialogue = [
        (b"trylock lock=s\r\n", b"OK "),
        (b"noop\n", b"OK "),
        (b"locked\n", b"ERR unknown_command "),
        (b"trylock lock=s\r\n", b"ERR taken "),
        (b"releaselock lock=s\n", b"OK "),
        (b"bogus\r\n", b"ERR unknown_command "),
        (b"noop\r\n", b"OK "),
    ]
    lines = b"".join(line for line, _ in dialogue)
    packets = [[lines], [bytes([byte]) for byte in lines]]
    packets += [split(lines, random.Random(seed), 8) for seed in range(20)]
    for pieces in packets:
        with Client(server) as client:
            client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for piece in pieces:
                client.sock.sendall(piece)
            for line, answer in dialogue:
                assert client.stream.readline().startswith(answer), (line, pieces)


def test_line_without_an_end_closes_the_connection(server: Server) -> None:
    with Client(server) as client:
        assert client.ask(b"trylock lock=" + b"a" * 60_000 + b"\r\n") == OK
        # It may close the connection before everything is sent.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            client.sock.sendall(b"trylock lock=" + b"a" * 70_000)
            assert read_to_end(client.sock) == b""
    with Client(server) as client:
        assert client.ask(b"noop\r\n") == OK


def test_client_that_does_not_read_is_not_read_from() -> None:
    with serving("ddlockd.py", "0") as server, Client(server) as client:
        assert client.ask(b"trylock lock=" + b"a" * 50_000 + b"\r\n") == OK
        assert len(client.locks(1)[0]) > 50_000
        before = server.peak_memory()
        with Client(server) as other:
            sent = flood(client.sock, b"locks\r\n" * 1000, lambda: other.ask(b"noop\r\n"))
        assert sent < FLOOD
        assert server.peak_memory() - before < LITTLE_MEMORY
        for _ in range(200):
            assert client.stream.readline() == b"LOCKS:\n"
            assert len(client.stream.readline()) > 50_000
        assert server.peak_memory() - before < LITTLE_MEMORY


def hold_many(client: Client, count: int) -> None:
    """Take `count` locks, not in the order of their names."""
    for start in range(0, count, 1000):
        numbers = range(start, min(start + 1000, count))
        client.sock.sendall(
            b"".join(b"trylock lock=%08d\n" % (n * 7919 % 1000003) for n in numbers)
        )
        for _ in numbers:
            assert client.stream.readline() == OK


def test_long_table_is_sent_at_the_pace_of_its_readers() -> None:
    count, askers, times = 30_000, 5, 10
    with serving("ddlockd.py", "0") as server, Client(server) as holder, Client(server) as other:
        hold_many(holder, count)
        before = server.peak_memory()
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(Client(server)) for _ in range(askers)]
            for client in clients:
                client.sock.sendall(b"locks\n" * times + b"noop\n")
            for _ in range(100):
                assert other.ask(b"noop\n") == OK
            expected = sorted(n * 7919 % 1000003 for n in range(count))
            for client in clients[:2]:
                for _ in range(times):
                    assert client.stream.readline() == b"LOCKS:\n"
                    lines = [client.stream.readline() for _ in range(count)]
                    assert [int(line.split()[0]) for line in lines] == expected
                    assert other.ask(b"noop\n") == OK
                assert client.stream.readline() == OK
        # 5 clients have asked for 1.6 MB ten times each.
        assert server.peak_memory() - before < LITTLE_MEMORY


def turn() -> None:
    default_loop().set_loop_timeout(0)
    default_loop().set_post_loop_callback(lambda *_: False)
    default_loop().run()


def test_long_work_does_not_starve_other_clients() -> None:
    """In the test's own process, where turns can be counted."""
    ddlockd = runpy.run_path(str(EXAMPLES / "ddlockd.py"))
    count = 50_000
    try:
        ends = [socket.socketpair() for _ in range(3)]
        for end in ends:
            end[0].setblocking(False)
        holder, asker, _ = (ddlockd["Client"](end[0]) for end in ends)
        for number in range(count):
            name = f"{number:08}"
            ddlockd["holder"][name] = holder
            ddlockd["names"].add(name)
            holder.locks.add(name)
        ends[1][1].sendall(b"locks\n")
        turn()
        ends[2][1].sendall(b"noop\n")
        got = b""
        for _ in range(3):
            got += ends[1][1].recv(1 << 20)
            turn()
        assert ends[2][1].recv(100) == OK
        assert 0 < got.count(b"\n") < count // 4
        asker.close()

        # The locks of a client that has left are free at once, and a few are released in each turn.
        holder.close()
        turn()
        assert count // 2 < len(holder.locks) < count
        ends[2][1].sendall(b"trylock lock=00000000\ntrylock lock=%08d\nlocks\n" % (count - 1))
        turn()
        assert ends[2][1].recv(100).splitlines()[:2] == [b"OK ", b"OK "]
        for _ in range(2 * count // ddlockd["A_TURN"]):
            turn()
        assert holder.locks == set() and sorted(ddlockd["holder"]) == [
            "00000000",
            f"{count - 1:08}",
        ]
        assert list(ddlockd["names"].after("")) == ["00000000", f"{count - 1:08}"]
    finally:
        Socket.Reset()
        for end in ends:
            for each in end:
                each.close()


def test_names_stay_sorted_whatever_is_added_and_removed() -> None:
    names = runpy.run_path(str(EXAMPLES / "ddlockd.py"))["Names"]()
    names.RUN = 4
    chooser = random.Random(1)
    model: set[str] = set()
    for _ in range(3000):
        name = str(chooser.randrange(200))
        if name in model:
            model.remove(name)
            names.remove(name)
        else:
            model.add(name)
            names.add(name)
        start = str(chooser.randrange(200))
        assert list(names.after("")) == sorted(model)
        assert list(names.after(start)) == [each for each in sorted(model) if each > start]
        assert all(0 < len(run) <= 8 for run in names.runs)


def test_no_input_ends_the_server(server: Server) -> None:
    words = [b"trylock", b"releaselock", b"locks", b"noop", b" ", b"lock=", b"&", b"=", b"%", b"+"]
    words += [b"%41", b"%zz", b"\r", b"\n", b"\r\n", b"\0", b"\xff", b"a", b"close", b"_release"]
    for seed in range(300):
        chooser = random.Random(seed)
        data = b"".join(chooser.choices(words, k=chooser.randrange(1, 200)))
        if chooser.random() < 0.2:
            data = chooser.randbytes(chooser.randrange(1, 5000))
        with server.connect() as client:
            for piece in split(data, chooser, chooser.randrange(8)):
                client.sendall(piece)
            if chooser.random() < 0.5:
                client.shutdown(socket.SHUT_WR)
                read_to_end(client)
    with Client(server) as after:
        assert after.ask(b"noop\r\n") == OK


@pytest.mark.parametrize("backend", ["epoll", "poll"])
def test_connected_clients_are_served_at_the_descriptor_limit_and_others_wait(backend: str) -> None:
    limit = 24
    with serving("ddlockd.py", "0", backend=backend, descriptors=limit) as server:
        room = limit - server.descriptors()
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(Client(server)) for _ in range(room + 8)]
            inside, outside = clients[:room], clients[room:]
            for number, client in enumerate(inside):
                assert client.ask(b"trylock lock=%d\r\n" % number) == OK
            for client in outside:
                client.sock.sendall(b"trylock lock=0\r\n")
            before = server.cpu_seconds()
            time.sleep(1)
            assert server.cpu_seconds() - before < 0.2
            for client in inside:
                assert client.ask(b"noop\r\n") == OK
            for client in outside:
                client.sock.setblocking(False)
                with pytest.raises(BlockingIOError):
                    client.sock.recv(1)
                client.sock.settimeout(PATIENCE)
            # The last lock is tried first, so that lock 0 is free only for the last client to ask.
            for leaves, comes in zip(reversed(inside), outside):
                leaves.leave()
                assert comes.stream.readline().startswith(TAKEN)
        with Client(server) as after:
            assert after.ask(b"noop\r\n") == OK


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_server_ends_quietly(number: int) -> None:
    with serving("ddlockd.py", "0") as server, Client(server) as client:
        assert server.greeting == f"listening on 127.0.0.1:{server.port}"
        assert client.ask(b"noop\r\n") == OK
        assert server.stop(number) == -number


def test_help_shows_the_usage() -> None:
    for option in ("-h", "--help"):
        done = subprocess.run(
            [sys.executable, str(EXAMPLES / "ddlockd.py"), option],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("usage: ddlockd.py [-h] [PORT]")


@pytest.mark.needs("strace")
def test_lack_of_descriptors_and_of_poller_entries_does_not_end_the_server() -> None:
    for change in (3, 4):
        with serving("ddlockd.py", "0", wrapper=failing_twice(change)) as server:
            with children_end(server), Client(server) as client:
                assert client.ask(b"noop\r\n") == OK


def test_startup_error_is_reported_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for argument, reason in (
            (port, os.strerror(EADDRINUSE)),
            ("70000", "port must be 0-65535"),
            ("door", "invalid literal"),
        ):
            code, complaint = failing("ddlockd.py", argument)
            assert code == 2
            assert complaint.startswith("ddlockd.py: ") and reason in complaint
            assert complaint.count("\n") == 1
        code, complaint = failing("ddlockd.py", "7002", "7003")
        assert (code, complaint) == (2, "ddlockd.py: it takes one port, not '7002 7003'\n")
