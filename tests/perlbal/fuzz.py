"""Random and mutated input from clients, backends, managers and files.

    python -m tests.perlbal.fuzz [--seed N] [--count N] [--kind KIND]

The seed, the kind and its number determine each case. Meanwhile a witness, on its own connection to
a service with its own backend, must get every answer intact. At the end the server must still be
running, with no more descriptors than before, little more memory and no traceback. The first case
that breaks something is printed, with the command that repeats it.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from tests.perlbal.backends import Answer
from tests.perlbal.conversation import Deployment, Setting, deployment
from tests.perlbal.servers import OURS, Management, ended, quick_recv, reserved_ports
from tests.perlbal.smuggling import POST
from tests.perlbal.starting import REFUSALS
from tests.perlbal.steps import get, good, post, put, request
from tests.perlbal.uploads import chunks

SETTING = Setting(
    "fuzz",
    """
    LOAD vhosts
    LOAD include
    LOAD redirect
    LOAD AccessControl
    CREATE POOL apart
      POOL apart ADD {witness}
    CREATE POOL one
      POOL one ADD {odd}

    CREATE SERVICE bystander
      SET role   = reverse_proxy
      SET listen = {bystander}
      SET pool   = apart
      SET persist_client  = on
      SET persist_backend = on
    ENABLE bystander

    CREATE SERVICE proxy
      SET role   = reverse_proxy
      SET listen = {proxy}
      SET pool   = one
      SET persist_client  = on
      SET persist_backend = on
      SET enable_reproxy  = on
      SET reproxy_cache_maxsize = 10
      SET idle_timeout    = 1
      SET buffer_uploads  = on
      SET buffer_uploads_path = {folder}/spool
      SET buffer_upload_threshold_size = 1k
      SET high_priority_cookie = fast
      SET high_priority_cookie_contents = yes
    ENABLE proxy

    CREATE SERVICE web
      SET role    = web_server
      SET listen  = {web}
      SET docroot = {folder}/docs
      SET persist_client = on
      SET idle_timeout   = 1
      SET dirindexing    = on
      SET enable_put     = on
      SET enable_delete  = on
      SET max_put_size   = 10k
      SET enable_concatenate_get = on
    ENABLE web

    CREATE SERVICE choice
      SET role    = selector
      SET listen  = {choice}
      SET plugins = vhosts
      SET persist_client = on
      VHOST choice web.test   = web
      VHOST choice proxy.test = proxy
    ENABLE choice
    """,
    services=("proxy", "web", "choice", "bystander"),
    backends=("witness", "odd"),
    files={"docs/a.txt": b"0123456789", "docs/sub/index.html": b"<p>", "spool/.keep": b""},
)

REQUESTS = [
    get("/a.txt"),
    get("/a.txt", version="1.0"),
    get("/sub/", "Host: web.test"),
    get("/??a.txt,a.txt", "Host: web.test"),
    get("/a.txt", "Range: bytes=2-5", "If-Modified-Since: Sun, 09 Sep 2001 01:46:40 GMT"),
    get("/", "Host: proxy.test", "Cookie: a=b; fast=%79es", "X-Forwarded-For: 1.2.3.4, 5.6.7.8"),
    get("http://web.test:80/a.txt?x=%41", "Connection: close, x", "Keep-Alive: 5"),
    request("HEAD", "/a.txt"),
    request("OPTIONS", "*"),
    request("DELETE", "/gone"),
    put("/put.txt", b"content"),
    put("/put2.txt", b"content", "Content-MD5: mgNkuembtIDdJeHwKEyFVQ=="),
    request("PUT", "/put3.txt", "Transfer-Encoding: chunked", body=chunks(b"abc", b"defg")),
    post("/form", b"a=b&c=d"),
    post("/large", b"0123456789" * 300),
    post("/expecting", b"abc", "Expect: 100-continue"),
    request("POST", "/c", "Transfer-Encoding: chunked", body=chunks(b"abc", b"x" * 2000)),
    POST % 1 + b"Content-Length: 0x3\r\n\r\nabc",
    POST % 2 + "Content-Length: \u0663\r\n\r\nabc".encode(),
    POST % 3 + b"Content-Length: 99999999999999999999\r\n\r\nabc",
]
ANSWERS = [
    good("ok").data,
    good("ok", "Connection: keep-alive", "Keep-Alive: timeout=5", version="1.0").data,
    good("ok", "Set-Cookie: a=b", "Set-Cookie: c=d").data,
    good("x" * 3000, status="500 No").data,
    b"HTTP/1.1 200 OK\r\n\r\nto the end",
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n" + good("late").data,
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    good("", "X-REPROXY-FILE: @folder@/docs/a.txt").data,
    good("", "X-REPROXY-FILE: /nowhere", "X-REPROXY-EXPECTED-SIZE: 12").data,
    good("", "X-REPROXY-URL: http://@odd@/1 http://@odd@/2", "X-REPROXY-CACHE-FOR: 5; Date").data,
    good("", "X-REPROXY-SERVICE: web").data,
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
    b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nabcdef",
]
COMMANDS = [
    b"CREATE SERVICE s%d\r\nSET role = web_server\r\nSET idle_timeout = 5\r\nSHOW SERVICE\r\n",
    b"CREATE POOL p%d\r\nPOOL p%d ADD 127.0.0.1:81\r\nPOOL p%d REMOVE 127.0.0.1:81\r\n",
    b"SET proxy.buffer_size = 100k\r\nSET proxy.idle_timeout = 1\r\nSET proxy nonsense = 1\r\n",
    b"SET web.trusted_upstream_proxies = 10.0.0.0/8, 1.2.3.4\r\nSET web.index_files = a, b\r\n",
    b"HEADER proxy INSERT X-A: b\r\nHEADER proxy REMOVE X-A\r\n",
    b"VHOST choice a.test = web\r\nVHOST choice *.test = proxy\r\n",
    b"USE web\r\nSET persist_client = off\r\nSET persist_client = on\r\n",
    b"DEFAULT idle_timeout = 1\r\nVERBOSE off\r\nUSE web\r\nVERBOSE on\r\n",
    b"SHOW SERVICE\r\nSHOW SERVICE proxy\r\nSHOW POOL\r\nSHOW POOL one\r\n",
    b"NODES\r\nNODE 127.0.0.1:80\r\nPROC\r\nUPTIME\r\nSTATES\r\nSTATES web\r\nQUEUES\r\n",
    b"PENDING\r\nNOVERIFY\r\nSOCKS\r\nSOCKS SUMMARY\r\nREPROXY_STATE\r\nFD\r\nAIO\r\nHELP\r\n",
    b"MIME LIST\r\nMIME SET x%d a/b\r\nMIME REMOVE x%d\r\nDUMPCONFIG\r\nPLUGINS\r\n",
    b"LOAD redirect\r\nREDIRECT HOST a.test b.test\r\nINCLUDE = /nowhere/*.conf\r\n",
    b"SERVER aio_mode = none\r\nBACKENDS\r\nSERVER max_reproxy_connections = 5\r\n",
    b"USE web\r\nACCESS allow ip 1.2.3.4\r\nACCESS reset\r\n",
    b"GET / HTTP/1.0\r\n\r\n",
    b"GET /service?proxy HTTP/1.0\r\n\r\n",
    b"HEAD /socks HTTP/1.0\r\n\r\n",
    b"$PATH ${ip:lo} # comment\r\n",
]
HARMFUL = (b"max_connections", b"nice", b"pidfile")
"""Words that no file or manager may send, because they would affect things outside the server."""
UNFAIR = (*HARMFUL, b"shutdown", b"bystander", b"apart", b"docroot", b"uploads_path")
"""Words that no manager may send, because they would end the server, break the witness, or let the
requests of other cases write to folders outside the test."""

FRAGMENTS = [
    b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b"=", b"%", b"%00", b"/../", b"??", b",", b";",
    b"\r\n\r\n", b"HTTP/1.1", b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"-1",
    b"0", b"99999999999999999999", b"ffffffff\r\n", b"\xff\xfe", b"A" * 300,
    b"GET / HTTP/1.0\r\n\r\n",
    b"Host: web.test\r\n", b"X-REPROXY-FILE: /\r\n", b"$", b"${", b"#", b"\x80", "\u0663".encode(),
]  # fmt: skip

ROOM = 24 * 1024 * 1024
"""How many bytes the memory may have grown by at the end: buffers, and what Python keeps."""


def mutated(data: bytes, dice: random.Random) -> bytes:
    """Change, repeat, move, cut or insert a few bytes."""
    found = bytearray(data)
    for _ in range(dice.choice((0, 1, 1, 2, 3, 8))):
        at, to = sorted((dice.randrange(len(found) + 1), dice.randrange(len(found) + 1)))
        kind = dice.randrange(6)
        if kind == 0 and found:
            found[dice.randrange(len(found))] = dice.randrange(256)
        elif kind == 1:
            found[at:at] = dice.choice(FRAGMENTS)
        elif kind == 2:
            del found[at : min(to, at + dice.randrange(1, 40))]
        elif kind == 3:
            found[to:to] = found[at : min(to, at + 200)]
        elif kind == 4:
            found[at : at + dice.randrange(1, 5)] = dice.randbytes(dice.randrange(1, 5))
        else:
            del found[to:]
    return bytes(found)


def input_of(corpus: list[bytes], dice: random.Random) -> bytes:
    """One input: sometimes only random bytes, otherwise one or two of the corpus, mutated."""
    if dice.random() < 0.15:
        return dice.randbytes(dice.choice((1, 10, 100, 5000)))
    return b"".join(mutated(dice.choice(corpus), dice) for _ in range(dice.choice((1, 1, 1, 2))))


def pieces(data: bytes, dice: random.Random) -> Iterator[bytes]:
    """Split the data at random: usually at few points, sometimes at every byte."""
    cuts = dice.choice((0, 0, 1, 2, 5, 30))
    points = sorted(dice.randrange(len(data) + 1) for _ in range(cuts))
    for start, end in zip([0, *points], [*points, len(data)], strict=True):
        if start < end:
            yield data[start:end]


KINDS = ("clients", "backends", "managers", "files")
ENDS: tuple[Literal["stay", "close", "reset"], ...] = ("stay", "close", "reset")


class Fuzz:
    """A server that gets the input."""

    def __init__(self, place: Deployment, seed: int) -> None:
        self.deployment = place
        self.server = place.server
        self.seed = seed
        self.witness = self.server.connect("bystander")
        self.testify()
        self.management = Management(self.server)
        self.management.ask("proc")  # the server has accepted the connection
        self.fresh = 0
        self.before = self.server.descriptors()
        self.memory = self.server.memory()

    def close(self) -> None:
        self.witness.close()
        self.management.socket.close()

    def testify(self) -> None:
        """Check a request and its answer on the witness's first connection."""
        self.witness.sendall(get("/witness"))
        heard = b""
        while not heard.endswith(b"\r\n\r\nok"):
            piece = quick_recv(self.witness)
            assert piece, f"the witness was hung up on, with {heard!r}"
            heard += piece
        assert heard.startswith(b"HTTP/1.0 200 OK\r\n"), heard

    def talk(self, service: str, data: bytes, dice: random.Random) -> None:
        """Send the data, read for a moment, and leave in one of several ways."""
        with self.server.connect(service) as client:
            client.settimeout(0.02)
            with contextlib.suppress(OSError):
                for piece in pieces(data, dice):
                    client.sendall(piece)
                    if dice.random() < 0.1:
                        client.recv(1 << 16)
            end = dice.randrange(4)
            with contextlib.suppress(OSError):
                if end == 0:
                    client.shutdown(socket.SHUT_WR)
                if end < 3:
                    for _ in range(5):
                        if not client.recv(1 << 16):
                            break

    # --- the kinds ----------------------------------------------------------------------------

    def clients(self, dice: random.Random) -> None:
        service = dice.choice(("proxy", "proxy", "web", "choice"))
        self.talk(service, input_of(REQUESTS, dice), dice)

    def backends(self, dice: random.Random) -> None:
        odd = self.deployment.backends["odd"]
        folder = str(self.deployment.folder).encode()
        for _ in range(3):
            data = input_of(ANSWERS, dice)
            data = data.replace(b"@folder@", folder).replace(
                b"@odd@", f"127.0.0.1:{odd.port}".encode()
            )
            then: Literal["stay", "close", "reset"] = dice.choice(ENDS)
            odd.script.answers.append(Answer(data, then, pieces=tuple(pieces(data, dice))))
        self.talk("proxy", dice.choice(REQUESTS), dice)
        odd.script.answers.clear()

    def managers(self, dice: random.Random) -> None:
        self.fresh += 1
        data = input_of(COMMANDS, dice).replace(b"%d", b"%d" % self.fresh)
        if not any(word in data.lower() for word in UNFAIR):
            self.talk("management", data, dice)

    def files(self, dice: random.Random) -> None:
        """A server with a random configuration starts, or prints one line and exits."""
        with reserved_ports(SETTING.services + SETTING.backends) as ports:
            self._file(dice, {name: f"127.0.0.1:{port}" for name, port in ports.items()})

    def _file(self, dice: random.Random, addresses: dict[str, str]) -> None:
        whole = SETTING.configuration.format(folder=self.deployment.folder, **addresses)
        lines = whole.splitlines(keepends=True)
        lines += dice.choice(REFUSALS).configuration.splitlines(keepends=True)
        start = dice.randrange(len(lines))
        chosen = lines[start : start + dice.randrange(1, 30)]
        data = b"CREATE POOL one\n" * (dice.random() < 0.5)
        data += input_of(["".join(chosen).encode(), *COMMANDS], dice)
        if any(word in data.lower() for word in HARMFUL):
            return
        file = self.deployment.folder / "fuzz.conf"
        file.write_bytes(data)
        with subprocess.Popen(
            [*OURS, str(file)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=self.deployment.folder,
        ) as process:
            try:
                started = not ended(process, 0.6)
            finally:
                process.kill()
            assert process.stdout is not None
            said = process.stdout.read().decode("latin-1")
        assert "Traceback" not in said, f"{data!r}\n{said}"
        assert started or process.returncode in (0, 1, 2) and said.strip(), f"{data!r}\n{said}"
        assert said.count("ERROR") <= 3, f"{data!r}\n{said}"

    # --- a run --------------------------------------------------------------------------------

    def run(
        self, kind: str, numbers: range, told: Callable[[int], None] = lambda number: None
    ) -> None:
        """Run these cases. The first that breaks something raises AssertionError or OSError."""
        act = getattr(self, kind)
        for number in numbers:
            told(number)
            act(random.Random(f"{self.seed} {kind} {number}"))
            if number % 10 == 9:
                self.testify()
        self.testify()

    def settled(self) -> list[str]:
        """What is wrong at the end, once all clients are gone; empty if nothing is."""
        self.deployment.backends["odd"].end()
        limit = time.monotonic() + 20  # idle connections are closed every few seconds
        while self.server.descriptors() > self.before and time.monotonic() < limit:
            time.sleep(0.1)
        wrong = []
        if (now := self.server.descriptors()) > self.before:
            socks = self.management.ask("socks")
            wrong.append(f"{now - self.before} descriptors more than before:\n{socks}")
        if (grown := self.server.memory() - self.memory) > ROOM:
            wrong.append(f"{grown:,} bytes more than before")
        if "Traceback" in self.server.said():
            wrong.append(self.server.said())
        self.testify()
        return wrong


@contextlib.contextmanager
def fuzzing(seed: int, folder: Path) -> Iterator[Fuzz]:
    with deployment(SETTING, OURS, folder) as place:
        fuzz = Fuzz(place, seed)
        try:
            yield fuzz
        finally:
            fuzz.close()


def command(kind: str, seed: int, number: int) -> str:
    return f"python -m tests.perlbal.fuzz --seed {seed} --kind {kind} --first {number} --count 1"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="tests.perlbal.fuzz", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=1000, help="cases of each kind")
    parser.add_argument("--first", type=int, default=0, help="the number of the first")
    parser.add_argument(
        "--kind", choices=KINDS, action="append", help="all of them if none is named"
    )
    options = parser.parse_args()
    wrong = []
    print(f"seed {options.seed}")
    with tempfile.TemporaryDirectory() as folder, fuzzing(options.seed, Path(folder, "f")) as fuzz:
        for kind in options.kind or KINDS:
            since = time.monotonic()
            at = options.first
            numbers = range(options.first, options.first + options.count)

            def told(number: int) -> None:
                nonlocal at
                at = number

            try:
                fuzz.run(kind, numbers, told)
            except (AssertionError, OSError) as error:
                wrong.append(f"{type(error).__name__}: {error}")
            wrong += fuzz.settled() if fuzz.server.process.poll() is None else ["it has ended"]
            print(
                f"{kind}: {at - options.first + 1} cases, {time.monotonic() - since:.1f} s",
                flush=True,
            )
            if wrong:
                print(fuzz.server.said())
                print(
                    "\n".join(wrong), f"at or before: {command(kind, options.seed, at)}", sep="\n"
                )
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
