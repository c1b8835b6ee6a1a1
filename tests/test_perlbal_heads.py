"""examples/perlbal: heads, ranges, chunks and dates, without a server."""

import random
import tracemalloc

import pytest

from examples.perlbal.heads import (
    MAX_HEAD,
    Refused,
    Request,
    Response,
    http_date,
    parse_response,
    take_head,
)
from examples.perlbal.uploads import ChunkDecoder

FIRST = "GET / HTTP/1.1\r\nHost: a"
END = "\r\n\r\n"


@pytest.mark.parametrize(
    ("head", "rest"),
    [
        (b"GET / HTTP/1.0\r\nA: b\r\n\r\n", b"rest"),
        (b"GET / HTTP/1.0\nA: b\n\n", b"rest"),
        (b"HTTP/1.0 200 OK\nA: b\n\r\n", b"rest"),
        (b"HTTP/1.0 200 OK\r\nA: b\n\n", b"rest"),
        (b"A\r\n\r\n", b"B\n\n"),
        (b"A\n\n", b"B\r\n\r\n"),
        (b"A\n\n", b"\r\n"),
        (b"\n\n", b""),
    ],
)
def test_head_ends_at_the_first_empty_line(head: bytes, rest: bytes) -> None:
    assert take_head(head + rest) == (head.decode(), rest)
    for cut in range(len(head)):
        assert take_head(head[:cut]) is None


def test_head_is_bounded_with_or_without_an_end() -> None:
    assert take_head(b"x" * (MAX_HEAD - 1)) is None
    for end in b"\r\n\r\n", b"\n\n":
        assert take_head(b"x" * (MAX_HEAD - len(end)) + end + b"more") is not None
    for data in (b"x" * MAX_HEAD, b"x" * (MAX_HEAD - 3) + b"\r\n\r\n"):
        with pytest.raises(Refused):
            take_head(data)


def test_names_keep_case_and_order_and_repeated_fields_are_joined() -> None:
    request = Request(f"{FIRST}\r\nX-B: 1\r\nx-a:  2 \r\nX-b: 3\r\nCookie: c{END}")
    assert request.to_bytes(request.values) == (
        b"GET / HTTP/1.0\r\nHost: a\r\nX-B: 1, 3\r\nx-a: 2\r\nCookie: c\r\n\r\n"
    )


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "POST"])
def test_content_length_counts_whatever_the_method(method: str) -> None:
    assert Request(f"{method} / HTTP/1.0\r\nContent-Length: 4{END}").length == 4


@pytest.mark.parametrize(("count", "length"), [(200, 50_000), (5_000, 100)])
def test_names_made_up_by_a_client_are_not_all_cached(count: int, length: int) -> None:
    tracemalloc.start()
    try:
        for number in range(count):
            Request(f"{FIRST}\r\n{number:-<{length}}: 1{END}")
        assert tracemalloc.get_traced_memory()[0] < 1_000_000
    finally:
        tracemalloc.stop()


def test_set_cookie_is_never_joined() -> None:
    response = parse_response("HTTP/1.1 200 OK\r\nSet-Cookie: a\r\nset-cookie: b" + END)
    assert b"\r\nSet-Cookie: a\r\nSet-Cookie: b\r\n\r\n" in response.to_bytes()


