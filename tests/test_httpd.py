"""examples/httpd.py, with the input of real and hostile clients over loopback."""

import email.utils
import filecmp
import os
import random
import re
import runpy
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from errno import EADDRINUSE, ENOENT, ENOTDIR
from pathlib import Path

import pytest

from danga_raw import Loop
from danga_raw._libc import libc
from tests.clients import (
    FLOOD,
    PATIENCE,
    Answer,
    Server,
    answers,
    children_end,
    failing,
    failing_twice,
    flood,
    read_answer,
    read_to_end,
    serving,
    split,
)
from tests.first_free import FIRST

BIG = 200 * 1024 * 1024
LITTLE_MEMORY = 8 * 1024 * 1024
"""How much the server's memory may grow, whatever it sends."""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to serve, next to a secret that must not be served."""
    outside = tmp_path_factory.mktemp("httpd")
    (outside / "secret.txt").write_text("SECRET\n")
    root = outside / "files"
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "deep er").mkdir()
    (root / "bare").mkdir()
    (root / "index.html").write_text("<p>front</p>\n")
    (root / "hello.txt").write_text("hello\n")
    (root / "empty.txt").write_text("")
    (root / "sub" / "index.html").write_text("<p>sub</p>\n")
    (root / "a b%é.txt").write_text("odd name\n")
    (root / "back\\slash.txt").write_text("a name as any other\n")
    (root / "packed.tar.gz").write_bytes(b"\x1f\x8b")
    (root / "middle.bin").write_bytes(random.Random(1).randbytes(3_000_000))
    with (root / "big.bin").open("wb") as big:
        big.truncate(BIG)
    (root / "out.txt").symlink_to(outside / "secret.txt")
    (root / "up").symlink_to(outside)
    os.mkfifo(root / "fifo")
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(root / "door"))
    return root


@pytest.fixture(scope="module", params=["epoll", "poll"])
def server(request: pytest.FixtureRequest, tree: Path) -> Iterator[Server]:
    with serving("httpd.py", str(tree), "--port", "0", backend=request.param) as running:
        yield running


def ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


def get(path: str, *fields: str, method: str = "GET", version: str = "1.1") -> bytes:
    lines = [f"{method} {path} HTTP/{version}", "Host: here", *fields, "", ""]
    return "\r\n".join(lines).encode()


def ask(server: Server, *requests: bytes, heads: tuple[int, ...] = ()) -> list[Answer]:
    return answers(server.talk(b"".join(requests)), heads)


def without_date(data: bytes) -> bytes:
    return re.sub(rb"\r\nDate: [^\r]*", b"", data)


# --- what is served -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "kind", "body"),
    [
        ("/hello.txt", "text/plain", b"hello\n"),
        ("/hello.txt?a=b%00", "text/plain", b"hello\n"),
        ("//./hello.txt", "text/plain", b"hello\n"),
        ("/%68ello.txt", "text/plain", b"hello\n"),
        ("http://elsewhere/hello.txt", "text/plain", b"hello\n"),
        ("/empty.txt", "text/plain", b""),
        ("/", "text/html", b"<p>front</p>\n"),
        ("/.", "text/html", b"<p>front</p>\n"),
        ("/sub/", "text/html", b"<p>sub</p>\n"),
        ("/sub/.", "text/html", b"<p>sub</p>\n"),
        ("/a%20b%25%C3%A9.txt", "text/plain", b"odd name\n"),
        ("/back%5Cslash.txt", "text/plain", b"a name as any other\n"),
        ("/packed.tar.gz", "application/octet-stream", b"\x1f\x8b"),
    ],
)
def test_file_is_served(server: Server, path: str, kind: str, body: bytes) -> None:
    (answer,) = ask(server, get(path))
    assert (answer.status, answer.body) == (200, body)
    assert answer.fields["content-type"] == kind
    assert answer.fields["connection"] == "keep-alive"
    assert email.utils.parsedate(answer.fields["date"])


@pytest.mark.parametrize(
    ("path", "location"),
    [
        ("/sub", "/sub/"),
        ("/sub?a=b&c", "/sub/?a=b&c"),
        ("//sub", "/sub/"),
        ("/%73ub", "/sub/"),
        ("/bare", "/bare/"),
        ("/sub//./deep%20er", "/sub/deep%20er/"),
    ],
)
def test_folder_without_a_trailing_slash_is_redirected(
    server: Server, path: str, location: str
) -> None:
    """As nginx does, but without a host; never "//", which would be followed by one."""
    redirected, after = ask(server, get(path), get("/hello.txt"))
    assert redirected.status == 301 and redirected.fields["location"] == location
    assert after.body == b"hello\n"
    (redirected,) = ask(server, get(path, method="HEAD"), heads=(0,))
    assert redirected.status == 301 and redirected.fields["location"] == location


def test_head_returns_the_head_of_get(server: Server) -> None:
    for path in ("/hello.txt", "/middle.bin", "/nothing"):
        head, got, after = ask(
            server, get(path, method="HEAD"), get(path), get("/hello.txt"), heads=(0,)
        )
        assert (head.status, head.body) == (got.status, b"")
        assert int(head.fields["content-length"]) == len(got.body) > 0
        assert after.body == b"hello\n"
        for fields in (head.fields, got.fields):
            del fields["date"]
        assert head.fields == got.fields


def test_unmodified_file_is_not_sent_again(server: Server, tree: Path) -> None:
    (first,) = ask(server, get("/hello.txt"))
    modified = first.fields["last-modified"]
    assert email.utils.parsedate_to_datetime(modified).timestamp() == int(
        (tree / "hello.txt").stat().st_mtime
    )
    again, tagged, other, odd = ask(
        server,
        get("/hello.txt", f"If-Modified-Since: {modified}"),
        get("/hello.txt", f"If-Modified-Since: {modified}", 'If-None-Match: "other"'),
        get("/hello.txt", "If-Modified-Since: Sun, 06 Nov 1994 08:49:37 GMT"),
        get("/hello.txt", "If-Modified-Since: the day before yesterday"),
    )
    assert (again.status, again.body) == (304, b"")
    assert (tagged.status, tagged.body) == (200, b"hello\n")
    assert (other.status, other.body) == (200, b"hello\n")
    assert odd.status == 200


@pytest.mark.parametrize(
    ("version", "fields", "stays"),
    [
        ("1.1", [], True),
        ("1.1", ["Connection: Keep-Alive"], True),
        ("1.1", ["Connection: close"], False),
        ("1.1", ["connection:\tte ,  CLOSE "], False),
        ("1.0", [], False),
        ("1.0", ["Connection: Keep-Alive"], True),
        ("1.0", ["Connection: close"], False),
    ],
)
def test_connection_is_kept_alive_as_the_client_wants(
    server: Server, version: str, fields: list[str], stays: bool
) -> None:
    with server.connect() as client:
        client.sendall(get("/hello.txt", *fields, version=version) + get("/empty.txt"))
        first = read_answer(client)
        assert (first.status, first.body) == (200, b"hello\n")
        assert first.fields["connection"] == ("keep-alive" if stays else "close")
        if stays:
            assert read_answer(client).status == 200
        else:
            assert client.recv(1) == b""


# --- what is refused ----------------------------------------------------------------------------

GOOD = "GET /hello.txt HTTP/1.1\r\nHost: here\r\n"


@pytest.mark.parametrize(
    ("request_text", "status"),
    [
        ("\0\1\2\3\r\n\r\n", 400),
        ("GET /hello.txt\r\n\r\n", 400),
        ("GET  /hello.txt HTTP/1.1\r\nHost: here\r\n\r\n", 400),
        ("GET /hello.txt HTTP/1.1 \r\nHost: here\r\n\r\n", 400),
        (" GET /hello.txt HTTP/1.1\r\nHost: here\r\n\r\n", 400),
        ("GET hello.txt HTTP/1.1\r\nHost: here\r\n\r\n", 400),
        ("GET /hel\xe9.txt HTTP/1.1\r\nHost: here\r\n\r\n", 400),
        ("GET /#part HTTP/1.1\r\nHost: here\r\n\r\n", 400),
        ("GET /?#part HTTP/1.1\r\nHost: here\r\n\r\n", 400),
        ("GET /hello.txt%00.html HTTP/1.1\r\nHost: here\r\n\r\n", 400),
        ("OPTIONS * HTTP/1.1\r\nHost: here\r\n\r\n", 400),
        ("GET /hello.txt HTTP/2.0\r\nHost: here\r\n\r\n", 400),
        ("GET /hello.txt HTTP/0.9\r\nHost: here\r\n\r\n", 400),
        ("GET /hello.txt HTTP/1.1\r\n\r\n", 400),
        (GOOD + "Host: there\r\n\r\n", 400),
        ("GET /hello.txt HTTP/1.1\r\nHost: a b/c?d@#\r\n\r\n", 400),
        ("GET http://x\r\nContent-Length:5\r\nA:/hello.txt HTTP/1.1\r\nHost: here\r\n\r\n", 400),
        ("GET http://\0/hello.txt HTTP/1.1\r\nHost: here\r\n\r\n", 400),
        (GOOD + "No colon\r\n\r\n", 400),
        (GOOD + "Space : 1\r\n\r\n", 400),
        (GOOD + "Folded: 1\r\n 2\r\n\r\n", 400),
        (GOOD + ": nameless\r\n\r\n", 400),
        (GOOD + "Bell: \a\r\n\r\n", 400),
        (GOOD + "Return: a\rb\r\n\r\n", 400),
        (GOOD + "Feed: a\nb\r\n\r\n", 400),
        (GOOD.replace("\r", "") + "\n", 400),
        (GOOD + "\n", 400),
        (GOOD.removesuffix("\r\n") + "\n\n", 400),
        (GOOD.removesuffix("\r\n") + "\n\r\n", 400),
        ("\r" + GOOD + "\r\n", 400),
        ("\r\r\n" + GOOD + "\r\n", 400),
        ("\n" + GOOD + "\r\n", 400),
        ("\r\n\n" + GOOD + "\r\n", 400),
        ("\r\n\r" + GOOD + "\r\n", 400),
        ("POST /hello.txt HTTP/1.1\r\nHost: here\r\nContent-Length: 0\r\n\r\n", 405),
        ("get /hello.txt HTTP/1.1\r\nHost: here\r\n\r\n", 405),
        (f"GET /{'a' * 20_000} HTTP/1.1\r\nHost: here\r\n\r\n", 414),
        ("a" * 20_000, 414),
        (GOOD + f"Long: {'a' * 20_000}\r\n\r\n", 431),
        (GOOD + "Many: 1\r\n" * 3_000, 431),
    ],
)
def test_bad_request_is_answered_and_closes_the_connection(
    server: Server, request_text: str, status: int
) -> None:
    request = request_text.encode("latin-1")
    for pieces in ([request], split(request, random.Random(len(request)), 50)):
        (answer,) = answers(server.talk(*pieces, get("/hello.txt")))
        assert answer.status == status
        assert answer.fields["connection"] == "close"
        if status == 405:
            assert answer.fields["allow"] == "GET, HEAD"


def test_head_may_be_up_to_16_kib_long(server: Server) -> None:
    """Exactly 16 KiB, however they arrive."""
    room = 16 * 1024 - len(GOOD + "Long: \r")
    fits, too_long = (f"{GOOD}Long: {'a' * n}\r\n\r\n".encode() for n in (room, room + 1))
    for request, status in ((fits, 200), (too_long, 431)):
        for cut in (1, 1000, len(fits) - 4, len(fits) - 3, len(fits) - 2, len(fits) - 1):
            with server.connect() as client:
                client.sendall(request[:cut])
                # It reads this while it answers others; else the kernel might join the pieces.
                for _ in range(3):
                    ask(server, get("/empty.txt"))
                client.sendall(request[cut:])
                assert read_answer(client).status == status, cut


@pytest.mark.parametrize(
    "fields",
    [
        ["Content-Length: 34"],
        ["Content-Length: +34"],
        ["Content-Length: 0", "Content-Length: 34"],
        ["Content-Length: 0, 0"],
        ["Content-Length: -1"],
        ["Content-Length:"],
        ["Transfer-Encoding: chunked"],
        ["Transfer-Encoding: identity"],
        ["transfer-encoding:\tchunked", "Content-Length: 0"],
    ],
)
def test_body_is_never_taken_for_a_request(server: Server, fields: list[str]) -> None:
    for method in ("GET", "HEAD", "POST"):
        said = server.talk(get("/empty.txt", *fields, method=method) + get("/hello.txt"))
        assert said.count(b"HTTP/1.1 ") == 1
        assert said.startswith(b"HTTP/1.1 40")
        assert b"hello" not in said


def test_answer_is_not_lost_to_a_client_that_is_still_sending(server: Server) -> None:
    with server.connect() as client:
        client.sendall(get("/hello.txt", "Content-Length: 9999999", method="POST"))
        for _ in range(40):
            client.sendall(b"x" * 65536)
        assert read_answer(client).status == 405
        assert client.recv(1) == b""


@pytest.mark.parametrize(
    "path",
    [
        "/../secret.txt",
        "/sub/../../secret.txt",
        "/sub/../hello.txt",
        "/%2e%2e/secret.txt",
        "/%2E%2E%2Fsecret.txt",
        "/..%2fsecret.txt",
        "/..%5csecret.txt",
        "/..\\secret.txt",
        "/%252e%252e/secret.txt",
        "/.../secret.txt",
        "/..;/secret.txt",
        "//../secret.txt",
        "/./.././secret.txt",
        "/%c0%ae%c0%ae/secret.txt",
        "/up/secret.txt",
        "/up/files/hello.txt",
        "/out.txt",
        "{outside}/secret.txt",
        "/{outside}/secret.txt",
        "/etc/passwd",
        "/..",
        "/up",
        "/fifo",
        "/fifo/x",
        "/door",
        "/bare/",
        "/hello.txt/",
        "/hello.txt/x",
        "/nothing",
        "/" + "a" * 300,
        "/a" * 4000,
        "/hello.txt%00",
        "/%00",
        "/out.txt%00/../hello.txt",
    ],
)
def test_nothing_outside_the_folder_is_served(server: Server, tree: Path, path: str) -> None:
    (answer,) = ask(server, get(path.format(outside=tree.parent)))
    assert answer.status in (404, 400)
    assert b"SECRET" not in answer.body and b"root:" not in answer.body


@pytest.mark.needs("strace")
def test_special_files_are_not_opened(tree: Path, tmp_path: Path) -> None:
    log = tmp_path / "calls"
    tracer = ("strace", "-o", str(log), "-e", "trace=openat,open")
    with serving("httpd.py", str(tree), "--port", "0", wrapper=tracer) as server:
        with children_end(server):
            asked = ask(server, get("/fifo"), get("/out.txt"), get("/hello.txt"))
            assert [answer.status for answer in asked] == [404, 404, 200]
    calls = log.read_text().splitlines()
    assert any('"hello.txt"' in call for call in calls)
    # The kernel refuses to open it as a folder, before doing anything with it.
    for call in calls:
        if '"fifo"' in call or '"out.txt"' in call:
            assert "O_DIRECTORY" in call and call.endswith("ENOTDIR (Not a directory)")


# --- pipelining and odd splits ------------------------------------------------------------------


def test_pipelined_requests_are_answered_in_order(server: Server, tree: Path) -> None:
    middle = (tree / "middle.bin").read_bytes()
    bodies = [
        answer.body
        for answer in ask(
            server,
            get("/hello.txt"),
            get("/middle.bin"),
            get("/empty.txt"),
            b"\r\n",
            get("/middle.bin"),
            get("/nothing"),
            get("/hello.txt"),
            get("/sub/", "Connection: close"),
            get("/hello.txt"),
        )
    ]
    expected = [b"hello\n", middle, b"", middle, b"404 Not Found\n", b"hello\n", b"<p>sub</p>\n"]
    assert bodies == expected


def test_splitting_of_requests_makes_no_difference(server: Server) -> None:
    requests = b"".join(
        [
            get("/hello.txt", "X-Long: " + "a" * 500),
            b"\r\n\r\n",
            get("/sub/", method="HEAD"),
            get("/nothing"),
            get("/", version="1.0"),
            get("/hello.txt"),
        ]
    )
    at_once = without_date(server.talk(requests))
    assert [a.status for a in answers(at_once, heads=(1,))] == [200, 200, 404, 200]
    one_by_one = [requests[i : i + 1] for i in range(len(requests))]
    assert without_date(server.talk(*one_by_one)) == at_once
    for seed in range(20):
        pieces = split(requests, random.Random(seed), 6)
        assert without_date(server.talk(*pieces)) == at_once, seed


def test_pipelining_client_that_does_not_read_is_not_read_from(tree: Path) -> None:
    """The server reads little, and answers everything once the client reads."""
    with serving("httpd.py", str(tree), "--port", "0") as server:
        assert ask(server, get("/middle.bin"))[0].status == 200
        before = server.peak_memory()
        request = get("/middle.bin", "X: " + "x" * 1000)
        with server.connect() as client:
            assert flood(client, request, lambda: ask(server, get("/hello.txt"))) < FLOOD
            assert server.peak_memory() - before < LITTLE_MEMORY
            for _ in range(20):
                assert len(read_answer(client).body) == 3_000_000
        assert server.peak_memory() - before < LITTLE_MEMORY


# --- big files and slow clients -----------------------------------------------------------------


def test_slow_reader_of_a_big_file_costs_no_memory(server: Server) -> None:
    ask(server, get("/middle.bin"))
    before = server.peak_memory()
    with server.connect(receive_buffer=8192) as client:
        client.sendall(get("/big.bin", "Connection: close"))
        assert read_answer(client, body=False).fields["content-length"] == str(BIG)
        # Meanwhile, others are served.
        assert ask(server, get("/hello.txt"))[0].body == b"hello\n"
        total = 0
        buffer = bytearray(1 << 20)
        while count := client.recv_into(buffer):
            total += count
        assert total == BIG
    assert server.peak_memory() - before < LITTLE_MEMORY


def test_file_that_shrinks_while_being_sent_ends_the_connection(server: Server, tree: Path) -> None:
    shrinking = tree / "shrinking.bin"
    with shrinking.open("wb") as file:
        file.truncate(BIG)
    with server.connect(receive_buffer=8192) as client:
        client.sendall(get("/shrinking.bin") + get("/hello.txt"))
        assert read_answer(client, body=False).fields["content-length"] == str(BIG)
        os.truncate(shrinking, 1000)
        assert 0 < len(read_to_end(client)) < BIG
    assert ask(server, get("/hello.txt"))[0].body == b"hello\n"


def test_file_that_grows_while_being_sent_is_sent_with_its_old_length(
    server: Server, tree: Path
) -> None:
    growing = tree / "growing.bin"
    growing.write_bytes(b"a" * 8_000_000)  # more than is on its way while nobody reads
    with server.connect(receive_buffer=8192) as client:
        client.sendall(get("/growing.bin") + get("/hello.txt"))
        assert client.recv(17, socket.MSG_PEEK) == b"HTTP/1.1 200 OK\r\n"
        with growing.open("ab") as file:
            file.write(b"b" * 1_000_000)
        assert read_answer(client).body == b"a" * 8_000_000
        assert read_answer(client).body == b"hello\n"


@pytest.mark.parametrize("start", [b"", b"GET / HTTP/1.1\r\nX: ", b"\r\n"])
def test_head_without_an_end_costs_no_memory(server: Server, start: bytes) -> None:
    assert ask(server, get("/hello.txt"))[0].body == b"hello\n"
    before = server.peak_memory()
    with server.connect() as client:
        client.sendall(start)
        piece = b"\r\n" * 32768 if start == b"\r\n" else b"x" * 65536
        for _ in range(500):
            client.sendall(piece)
        if start == b"\r\n":
            client.sendall(get("/hello.txt"))
        answer = read_answer(client)
        assert answer.status == {b"": 414, b"\r\n": 200}.get(start, 431)
    assert server.peak_memory() - before < LITTLE_MEMORY


def test_fast_reader_does_not_starve_other_clients(tree: Path) -> None:
    """In the test's own process, with a kernel that accepts everything written to one of them."""
    httpd = runpy.run_path(str(Path(__file__).parents[1] / "examples" / "httpd.py"))
    with Loop() as loop, pytest.MonkeyPatch.context() as patch:
        server = httpd["Server"](loop, str(tree), "127.0.0.1", 0, 60)
        here, there = socket.socketpair()
        here.setblocking(False)
        greedy = httpd["Connection"](server, here)
        there.sendall(get("/big.bin"))
        taken, write = 0, libc.write

        def take(fd: int, data: bytes) -> int:
            nonlocal taken
            if fd != greedy.fd:
                return write(fd, data)
            taken += len(data)
            return len(data)

        patch.setattr(libc, "write", take)
        loop.set_loop_timeout(0)
        loop.set_post_loop_callback(lambda *_: False)
        for turns in (1, 2, 3):
            loop.run()
            assert 0 < taken <= turns * 64 * 128 * 1024 + 1000 < BIG
        greedy.close()
        server.listener.close()
        os.close(server.root)
        there.close()


