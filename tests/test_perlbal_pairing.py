"""examples/perlbal: no client gets another's data, even if a peer leaves in the middle of anything.

Each request has a number, and its body and its answer consist of that number. Clients and backends
break off, answer early, send too much, or redirect to a URL, and keep their connections open where
that is allowed.
"""

from __future__ import annotations

import random
import re
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.perlbal.backends import receive
from tests.perlbal.conversation import Step, deployment
from tests.perlbal.reproxying import REPROXIES, to
from tests.perlbal.servers import OURS, PATIENCE, Perlbal, serving
from tests.perlbal.steps import (
    answered,
    ask,
    begun,
    early,
    get,
    good,
    hear,
    in_two,
    opens,
    request,
    send,
    serve,
    settled,
)

CONFIGURATION = """
CREATE POOL one
  POOL one ADD {a}
  POOL one ADD {b}
DEFAULT persist_client  = on
DEFAULT persist_backend = on
DEFAULT enable_reproxy  = on
DEFAULT idle_timeout    = 5
CREATE SERVICE disk
  SET role   = reverse_proxy
  SET listen = {disk}
  SET pool   = one
  SET buffer_uploads      = on
  SET buffer_uploads_path = {folder}
  SET buffer_upload_threshold_size = 3000
ENABLE disk
CREATE SERVICE tight
  SET role   = reverse_proxy
  SET listen = {tight}
  SET pool   = one
  SET verify_backend = on
  SET connect_ahead  = 2
  SET buffer_size    = 5k
  SET buffer_backend_connect = 0
ENABLE tight
"""
SIZES = (0, 1, 100, 3000, 100_000)
KEPT = "Connection: keep-alive"
REQUEST = re.compile(rb"(GET|HEAD|POST) /(\d+)/(\d+)/(\d+) HTTP/1\.0\r\n")
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


