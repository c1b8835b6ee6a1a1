"""reverse_proxy: requests and answers that two readers could interpret differently.

RFC 9112 says which must be refused. The original is lax; ours refuses all of them, and what it
passes on has only one interpretation.
"""

from __future__ import annotations

from tests.perlbal.proxying import KEEP, PLAIN
from tests.perlbal.steps import (
    asked,
    closing,
    get,
    hear_or_wait,
    raw,
    send,
    serve,
    settled,
)
from tests.perlbal.tables import Table
from tests.perlbal.uploads import SIZE

TABLE = Table()
row = TABLE.row

POST = b"POST /%d HTTP/1.1\r\nHost: here\r\n"


def refused(title: str, data: bytes, status: str = "400") -> None:
    """A request that gets this status and reaches no backend."""
    row(
        KEEP,
        f"refused: {title}",
        send(data),
        hear_or_wait(),
        alone=True,
        differs="strict heads",
        ours=(f"HTTP/1.0 {status} ", "Connection: close", "<closed>"),
    )


for title, fields, body in (
    (
        "length with Transfer-Encoding",
        b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
        b"0\r\n\r\n",
    ),
    (
        "Transfer-Encoding with length",
        b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n",
        b"0\r\n\r\n",
    ),
    ("two lengths", b"Content-Length: 3\r\nContent-Length: 4\r\n", b"abcd"),
    ("two lengths in one", b"Content-Length: 3, 4\r\n", b"abcd"),
    ("a length with a sign", b"Content-Length: +3\r\n", b"abc"),
    ("a length with a letter", b"Content-Length: 3a\r\n", b"abc"),
    ("a length with a point", b"Content-Length: 3.0\r\n", b"abc"),
    ("a length in two words", b"Content-Length: 3 3\r\n", b"abc"),
    ("an empty length", b"Content-Length:\r\n", b""),
    ("a length beyond all", b"Content-Length: 99999999999999999999999\r\n", b""),
    ("space before the colon", b"Content-Length : 3\r\n", b"abc"),
    ("a tab before the colon", b"Content-Length\t: 3\r\n", b"abc"),
    ("a field that goes on in the next line", b"X-A: 1\r\n Content-Length: 3\r\n", b"abc"),
    ("a field that goes on after a tab", b"X-A: 1\r\n\tmore\r\n", b""),
    (
        "chunked twice",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        b"0\r\n\r\n",
    ),
    ("a CR within a value", b"X-A: 1\rContent-Length: 3\r\n", b"abc"),
    ("a NUL within a value", b"X-A: 1\x002\r\n", b""),
    ("a NUL within a name", b"X-\x00A: 1\r\n", b""),
    ("an empty name", b": 1\r\n", b""),
    ("two Hosts", b"Host: there\r\n", b""),
):
    refused(title, POST % 1 + fields + b"\r\n" + body)
refused("an empty line of LF behind CR LF", b"GET / HTTP/1.1\r\nHost: here\r\n\n")
refused("no CR LF before the empty line", b"GET / HTTP/1.1\r\nHost: here\n\r\n")
refused("LF twice behind CR LF", b"GET / HTTP/1.1\r\nHost: here\n\n")
for title, first in (
    ("HTTP/0.9", b"GET / HTTP/0.9"),
    ("HTTP/1.10", b"GET / HTTP/1.10"),
    ("HTTP/2.0", b"GET / HTTP/2.0"),
    ("a NUL in the path", b"GET /\x00 HTTP/1.1"),
    ("a control character in the path", b"GET /\x01 HTTP/1.1"),
):
    row(
        KEEP,
        f"no request line: {title}",
        send(first + b"\r\nHost: here\r\n\r\n"),
        hear_or_wait(),
        alone=True,
        differs="strict heads",
        ours=("<closed>",),
    )
for target in b"http://user@there/", b"https://there/", b"http://there:x/":
    refused(f"{target.decode()} for a path", b"GET %s HTTP/1.1\r\nHost: here\r\n\r\n" % target)
for value in "xchunked", "gzip, chunked", "chunked, identity", "chunked;q=1", '"chunked"':
    refused(
        f"Transfer-Encoding: {value}",
        POST % 1 + b"Transfer-Encoding: %s\r\n\r\n0\r\n\r\n" % value.encode(),
        status="501",
    )
refused("Host with a slash", b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n")

for title, body in (
    ("a length that is none", b"x\r\nabc\r\n0\r\n\r\n"),
    ("a length with a sign", b"+3\r\nabc\r\n0\r\n\r\n"),
    ("a length with 0x", b"0x3\r\nabc\r\n0\r\n\r\n"),
    ("a negative length", b"-3\r\nabc\r\n0\r\n\r\n"),
    ("a length with a space", b" 3\r\nabc\r\n0\r\n\r\n"),
    ("a length beyond all", b"fffffffffffffffffff\r\nabc\r\n0\r\n\r\n"),
    ("no length", b"\r\nabc\r\n0\r\n\r\n"),
    ("a line end of LF", b"3\nabc\r\n0\r\n\r\n"),
    ("more than its length", b"3\r\nabcd\r\n0\r\n\r\n"),
    ("no line end behind it", b"3\r\nabc0\r\n\r\n"),
):
    row(
        SIZE,
        f"a chunk with {title}",
        send(POST % 2 + b"Transfer-Encoding: chunked\r\n\r\n" + body),
        hear_or_wait(),
        alone=True,
        differs="strict chunks",
        ours=("<closed>",),
    )

for title, answer in (
    ("two lengths", b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd"),
    ("a length with a sign", b"HTTP/1.1 200 OK\r\nContent-Length: +3\r\n\r\nabc"),
    ("a negative length", b"HTTP/1.1 200 OK\r\nContent-Length: -3\r\n\r\nabc"),
    ("a length that is none", b"HTTP/1.1 200 OK\r\nContent-Length: three\r\n\r\nabc"),
    ("a name with a space", b"HTTP/1.1 200 OK\r\nX Y: 3\r\n\r\nabc"),
    ("space before the colon", b"HTTP/1.1 200 OK\r\nContent-Length : 3\r\n\r\nabc"),
    ("a NUL in a value", b"HTTP/1.1 200 OK\r\nX: \x00\r\nContent-Length: 3\r\n\r\nabc"),
):
    row(
        PLAIN,
        f"an answer with {title}",
        serve(closing(raw(answer))),
        send(get()),
        asked(),
        hear_or_wait(),
        settled(),
        alone=True,
        differs="garbage is a 502",
        ours=("HTTP/1.0 502 ", "<closed>"),
    )