def test_slow_download_is_not_an_idle_connection(tree: Path) -> None:
    with serving("httpd.py", str(tree), "--port", "0", "--timeout", "1") as server:
        with server.connect(receive_buffer=8192) as client:
            client.sendall(get("/middle.bin"))
            got = 0
            while got < 1_200_000:  # in three times the timeout, at 400 kB a second
                time.sleep(0.05)
                piece = client.recv(20_000, socket.MSG_WAITALL)
                assert piece, f"hung up after {got} bytes"
                got += len(piece)


def test_lingering_after_the_last_answer_is_limited(tree: Path) -> None:
    with serving("httpd.py", str(tree), "--port", "0", "--timeout", "0.3") as server:
        with server.connect() as client, pytest.raises(ConnectionError):
            client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 999999\r\n\r\n")
            while True:
                client.sendall(b"x")
                time.sleep(0.05)


@pytest.mark.parametrize("stamp", [-99_999_999_999, 253_402_300_800, 4_000_000_000])
def test_file_with_any_timestamp_is_served(tree: Path, stamp: int) -> None:
    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    try:
        (folder / "odd.txt").write_bytes(b"odd\n")
        os.utime(folder / "odd.txt", (stamp, stamp))
        with serving("httpd.py", str(folder), "--port", "0") as server:
            (answer,) = ask(server, get("/odd.txt"))
            assert (answer.status, answer.body) == (200, b"odd\n")
            dates = [email.utils.parsedate_to_datetime(answer.fields[field])
                     for field in ("last-modified", "date")]  # fmt: skip
            assert dates[0] <= dates[1]
    finally:
        shutil.rmtree(folder)


