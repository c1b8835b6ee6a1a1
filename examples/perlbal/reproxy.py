"""Reproxying: a backend names a file, or some URLs, in the place of its answer's body."""

from __future__ import annotations

import os
import re
import socket
import stat
import time
from collections import OrderedDict
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple

from examples.perlbal.backends import BackendHTTP
from examples.perlbal.files import code_of, open_file
from examples.perlbal.heads import BODILESS, Request, Response
from examples.perlbal.pools import Node

if TYPE_CHECKING:
    from examples.perlbal.clients import Client
    from examples.perlbal.proxy import ProxyExchange
    from examples.perlbal.server import Server

KEPT_SECONDS: Final = 5
CONNECT_SECONDS: Final = 5.0
MOST_URLS: Final = 50
_HEADERS: Final = (
    "x-reproxy-file",
    "x-reproxy-url",
    "x-reproxy-expected-size",
    "x-reproxy-cache-for",
)
_URL: Final = re.compile(
    r"http://([^/:\[\]]+|\[[\da-f:.]+\])(?::(\d{1,5}))?(/.*)?", re.IGNORECASE | re.ASCII
)
_SECONDS: Final = re.compile(r"\s*(\d{1,18}(?:\.\d*)?)", re.ASCII)


class Url(NamedTuple):
    """Where a body is to be had."""

    node: Node
    path: str


def parse_urls(text: str) -> list[Url]:
    """The URLs of an X-REPROXY-URL header; what isn't one is left out."""
    found = (_URL.fullmatch(each) for each in re.split("[ \t]+", text)[:MOST_URLS])
    nodes = ((Node(each[1].strip("[]"), int(each[2] or 80)), each[3]) for each in found if each)
    return [Url(node, path or "/") for node, path in nodes if 0 < node.port < 65536]


def expected_size(head: Response) -> int | None:
    """What X-REPROXY-EXPECTED-SIZE says; None if it says nothing, -1 if it is no number."""
    text = (head.get("x-reproxy-expected-size") or "0").strip()
    if text.isascii() and text.isdigit():
        return int(text[:20]) or None
    return -1


def _open(path: bytes, expected: int | None) -> tuple[int, int]:
    """The descriptor and the size of a regular file. stat(2), open(2), fstat(2); raises `OSError`
    or `ValueError`, also for one that is empty or not of the expected size."""
    if stat.S_ISREG(os.stat(path).st_mode):  # What is no file isn't opened: that may do something.
        fd, info = open_file(path)
        if info.st_size and expected in (None, info.st_size):
            return fd, info.st_size
        os.close(fd)
    raise FileNotFoundError


def send_file(client: Client, request: Request, path: bytes, head: Response) -> None:
    """Answer with a file in the place of the body that this head has."""
    try:
        fd, size = _open(path, expected_size(head))
    except (OSError, ValueError) as error:
        return client.send_page(code_of(error))
    status, start, end = request.range(size)
    if status == 416:
        head = Response(416)
        head.set("Content-Range", f"bytes */{size}")
    else:
        head.set("Accept-Ranges", "bytes")
        if head.code in BODILESS:
            head.set_code(200)  # It has a body now.
        head.set("Content-Length", str(end - start))
        if status == 206:
            head.set("Content-Range", f"bytes {start}-{end - 1}/{size}")
            head.set_code(206)
        head.drop("x-reproxy-file")
        head.drop("transfer-encoding")  # Of the body that nobody gets.
    if status == 416 or request.method == "HEAD":
        os.close(fd)
        client.send_answer(head)
    else:
        client.send_file(head, (fd, start, end))