def head_of(*lines: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {lines[0]}", *lines[1:], "", ""]).encode()


def body_of(number: int, size: int, of: bytes) -> bytes:
    return (b"%c%d" % (of, number) * (size // 2 + 1))[:size]


def take(connection: socket.socket, data: bytes, size: int) -> tuple[bytes, bytes]:
    """Read this many bytes; return them and the data after them."""
    while len(data) < size:
        data += receive(connection)
    return data[:size], data[size:]


def take_head(connection: socket.socket, data: bytes) -> tuple[bytes, bytes]:
    while b"\r\n\r\n" not in data:
        data += receive(connection)
    head, _, rest = data.partition(b"\r\n\r\n")
    return head, rest


class Backends:
    """Two backends, which note anything that isn't a request or has another request's body."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        self.listeners = [socket.create_server(("127.0.0.1", 0), backlog=128) for _ in range(2)]
        self.ports = [int(each.getsockname()[1]) for each in self.listeners]
        for each in self.listeners:
            threading.Thread(target=self._accept, args=(each,), daemon=True).start()

    def close(self) -> None:
        for each in self.listeners:
            each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        rest = b""
        with connection:
            try:
                while True:
                    rest = self._answer(connection, rest)
            except (OSError, EOFError):
                pass

    def _answer(self, connection: socket.socket, rest: bytes) -> bytes:
        head, rest = take_head(connection, rest)
        if head.startswith(b"OPTIONS"):
            connection.sendall(head_of("200 OK", "Content-Length: 0", KEPT))
            return rest
        found = REQUEST.match(head)
        if found is None:
            self.faults.append(f"no request: {head!r:.200}")
            raise EOFError
        number, size, wanted = map(int, found.groups()[1:])
        length = LENGTH.search(head)
        if int(length[1] if length else 0) != size:
            self.faults.append(f"another length: {head!r:.200}")
        chance = random.Random(number)
        early = chance.random() < 0.2
        if not early:
            rest = self._read_body(connection, rest, number, size)
            if rest:
                self.faults.append(f"more than a request: {rest!r:.200}")
        answer = self._written(chance, number, wanted, found[1])
        if chance.random() < 0.1:
            connection.sendall(answer[: chance.randrange(len(answer))])
            raise EOFError
        connection.sendall(answer)
        if KEPT.encode() not in answer:
            raise EOFError
        return self._read_body(connection, rest, number, size) if early else rest

    def _read_body(self, connection: socket.socket, rest: bytes, number: int, size: int) -> bytes:
        body, rest = take(connection, rest, size)
        if body != body_of(number, size, b"?"):
            self.faults.append(f"another body: {number}, {body!r:.100}")
        return rest

    def _written(self, chance: random.Random, number: int, size: int, method: bytes) -> bytes:
        body = b"" if method == b"HEAD" else body_of(number, size, b"!")
        length = f"Content-Length: {size}"
        kind = chance.random()
        if kind < 0.2 and number % 2 == 0:
            url = f"http://127.0.0.1:{chance.choice(self.ports)}/{number + 1}/0/{size}"
            return head_of("200 OK", f"X-REPROXY-URL: {url}", "Content-Length: 0", KEPT)
        if kind < 0.3:
            return head_of("200 OK") + body
        if kind < 0.4:
            return head_of("204 No Content", KEPT)
        answer = head_of("200 OK", length, KEPT) + body
        if kind < 0.5 and size < 10_000:  # Then it arrives whole before the next one.
            return answer + head_of("200 OK", "Content-Length: 6", KEPT) + b"poison"
        return head_of("100 Continue") + answer if kind < 0.6 else answer


class Clients:
    """Several clients, which note anything that isn't the answer to their request."""

    def __init__(self, server: Perlbal) -> None:
        self.server = server
        self.faults: list[str] = []
        self.outcomes: Counter[str] = Counter()

    def ask(self, first: int, count: int) -> None:
        """Send `count` requests, with every other number from `first` on."""
        chance = random.Random(first)
        connections: dict[str, socket.socket] = {}
        for number in range(first, first + 2 * count, 2):
            service = chance.choice(("disk", "tight"))
            if service not in connections:
                connections[service] = self.server.connect(service)
            try:
                stays = self._ask(connections[service], chance, service, number)
            except (OSError, EOFError):
                self.outcomes["lost"] += 1
                stays = False
            if not stays:
                connections.pop(service).close()
        for each in connections.values():
            each.close()

    def _ask(
        self, connection: socket.socket, chance: random.Random, service: str, number: int
    ) -> bool:
        """Send one request. True if the connection can be used for another."""
        method = chance.choice(("GET", "GET", "HEAD", "POST", "POST"))
        size = chance.choice(SIZES) if method == "POST" else 0
        wanted = chance.choice(SIZES)
        body, field = body_of(number, size, b"?"), f"Content-Length: {size}"
        if service == "disk" and size and chance.random() < 0.3:
            body, field = b"%x\r\n%s\r\n0\r\n\r\n" % (size, body), "Transfer-Encoding: chunked"
        request = f"{method} /{number}/{size}/{wanted} HTTP/1.1\r\nHost: h\r\n{field}\r\n\r\n"
        data = request.encode() + body
        if chance.random() < 0.05:
            connection.sendall(data[: chance.randrange(len(data))])
            return False
        connection.sendall(data)
        head, rest = take_head(connection, b"")
        code = head[9:12].decode()
        self.outcomes[code] += 1
        stays = b"\r\nConnection: keep-alive" in head
        length = LENGTH.search(head)
        if method == "HEAD" or code == "204":
            answer = b""
        elif length:
            answer, rest = take(connection, rest, int(length[1]))
        else:
            answer, rest = rest + b"".join(iter(lambda: connection.recv(1 << 16), b"")), b""
        expected = (body_of(each, len(answer), b"!") for each in (number, number + 1))
        if code == "200" and answer not in expected or stays and rest:
            self.faults.append(
                f"another answer: {number}, {head!r}, {answer!r:.100}, {rest!r:.100}"
            )
        return stays


@pytest.fixture
def backends() -> Iterator[Backends]:
    opened = Backends()
    yield opened
    opened.close()


def test_each_answer_and_each_body_belongs_to_its_own_request(
    backends: Backends, tmp_path: Path
) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    ports = dict(zip("ab", backends.ports, strict=True))
    with serving(OURS, CONFIGURATION, folder, ports, ("disk", "tight")) as server:
        clients = Clients(server)
        threads = [
            threading.Thread(target=clients.ask, args=(1000 * each, 300)) for each in range(6)
        ]
        for each in threads:
            each.start()
        for each in threads:
            each.join(6 * PATIENCE)
        assert not any(each.is_alive() for each in threads)
        assert "Traceback" not in server.said()
    assert not backends.faults + clients.faults
    assert clients.outcomes["200"] > clients.outcomes.total() / 2, clients.outcomes
    assert not list(folder.iterdir())


BUFFERED_PART = b"x" * 110_000
"""More than the server buffers before it asks a backend."""
REST = b"GET /of-the-body HTTP/1.0\r\n\r\n"
UPLOAD = request("POST", "/", f"Content-Length: {len(BUFFERED_PART + REST)}") + BUFFERED_PART


@pytest.mark.parametrize(
    "steps",
    [
        [
            serve(early(to("http://@b@/there"))),
            serve(in_two("all", good("there"), 10), at="b"),
            send(UPLOAD),
            begun(at="b"),
            send(REST),
            settled(),
            opens("all", at="b"),
            hear(),
        ],
        [
            serve(early(to("http://@b@/there"))),
            serve(in_two("all", good("there"), len(good("there").data) - 1), at="b"),
            send(UPLOAD),
            begun(at="b"),
            send(REST),
            settled(),
            opens("all", at="b"),
            hear(),
        ],
        [
            serve(early(good("", "X-REPROXY-SERVICE: other")), good("there")),
            send(UPLOAD),
            answered(1),
            send(REST),
            hear(),
            ask(get("/next")),
        ],
        [
            serve(early(good("", "X-REPROXY-SERVICE: other")), good("there")),
            send(UPLOAD),
            answered(1),
            send(REST + b"\r\n"),
            hear(),
            ask(get("/next")),
        ],
    ],
    ids=[
        "before a URL's answer",
        "in a URL's answer",
        "before another service is asked",
        "with CRLF",
    ],
)
def test_rest_of_a_body_already_answered_is_sent_to_no_one_else(
    steps: list[Step], tmp_path: Path
) -> None:
    with deployment(REPROXIES, OURS, tmp_path / "ours") as opened:
        heard = opened.hold(steps, "proxy")
    assert "lost" not in heard
    assert heard["client"][0].startswith("HTTP/1.0 200 OK\r\n")
    assert "there" in heard["client"][0]
    assert not any("of-the-body" in each for who in heard for each in heard[who])


def test_connection_to_a_url_is_kept_while_a_body_it_never_got_is_still_to_come(
    tmp_path: Path,
) -> None:
    steps = [
        serve(early(to("http://@b@/there")), to("http://@b@/again")),
        serve(good("there"), good("again"), at="b"),
        send(UPLOAD),
        hear(),
        ask(get("/"), by="other"),
    ]
    with deployment(REPROXIES, OURS, tmp_path / "ours") as opened:
        heard = opened.hold(steps, "proxy")
    assert "lost" not in heard
    asked_for = [each.partition(" HTTP")[0] for each in heard["backend b"]]
    assert asked_for == ["#1 GET /there", "#1 GET /again"]