def test_name_that_becomes_a_folder_leaks_no_descriptor(tree: Path, tmp_path: Path) -> None:
    # os.stat sees a file, but what is opened is a folder.
    (tmp_path / "name").mkdir()
    httpd = runpy.run_path(str(Path(__file__).parents[1] / "examples" / "httpd.py"))
    before = os.listdir("/proc/self/fd")
    root = os.open(tmp_path, os.O_RDONLY)
    info = os.stat(tree / "hello.txt")
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "stat", lambda *_, **__: info)
            with pytest.raises(IsADirectoryError):
                httpd["open_below"](root, b"/name")
    finally:
        os.close(root)
    assert os.listdir("/proc/self/fd") == before


def test_name_that_becomes_a_special_file_is_not_served(tmp_path: Path) -> None:
    """It was a file when it was checked, and is a pipe, a device or a link when it is opened."""
    httpd = runpy.run_path(str(Path(__file__).parents[1] / "examples" / "httpd.py"))
    (tmp_path / "file").write_text("abc")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    before = os.listdir("/proc/self/fd")
    root = os.open(tmp_path, os.O_RDONLY)
    dev = os.open("/dev", os.O_RDONLY)
    info = os.stat(tmp_path / "file")
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "stat", lambda *_, **__: info)
            for folder, name in (
                (root, b"pipe"),
                (root, b"link"),
                (root, b"zeros"),
                (dev, b"null"),
            ):
                head = b"GET /" + name + b" HTTP/1.1\r\nHost: here\r"
                assert httpd["answer"](head, folder)[0].startswith(b"HTTP/1.1 404 "), name
    finally:
        os.close(root)
        os.close(dev)
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("waits", [True, False], ids=["for a request", "for room to write"])
@pytest.mark.parametrize("gone", [True, False], ids=["reset", "half"])
def test_hang_up_is_resolved_by_reading_or_writing(tree: Path, waits: bool, gone: bool) -> None:
    """FreeBSD's poll reports a reset only as a hang-up, without an error or room to write; and on
    kqueue, a hang-up may be a client that has shut down its half and waits for an answer."""
    httpd = runpy.run_path(str(Path(__file__).parents[1] / "examples" / "httpd.py"))
    with Loop("poll") as loop:
        server = httpd["Server"](loop, str(tree), "127.0.0.1", 0, 60)
        address = ("127.0.0.1", int(server.address.rpartition(":")[2]))
        with socket.create_connection(address, PATIENCE) as client:
            client.sendall(b"GET " if waits else get("/big.bin"))
            loop.set_post_loop_callback(
                lambda sockets, others: (
                    not any(
                        each.write_buf_size or waits and each.inbox
                        for each in sockets.values()
                        if isinstance(each, httpd["Connection"])
                    )
                )
            )
            loop.add_timer(PATIENCE, loop.stop)
            loop.run()
            (connection,) = (
                each
                for each in loop.descriptor_map.values()
                if isinstance(each, httpd["Connection"])
            )
            if gone:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                client.close()
            else:
                client.shutdown(socket.SHUT_WR)
            assert not connection.closed
            connection.event_hup()
            # A client that hasn't asked yet and never will is as good as gone.
            assert connection.closed == (gone or waits)
            connection.close()
        os.close(server.root)
        server.listener.close()