@pytest.mark.parametrize(
    ("uri", "path", "host"),
    [
        ("http://Other.com:80/p?q", "/p?q", "other.com"),
        ("HTTP://other.com", "/", "other.com"),
        ("http://[::1]:8080/p", "/p", "[::1]"),
        ("http://other.com?q", "/?q", "other.com"),
        ("/http://other.com/", "/http://other.com/", "a"),
    ],
)
def test_absolute_url_becomes_a_path_and_sets_host(uri: str, path: str, host: str) -> None:
    request = Request(f"GET {uri} HTTP/1.1\r\nHost: a{END}")
    assert (request.uri, request.get("host")) == (path, host)


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (0, "GET /"),
        (0, "GET  / HTTP/1.1\r\nHost: a"),
        (0, "GET / HTTP/2.0\r\nHost: a"),
        (0, "\x16\x03\x01\0\xa5"),
        (0, f"\n{FIRST}"),
        (0, "GET /\0 HTTP/1.1\r\nHost: a"),
        (0, "GET / HTTP/1.1\rHost: a\r\n"),
        (400, "GET / HTTP/1.1\nHost: a\r\n"),
        (400, "GET http://user@b/ HTTP/1.1\r\nHost: a"),
        (400, "GET http://b:x/ HTTP/1.1\r\nHost: a"),
        (400, "GET https://b/ HTTP/1.1\r\nHost: a"),
        (0, "GET / HTTP/1.1"),
        (0, f"{FIRST}\r\nno field"),
        (0, f"{FIRST}\r\nnone"),
        (0, f"{FIRST}\r\n(a): b"),
        (400, f"{FIRST}\r\nHost: a"),
        (400, "GET / HTTP/1.1\r\nHost: a,b"),
        (400, f"{FIRST}\r\n b: c"),
        (400, f"{FIRST}\r\nA : b"),
        (400, f"{FIRST}\r\n: b"),
        (400, f"{FIRST}\r\nN\xe4me: b"),
        (400, f"{FIRST}\r\nA: b\rc"),
        (400, f"{FIRST}\r\nA: b\nC: d"),
        (400, f"{FIRST}\r\nA: b\0"),
        (400, f"{FIRST}\r\nContent-Length: 1\r\nContent-Length: 1"),
        (400, f"{FIRST}\r\nContent-Length: 1, 1"),
        (400, f"{FIRST}\r\nContent-Length: -1"),
        (400, f"{FIRST}\r\nContent-Length: +1"),
        (400, f"{FIRST}\r\nContent-Length: \xb2"),
        (400, f"{FIRST}\r\nContent-Length: {'9' * 19}"),
        (400, f"{FIRST}\r\nContent-Length: 1\r\nTransfer-Encoding: chunked"),
        (501, f"{FIRST}\r\nTransfer-Encoding: gzip, chunked"),
        (400, f"{FIRST}\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked"),
    ],
)
def test_ambiguous_request_is_rejected(status: int, text: str) -> None:
    with pytest.raises(Refused) as refused:
        Request(text + END)
    assert refused.value.status == status


@pytest.mark.parametrize("end", ["\r\n\n", "\n\r\n", "\n\n"])
def test_empty_line_of_a_request_must_end_as_the_other_lines_do(end: str) -> None:
    with pytest.raises(Refused) as refused:
        Request(FIRST + end)
    assert refused.value.status == 400
    Request(FIRST.replace("\r", "") + "\n\n")


@pytest.mark.parametrize(
    ("version", "connection", "keep_alive"),
    [
        ("1.0", None, False),
        ("1.0", "Keep-Alive", True),
        ("1.1", None, True),
        ("1.1", "close", False),
        ("1.1", "keep-alive, Close", False),
        ("1.1", "te,close", False),
        ("1.1", "closed", True),
        ("1.0", "keep-alive, xclose", True),
        ("1.0", "keep-alives", False),
        ("1.1", "\xe9close", False),
        ("1.0", "keep-alive\xe9", True),
    ],
)
def test_request_asks_to_be_kept_alive(
    version: str, connection: str | None, keep_alive: bool
) -> None:
    field = f"\r\nConnection: {connection}" if connection else ""
    assert Request(f"GET / HTTP/{version}\r\nHost: a{field}{END}").keep_alive is keep_alive


def test_connection_is_not_kept_alive_after_chunks_of_http_1_0() -> None:
    fields = "Connection: keep-alive\r\nTransfer-Encoding: chunked"
    assert not Request(f"POST / HTTP/1.0\r\n{fields}{END}").keep_alive


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("bytes=0-3", (206, 0, 4)),
        ("bytes=3-", (206, 3, 10)),
        ("bytes=3-99", (206, 3, 10)),
        ("bytes=-3", (206, 0, 4)),
        ("bytes=-0", (416, 0, 0)),
        ("bytes=10-", (416, 0, 0)),
        ("bytes=4-3", (416, 0, 0)),
        ("bytes=-", (200, 0, 10)),
        ("bytes=0-1,3-4", (200, 0, 10)),
        ("lines=0-1", (200, 0, 10)),
        ("bytes=-00", (416, 0, 0)),
        (f"bytes={'9' * 50}-", (416, 0, 0)),
        (f"bytes=0-{'9' * 5000}", (206, 0, 10)),
        (f"bytes={'0' * 5000}1-{'0' * 5000}3", (206, 1, 4)),
    ],
)
def test_ranges_of_ten_bytes(asked: str, expected: tuple[int, int, int]) -> None:
    assert Request(f"{FIRST}\r\nRange: {asked}{END}").range(10) == expected


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 3", True),
        ("HTTP/1.0 200 OK\r\nConnection: keep-alive", False),
        ("HTTP/1.0 304 Not Modified\r\nConnection: keep-alive", True),
        ("HTTP/1.0 200 OK\r\nContent-Length: 3", False),
        ("HTTP/1.1 200 OK\r\nContent-Length: 3", True),
        ("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 3", False),
        ("HTTP/1.1 200 OK\r\nConnection: closed\r\nContent-Length: 3", True),
        ("HTTP/1.0 200 OK\r\nConnection: keep-alive, close\r\nContent-Length: 3", False),
    ],
)
def test_backend_connection_is_kept_alive(text: str, kept: bool) -> None:
    assert parse_response(text + END).kept_alive(head_only=False) is kept


