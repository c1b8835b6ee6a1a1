"""Reproxying: a backend names a file, or some URLs, in the place of its answer's body."""

from __future__ import annotations

import os
import re
import socket
import stat
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Final, NamedTuple

from examples.perlbal.backends import BackendHTTP
from examples.perlbal.pools import node_name

if TYPE_CHECKING:
    from examples.perlbal.heads import Response
    from examples.perlbal.proxy import ProxyExchange
    from examples.perlbal.server import Server
    from examples.perlbal.services import Service

KEPT_SECONDS: Final = 5
CONNECT_SECONDS: Final = 5.0
MOST_URLS: Final = 50
_URL: Final = re.compile(
    r"http://([^/:\[\]]+|\[[\da-f:.]+\])(?::(\d{1,5}))?(/.*)?", re.IGNORECASE | re.ASCII
)


class Url(NamedTuple):
    """Where a body is to be had."""

    host: str
    port: int
    path: str

    @property
    def node(self) -> str:
        return node_name(self.host, self.port)


def parse_urls(text: str) -> list[Url]:
    """The URLs of an X-REPROXY-URL header; what isn't one is left out."""
    found = (_URL.fullmatch(each) for each in text.split()[:MOST_URLS])
    urls = [Url(each[1].strip("[]"), int(each[2] or 80), each[3] or "/") for each in found if each]
    return [url for url in urls if 0 < url.port < 65536]


def file_to_send(path: bytes, expected_size: str | None = None) -> tuple[int, int] | None:
    """The descriptor and the size of a regular file, None if there is none, or it is empty or not
    of the expected size. stat(2), open(2), fstat(2)."""
    try:
        # What is no file isn't opened: that might wait for somebody.
        if not stat.S_ISREG(os.stat(path).st_mode):
            return None
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        size = os.fstat(fd).st_size
    except (OSError, ValueError):
        return None
    if size and (not expected_size or expected_size.strip() == str(size)):
        return fd, size
    os.close(fd)
    return None


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
        try:
            until = time.monotonic() + float(seconds)
        except ValueError:
            return
        headers = [
            (name, value) for name in names.split() if (value := head.get(name.lower())) is not None
        ]
        self._entries[key] = Cached(until, headers, urls)
        self._entries.move_to_end(key)
        self.set_maxsize(self._maxsize)

    def look_up(self, key: str) -> Cached | None:
        self._requests += 1
        found = self._entries.get(key)
        if found is None:
            return None
        if time.monotonic() > found.until:
            del self._entries[key]
            return None
        self._entries.move_to_end(key)
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


