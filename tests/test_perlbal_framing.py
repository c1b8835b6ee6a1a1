"""examples/perlbal: an answer that replaces another marks its own end correctly, whatever the other
said.

A client on a persistent connection expects the next answer where this one ends. If that is the
wrong place, an attacker could put a forged answer there.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from http.client import HTTPConnection

import pytest

from tests.perlbal.backends import Answer
from tests.perlbal.conversation import Deployment, deployment
from tests.perlbal.reproxying import REPROXIES
from tests.perlbal.servers import OURS, PATIENCE
from tests.perlbal.steps import closing, reply

FILE = b"0123456789"
FRAMES = ("length", "chunks", "end", "nothing")
CODES = ("200 OK", "204 None", "304 Not Modified", "206 Part", "404 None")
URL_CODES = ("200 OK", "204 None", "206 Part", "416 Not Here")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with deployment(REPROXIES, OURS, tmp_path_factory.mktemp("framing") / "ours") as opened:
        yield opened


def framed(method: str, code: str, frame: str, body: bytes, *fields: str) -> Answer:
    """An answer whose length is given in this way, without a body if it can't have one."""
    if frame == "length":
        fields += (f"Content-Length: {len(body)}",)
    elif frame == "chunks":
        fields += ("Transfer-Encoding: chunked",)
        body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    fields += ("Connection: close",)
    if frame == "nothing" or method == "HEAD" or code[:3] in ("204", "304"):
        return closing(reply(code, *fields))
    return closing(reply(code, *fields, body=body))


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("code", CODES)
def test_reproxied_file_or_url_ends_where_its_head_says(
    place: Deployment, code: str, method: str
) -> None:
    file = f"X-REPROXY-FILE: {place.folder}/docs/file.txt"
    url = f"X-REPROXY-URL: http://127.0.0.1:{place.server.ports['b']}/"
    for each in place.backends.values():
        each.begin()
    client = HTTPConnection("127.0.0.1", place.server.ports["proxy"], timeout=PATIENCE)

    def ask(expected: bytes) -> None:
        client.request(method, "/")
        with client.getresponse() as answer:
            assert answer.read() == (b"" if method == "HEAD" else expected)

    try:
        for frame in FRAMES:
            first = place.backends["a"].script.answers
            first.append(framed(method, code, frame, b"first", file))
            ask(FILE)
            for url_code, url_frame in itertools.product(URL_CODES, FRAMES):
                first.append(framed(method, code, frame, b"first", url))
                there = framed(method, url_code, url_frame, b"there", "Content-Range: bytes 0-4/9")
                place.backends["b"].script.answers.append(there)
                none = url_code.startswith("204") or url_frame == "nothing"
                ask(b"" if none else b"there")
    finally:
        client.close()
        for each in place.backends.values():
            each.end()