def test_length_beside_a_transfer_encoding_is_ignored() -> None:
    response = parse_response(
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked" + END
    )
    assert response.length is None and response.get("content-length") is None


@pytest.mark.parametrize(
    "text", ["Content-Length: 3\r\ncontent-length: 3", "Content-Length: 3 ,3,\t3"]
)
def test_length_that_a_backend_repeats_counts_once(text: str) -> None:
    response = parse_response(f"HTTP/1.1 200 OK\r\n{text}{END}")
    assert (response.length, response.get("content-length")) == (3, "3")


@pytest.mark.parametrize("fold", ["\r\n ", "\n\t \t"])
def test_folded_line_of_a_backend_is_one_line(fold: str) -> None:
    response = parse_response(f"HTTP/1.1 200 OK\r\nA: b{fold}c: d{END}")
    assert response.values == {"a": "b c: d"}


@pytest.mark.parametrize("text", ["", "200 OK", "HTTP/1.0 OK", "HTTP/1.0 200 OK\r\nA: b\rc"])
def test_malformed_head_of_a_backend_is_rejected(text: str) -> None:
    with pytest.raises(Refused):
        parse_response(text + END)


def test_own_answer_has_a_reason_if_one_is_known() -> None:
    assert Response(404).to_bytes() == b"HTTP/1.0 404 Not Found\r\n\r\n"
    assert Response(201).to_bytes() == b"HTTP/1.0 201 \r\n\r\n"


def test_dates_have_the_format_of_http() -> None:
    assert http_date(784111777) == "Sun, 06 Nov 1994 08:49:37 GMT"


@pytest.mark.parametrize(
    ("seconds", "date"),
    [
        (-1, "Wed, 31 Dec 1969 23:59:59 GMT"),
        (-1 << 62, "Mon, 01 Jan 0001 00:00:00 GMT"),
        (253_402_300_800, "Fri, 31 Dec 9999 23:59:59 GMT"),
        (1 << 62, "Fri, 31 Dec 9999 23:59:59 GMT"),
    ],
)
def test_date_that_http_cannot_express_becomes_the_closest_one_it_can(
    seconds: int, date: str
) -> None:
    assert http_date(seconds) == date


CHUNKED = b"4\r\nwiki\r\n5;a=b\r\npedia\r\nE\r\n in\r\n\r\nchunks.\r\n0\r\nA: b\r\n\r\n"


def test_chunks_are_decoded_wherever_they_are_cut() -> None:
    for seed in range(200):
        cuts = random.Random(seed)
        decoder, got, left = ChunkDecoder(), b"", CHUNKED + b"next"
        while not decoder.done:
            size = cuts.randint(1, 9)
            body, rest = decoder.feed(left[:size])
            got, left = got + body, rest + left[size:]
        assert (got, left) == (b"wikipedia in\r\n\r\nchunks.", b"next")


@pytest.mark.parametrize(
    "data",
    [
        b"-1\r\n",
        b"0x1\r\n",
        b"\r\n",
        b"1 1\r\n",
        b"1\n",
        b"1\r\nab",
        b"1\r\na\rb",
        b"1\r\na\n",
        b"fffffffffffffffff\r\n",
        b"1;" + b"a" * 2000,
        b"1;a\x01\r\n",
        b"0\r\n" + b"A: b\r\n" * 5000,
    ],
)
def test_malformed_chunks_are_rejected(data: bytes) -> None:
    with pytest.raises(Refused):
        ChunkDecoder().feed(data)
    with pytest.raises(Refused):
        decoder = ChunkDecoder()
        for each in data:
            decoder.feed(bytes([each]))