def test_idle_connection_is_closed(tree: Path) -> None:
    with serving("httpd.py", str(tree), "--port", "0", "--timeout", "0.3") as server:
        with server.connect() as silent, server.connect() as halfway, server.connect() as deaf:
            halfway.sendall(b"GET /hello")
            deaf.sendall(get("/big.bin"))
            assert silent.recv(1) == b""
            assert halfway.recv(1) == b""
            with pytest.raises(AssertionError, match="hung up"):
                read_answer(deaf)


# --- real clients -------------------------------------------------------------------------------


@pytest.mark.needs("curl")
def test_curl_gets_every_file_unchanged(tree: Path, tmp_path: Path) -> None:
    root, copies = tmp_path / "root", tmp_path / "copies"
    root.mkdir()
    copies.mkdir()
    chooser = random.Random(7)
    with (root / "big").open("wb") as big:
        for _ in range(BIG >> 20):
            big.write(chooser.randbytes(1 << 20))
    for number in range(1000):
        (root / f"{number}").write_bytes(chooser.randbytes(chooser.randrange(20_000)))
    names = sorted(path.name for path in root.iterdir())
    with serving("httpd.py", str(root), "--port", "0") as server:
        wanted = tmp_path / "wanted"
        wanted.write_text(
            "".join(
                f'url = "http://127.0.0.1:{server.port}/{name}"\noutput = "{copies / name}"\n'
                for name in names
            )
        )
        before = server.peak_memory()
        subprocess.run(
            ["curl", "-sS", "--fail", "--parallel", "--parallel-max", "64", "-K", str(wanted)],
            check=True,
            capture_output=True,
        )
        assert server.peak_memory() - before < 2 * LITTLE_MEMORY
    assert filecmp.cmpfiles(root, copies, names, shallow=False) == (names, [], [])