class OtherBody:
    """What is sent in the place of a response's body: that of the first of some URLs that gives
    what is expected."""

    def __init__(self, urls: str, primary: Response) -> None:
        """`primary`: the head of the response that named the URLs."""
        self._primary = primary
        self.urls = parse_urls(urls)
        """Those that may still be tried, the present one first."""
        self._expected_size = expected_size(primary)

    def head_for_backend(self, request: Request) -> bytes:
        method = "HEAD" if request.method == "HEAD" else "GET"
        lines = [f"{method} {self.urls[0].path} HTTP/1.0", "Connection: keep-alive"]
        for name in ("Range", "Host"):
            if value := request.get(name.lower()):
                lines.append(f"{name}: {value}")
        return "\r\n".join([*lines, "", ""]).encode("latin-1")

    def answer(self, head: Response) -> Response | None:
        """The first backend's head, made to fit the body that comes with this one; None if that
        isn't what is expected."""
        if head.code != 416 and not 200 <= head.code <= 299:
            return None
        if self._expected_size not in (None, head.length):
            return None
        primary = self._primary
        for key in _HEADERS:
            primary.drop(key)
        for name in ("Content-Length", "Transfer-Encoding"):
            value = head.get(name.lower()) if head.code != 204 else None
            if value is not None:
                primary.set(name, value)
            else:
                primary.drop(name.lower())
        if head.code in (206, 416):
            primary.set_code(head.code)
            for name in ("Accept-Ranges", "Content-Range"):
                if (value := head.get(name.lower())) is not None:
                    primary.set(name, value)
        if primary.code in BODILESS:
            primary.set_code(200)
        return primary


class Cached(NamedTuple):
    """What is known of a response whose body is elsewhere."""

    until: float
    headers: list[tuple[str, str]]
    urls: str


class ReproxyCache:
    """The X-REPROXY-URL answers that may be given again, by host and path; the one that was used
    least lately goes first."""

    def __init__(self) -> None:
        self._entries: OrderedDict[str, Cached] = OrderedDict()
        self._maxsize = 0
        self._hits = 0
        self._requests = 0

    def set_maxsize(self, maxsize: int) -> None:
        self._maxsize = maxsize
        while len(self._entries) > maxsize:
            self._entries.popitem(last=False)

    def add(self, key: str, cache_for: str, urls: str, head: Response) -> None:
        """Keep an answer as "seconds; Header Header" says."""
        seconds, _, names = cache_for.partition(";")
        found = _SECONDS.match(seconds)
        if found is None:
            return
        headers = [
            (name, value) for name in names.split() if (value := head.get(name.lower())) is not None
        ]
        self._entries[key] = Cached(time.monotonic() + float(found[1]), headers, urls)
        self._entries.move_to_end(key)
        self.set_maxsize(self._maxsize)

    def look_up(self, key: str) -> Cached | None:
        self._requests += 1
        found = self._entries.get(key)
        if found is None:
            return None
        self._entries.move_to_end(key)
        if time.monotonic() > found.until:
            return None
        self._hits += 1
        return found

    def report(self) -> list[str]:
        used = len(self._entries) / self._maxsize * 100
        rate = self._hits / self._requests * 100 if self._requests else 0
        return [
            f"    cache size: {len(self._entries)}/{self._maxsize} ({used:.2f}%)",
            f"    cache hits: {self._hits}",
            f"cache hit rate: {rate:.2f}%",
        ]