class ReproxyManager:
    """The connections to the hosts of X-REPROXY-URL, for all services together."""

    generation = 0
    service: Service | None = None

    def __init__(self, server: Server) -> None:
        self.server = server
        self.queues: dict[str, OrderedDict[ProxyExchange, None]] = {}
        """Who waits for a connection, by node."""
        self.connecting: dict[str, BackendHTTP] = {}
        self.bored: dict[str, list[BackendHTTP]] = {}
        """The connections that have nothing to do, by node, the one used last at the end."""
        self.backends: dict[str, set[BackendHTTP]] = {}
        """All that are connected, by node."""
        self.most: int = 0
        """How many to each node; 0: no limit."""
        self.most_to: dict[str, int] = {}
        self._cleaning = False

    def request(self, exchange: ProxyExchange, url: Url) -> None:
        """Give the exchange a connection to where the URL is, now or later; or have it try the
        next one."""
        self.queues.setdefault(url.node, OrderedDict())[exchange] = None
        self._serve(url.node, (url.host, url.port))

    def forget(self, exchange: ProxyExchange) -> None:
        """The exchange needs none any more."""
        assert exchange.reproxying is not None
        node = exchange.reproxying.node
        queue = self.queues.get(node)
        if queue is not None:
            queue.pop(exchange, None)
            if not queue:
                del self.queues[node]

    def _next_client(self, node: str) -> ProxyExchange | None:
        queue = self.queues.get(node)
        if not queue:
            return None
        exchange = queue.popitem(last=False)[0]
        if not queue:
            del self.queues[node]
        return exchange

    def _serve(self, node: str, where: tuple[str, int]) -> None:
        """See that somebody comes for who waits."""
        if node not in self.queues or node in self.connecting:
            return
        now = time.monotonic()
        idle = self.bored.get(node, [])
        while idle:
            backend = idle.pop()
            if not idle:
                self.bored.pop(node, None)
            if backend.alive < now - KEPT_SECONDS or (
                backend.disconnect_at and now + 2 > backend.disconnect_at
            ):
                backend.close("too_close_disconnect")
                continue
            self.register_boredom(backend)
            return
        most = self.most_to.get(node) or self.most
        if node not in self.queues or most and len(self.backends.get(node, ())) >= most:
            return
        try:
            # As in the original, a host that isn't an address is looked up here and now, and an
            # IPv4 address is preferred.
            found = socket.getaddrinfo(*where, type=socket.SOCK_STREAM)
            found.sort(key=lambda info: info[0] != socket.AF_INET)
            opened = BackendHTTP.open(self, str(found[0][4][0]), where[1], CONNECT_SECONDS)
        except (OSError, ValueError, OverflowError):
            opened = None
        if opened is None:
            self._give_up(node)
        else:
            opened.where = (node, *where)
            self.connecting[node] = opened

    def _give_up(self, node: str) -> None:
        """The node is down: have all that wait for it try their next URL, unless it was only one
        connection more."""
        if self.backends.get(node):
            return
        waiting = self.queues.pop(node, None)
        for exchange in list(waiting or ()):
            if not exchange.client.closed:
                exchange.try_next_url()

    def register_boredom(self, backend: BackendHTTP) -> None:
        node = backend.where[0]
        if self.connecting.get(node) is backend:
            del self.connecting[node]
            self.backends.setdefault(node, set()).add(backend)
        exchange = self._next_client(node)
        if exchange is not None:
            exchange.use_reproxy_backend(backend)
            self._serve(node, backend.where[1:])
        elif self.server.stopping:
            backend.close("graceful_death")
        else:
            backend.alive = time.monotonic()
            self.bored.setdefault(node, []).append(backend)
            self._clean_later()

    def may_live(self, backend: BackendHTTP) -> bool:
        return True

    def note_bad_backend_connect(self, backend: BackendHTTP, seconds: float) -> None:
        node = backend.where[0]
        if self.connecting.get(node) is backend:
            del self.connecting[node]
        self._give_up(node)

    def note_backend_close(self, backend: BackendHTTP) -> None:
        node = backend.where[0]
        if self.connecting.get(node) is backend:
            del self.connecting[node]
        for kept in (self.backends, self.bored):
            there = kept.get(node)
            if there is not None and backend in there:
                there.remove(backend)
                if not there:
                    del kept[node]
        self._serve(node, backend.where[1:])

    def _clean_later(self) -> None:
        if not self._cleaning:
            self._cleaning = True
            self.server.loop.add_timer(1, self._clean)

    def _clean(self) -> None:
        """Close what was idle too long."""
        self._cleaning = False
        limit = time.monotonic() - KEPT_SECONDS
        for backends in list(self.bored.values()):
            for backend in list(backends):
                if backend.alive < limit:
                    backend.close("have_newer_bored")
        if self.bored:
            self._clean_later()

    def limit(self, node: str | None, most: int) -> None:
        """Carry out `SERVER max_reproxy_connections`."""
        if node:
            self.most_to[node] = most
        else:
            self.most = most

    def report(self) -> list[str]:
        """The answer to `REPROXY_STATE`."""
        lines = [f"connecting {node} 1" for node in self.connecting]
        lines += [f"bored {node} {len(backends)}" for node, backends in self.bored.items()]
        lines += [f"clients_queued {node} {len(queue)}" for node, queue in self.queues.items()]
        for node, connected in self.backends.items():
            lines.append(f"backends {node} {len(connected)}")
            lines += [f"... {backend.as_string()}" for backend in connected]
        lines += [f"SERVER max_reproxy_connections({n}) = {m}" for n, m in self.most_to.items()]
        return [*lines, f"SERVER max_reproxy_connections = {self.most}"]