@pytest.mark.needs("ab")
def test_ab_sees_no_failed_request(server: Server) -> None:
    url = f"http://127.0.0.1:{server.port}/hello.txt"
    for options, count in ((["-k"], 5000), ([], 1000)):
        report = subprocess.run(
            ["ab", "-q", *options, "-c", "64", "-n", str(count), url],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        assert re.search(rf"Complete requests: +{count}\n", report)
        assert re.search(r"Failed requests: +0\n", report)
        assert "Non-2xx" not in report
        assert not options or re.search(rf"Keep-Alive requests: +{count}\n", report)


# --- hostile input ------------------------------------------------------------------------------


def garbled(chooser: random.Random) -> bytes:
    """Requests with some bytes changed, doubled or removed; or no request at all."""
    if chooser.random() < 0.2:
        return chooser.randbytes(chooser.randrange(1, 3000))
    paths = ["/hello.txt", "/sub", "/../secret.txt", "/%2e%2e/secret.txt", "/out.txt", "/fifo", "/"]
    fields = ["Content-Length: 5", "Connection: close", "X: " + "y" * 300, "Host: b", "Range: 1"]
    data = bytearray()
    for _ in range(chooser.randrange(1, 6)):
        some = chooser.sample(fields, chooser.randrange(3))
        data += get(chooser.choice(paths), *some, method=chooser.choice(["GET", "HEAD", "PUT"]))
    for _ in range(chooser.randrange(6)):
        at = chooser.randrange(len(data))
        odd = chooser.choice([b"", b"\r", b"\n", b"\0", b":", b" ", b"%", b"\xff", b"\r\n\r\n"])
        data[at : at + chooser.randrange(3)] = odd
    return bytes(data) or b"x"


def test_no_input_ends_the_server_and_no_split_changes_its_answers(server: Server) -> None:
    for seed in range(300):
        chooser = random.Random(seed)
        data = garbled(chooser)
        said = without_date(server.talk(data))
        assert b"SECRET" not in said, seed
        assert said == without_date(server.talk(*split(data, chooser, chooser.randrange(1, 12)))), (
            seed
        )
    assert ask(server, get("/hello.txt"))[0].body == b"hello\n"


def test_clients_that_vanish_do_no_harm(server: Server) -> None:
    assert ask(server, get("/hello.txt"))[0].body == b"hello\n"
    descriptors = server.descriptors()
    for seed in range(100):
        chooser = random.Random(seed)
        with server.connect() as client:
            client.sendall(get("/middle.bin") * chooser.randrange(1, 4))
            if chooser.random() < 0.5:
                client.recv(chooser.randrange(1, 100_000))
            if chooser.random() < 0.5:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    # The kernel may tell the server of the end a little later; then nothing of theirs is left.
    deadline = time.monotonic() + PATIENCE
    while server.descriptors() > descriptors:
        assert ask(server, get("/hello.txt"))[0].body == b"hello\n"
        assert time.monotonic() < deadline


# --- the descriptor table full ------------------------------------------------------------------


def assert_idle(server: Server) -> None:
    """Fail if the server is busy while it has nothing to do."""
    before = server.cpu_seconds()
    time.sleep(1)
    assert server.cpu_seconds() - before < 0.2


@pytest.mark.parametrize("backend", ["epoll", "poll"])
def test_connected_clients_are_served_at_the_descriptor_limit_and_others_wait(
    tree: Path, backend: str
) -> None:
    limit, room = 32, 12
    with serving(
        "httpd.py", str(tree), "--port", "0", backend=backend, descriptors=limit
    ) as server:
        clients = [server.connect() for _ in range(limit + 8)]
        try:
            for client in clients:
                client.sendall(get("/hello.txt"))
            for client in clients[:room]:
                assert read_answer(client).body == b"hello\n"
            assert_idle(server)
            for client in clients[:room]:
                client.sendall(get("/middle.bin"))
            for client in clients[:room]:
                assert len(read_answer(client).body) == 3_000_000
            for client in clients[room:]:
                client.setblocking(False)
                with pytest.raises(BlockingIOError):
                    client.recv(1)
                client.settimeout(PATIENCE)
            for leaves, comes in zip(clients, clients[room:]):
                leaves.close()
                assert read_answer(comes).body == b"hello\n"
        finally:
            for client in clients:
                client.close()
        assert ask(server, get("/hello.txt"))[0].body == b"hello\n"


@pytest.mark.parametrize("backend", ["epoll", "poll"])
def test_every_client_can_be_sent_a_file_at_the_descriptor_limit(tree: Path, backend: str) -> None:
    limit, room = 64, 28
    with serving(
        "httpd.py", str(tree), "--port", "0", backend=backend, descriptors=limit
    ) as server:
        clients = [server.connect(receive_buffer=8192) for _ in range(room)]
        try:
            for client in clients:
                client.sendall(get("/big.bin"))
                assert read_answer(client, body=False).status == 200
            with server.connect() as late:
                late.sendall(get("/hello.txt"))
                assert_idle(server)
                late.setblocking(False)
                with pytest.raises(BlockingIOError):
                    late.recv(1)
                late.settimeout(PATIENCE)
                clients.pop(0).close()
                assert read_answer(late).status == 200
        finally:
            for client in clients:
                client.close()
        assert ask(server, get("/hello.txt"))[0].body == b"hello\n"


@pytest.mark.needs("strace")
@pytest.mark.parametrize("change", [3, 4])
def test_lack_of_descriptors_and_of_poller_entries_does_not_end_the_server(
    tree: Path, change: int
) -> None:
    wrapper = failing_twice(change)
    with serving("httpd.py", str(tree), "--port", "0", wrapper=wrapper) as server:
        with children_end(server):
            assert ask(server, get("/hello.txt"))[0].body == b"hello\n"


def test_file_without_a_free_descriptor_is_answered_with_503(tree: Path) -> None:
    # There are descriptors for one client, but not for a file.
    with serving("httpd.py", str(tree), "--port", "0", descriptors=FIRST + 4) as server:
        with server.connect() as client:
            for _ in range(2):
                client.sendall(get("/hello.txt"))
                answer = read_answer(client)
                assert (answer.status, answer.fields["connection"]) == (503, "keep-alive")


# --- starting and ending ------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_server_ends_quietly(tree: Path, number: int) -> None:
    with serving("httpd.py", str(tree), "--port", "0") as server, server.connect() as client:
        assert server.greeting == f"listening on http://127.0.0.1:{server.port}/"
        client.sendall(get("/big.bin"))
        read_answer(client, body=False)
        assert server.stop(number) == 0


def test_server_listens_on_ipv6(tree: Path) -> None:
    if not ipv6():
        pytest.skip("no IPv6 here")
    with serving("httpd.py", str(tree), "--port", "0", "--host", "::1") as server:
        assert server.greeting == f"listening on http://[::1]:{server.port}/"
        with socket.create_connection(("::1", server.port), PATIENCE) as client:
            client.sendall(get("/hello.txt"))
            assert read_answer(client).body == b"hello\n"


def test_startup_error_is_reported_in_one_line(tree: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for arguments, reason in (
            ([str(tree / "missing")], os.strerror(ENOENT)),
            ([str(tree / "hello.txt")], os.strerror(ENOTDIR)),
            ([str(tree), "--port", port], os.strerror(EADDRINUSE)),
            ([str(tree), "--port", "70000"], "port must be 0-65535"),
            ([str(tree), "--timeout", "-1"], "--timeout is a number of seconds above 0, not -1.0"),
            ([str(tree), "--timeout", "0"], "not 0.0"),
            ([str(tree), "--timeout", "nan"], "not nan"),
        ):
            code, complaint = failing("httpd.py", *arguments)
            assert code == 2
            assert complaint.startswith("httpd.py: ") and reason in complaint
            assert complaint.count("\n") == 1


def test_unknown_backend_is_reported_in_one_line(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DANGA_RAW_BACKEND", "xyz")
    code, complaint = failing("httpd.py", str(tree), "--port", "0")
    assert (code, complaint.count("\n")) == (2, 1) and "no backend 'xyz' here" in complaint