class ReproxyHost:
    """The connections to one host of X-REPROXY-URL, and who waits for them."""

    service = None

    def __init__(self, manager: ReproxyManager, node: Node) -> None:
        self.manager = manager
        self.server = manager.server
        self.node = node
        self.queue: OrderedDict[ProxyExchange, None] = OrderedDict()
        self.connecting: BackendHTTP | None = None
        self.bored: list[BackendHTTP] = []
        """Those that have nothing to do, the one used last at the end."""
        self.was_bored = False
        """Whether there ever was one of them."""
        self.connected: set[BackendHTTP] = set()
        self.refused = False
        """Whether it has just refused one connection more."""

    def serve(self) -> None:
        """Close what was idle too long, and see that somebody comes for who waits."""
        now = time.monotonic()
        limit = now - KEPT_SECONDS
        old = {each for each in self.bored if each.alive < limit or each.ends_soon(now)}
        # First all, as each that is closed comes here again.
        self.bored = [each for each in self.bored if each not in old]
        for each in old:
            each.close("too_close_disconnect")
        while self.queue and self.bored:
            self.register_boredom(self.bored.pop())
        most = self.manager.most.get(self.node.name) or self.manager.most[""]
        enough = self.refused or most and len(self.connected) >= most
        if not self.queue or self.connecting or self.connected and enough:
            return
        with suppress(OSError, ValueError, OverflowError):
            # As in the original, a host that isn't an address is looked up here and now, and an
            # IPv4 address is preferred.
            found = socket.getaddrinfo(*self.node, type=socket.SOCK_STREAM)
            found.sort(key=lambda info: info[0] != socket.AF_INET)
            node = Node(str(found[0][4][0]), self.node.port)
            self.connecting = BackendHTTP.open(self, node, CONNECT_SECONDS)
        if self.connecting is None:
            self._give_up()

    def _give_up(self) -> None:
        """It is down: have all that wait for it try their next URL, unless it was only one
        connection more. That is tried again when it is cleaned, not in each turn."""
        self.refused = bool(self.connected)
        if not self.connected:
            waiting, self.queue = self.queue, OrderedDict()
            for exchange in waiting:
                if not exchange.client.closed:
                    exchange.try_next_url()

    def register_boredom(self, backend: BackendHTTP) -> None:
        if backend is self.connecting:
            self.connecting = None
            self.connected.add(backend)
        if self.queue:
            backend.assign(self.queue.popitem(last=False)[0])
            self.serve()
        elif self.server.stopping:
            backend.close("graceful_death")
        else:
            backend.alive = time.monotonic()
            self.bored.append(backend)
            self.was_bored = True

    def note_backend_close(self, backend: BackendHTTP) -> None:
        if backend is self.connecting:
            self.connecting = None
        self.connected.discard(backend)
        if backend in self.bored:
            self.bored.remove(backend)
        if backend.unreachable:
            self._give_up()
        self.serve()

    def clean(self) -> bool:
        """Close what was idle too long. True if nothing is left."""
        self.refused = False
        self.serve()
        return not (self.queue or self.connecting or self.connected)


class ReproxyManager:
    """The hosts of X-REPROXY-URL, for all services together."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.hosts: dict[str, ReproxyHost] = {}
        """By "host:port"."""
        self.most = {"": 0}
        """How many connections to each host, and under "" to those that aren't named; 0: any."""

    def request(self, exchange: ProxyExchange, url: Url) -> None:
        """Give the exchange a connection to where the URL is, now or later; or have it try the
        next one."""
        if not self.hosts:
            self.server.loop.add_timer(1, self._clean)
        host = self.hosts.get(url.node.name)
        if host is None:
            host = self.hosts[url.node.name] = ReproxyHost(self, url.node)
        host.queue[exchange] = None
        host.serve()

    def forget(self, exchange: ProxyExchange, url: Url) -> None:
        if url.node.name in self.hosts:
            self.hosts[url.node.name].queue.pop(exchange, None)

    def _clean(self) -> None:
        for name, host in list(self.hosts.items()):
            if host.clean():
                del self.hosts[name]
        if self.hosts:
            self.server.loop.add_timer(1, self._clean)

    def report(self) -> list[str]:
        """The answer to `REPROXY_STATE`."""
        hosts = self.hosts.items()
        lines = [f"connecting {name} 1" for name, host in hosts if host.connecting]
        lines += [f"bored {name} {len(host.bored)}" for name, host in hosts if host.was_bored]
        lines += [f"clients_queued {name} {len(host.queue)}" for name, host in hosts]
        for name, host in hosts:
            lines.append(f"backends {name} {len(host.connected)}")
            lines += [f"... {backend.as_string()}" for backend in host.connected]
        (_, rest), *named = self.most.items()
        lines += [f"SERVER max_reproxy_connections({name}) = {most}" for name, most in named]
        return [*lines, f"SERVER max_reproxy_connections = {rest}"]
