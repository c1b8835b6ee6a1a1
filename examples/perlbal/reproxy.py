"""Reproxying: a backend names a file, URLs or a service to be sent instead of its answer's body."""

from __future__ import annotations

import os
import re
import stat
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Final, NamedTuple

from examples.perlbal.files import open_file, status_for
from examples.perlbal.heads import BODILESS, Request, Response, http_date
from examples.perlbal.pools import Node
from examples.perlbal.proxy import ProxyExchange

if TYPE_CHECKING:
    from examples.perlbal.backends import BackendHTTP
    from examples.perlbal.services import Service

MAX_URLS: Final = 50
_HEADERS: Final = ("file", "url", "expected-size", "cache-for")
_URL: Final = re.compile(
    r"http://([^/:\[\]]+|\[[\da-f:.]+\])(?::(\d{1,5}))?(/.*)?", re.IGNORECASE | re.ASCII
)
_SECONDS: Final = re.compile(r"\s*(\d{1,18}(?:\.\d*)?)", re.ASCII)


class Url(NamedTuple):
    """Where to get a body."""

    node: Node
    path: str


def parse_urls(text: str) -> list[Url]:
    """The valid URLs of an X-REPROXY-URL header."""
    found = (_URL.fullmatch(each) for each in re.split("[ \t]+", text)[:MAX_URLS])
    nodes = ((Node(each[1].strip("[]"), int(each[2] or 80)), each[3]) for each in found if each)
    return [Url(node, path or "/") for node, path in nodes if 0 < node.port < 65536]


def expected_size(head: Response) -> int | None:
    """The value of X-REPROXY-EXPECTED-SIZE; None if there is none, -1 if it isn't a number."""
    text = (head.get("x-reproxy-expected-size") or "0").strip()
    if text.isascii() and text.isdigit():
        return int(text[:20]) or None
    return -1


def _open(path: bytes, expected: int | None) -> tuple[int, int]:
    """The descriptor and the size of a regular file. stat(2), open(2), fstat(2); raises `OSError`
    or `ValueError`, also if it is empty or doesn't have the expected size."""
    if stat.S_ISREG(os.stat(path).st_mode):  # Opening a device may have an effect.
        fd, info = open_file(path)
        if info.st_size and expected in (None, info.st_size):
            return fd, info.st_size
        os.close(fd)
    raise FileNotFoundError


def send_file(exchange: ProxyExchange, path: bytes, head: Response) -> None:
    """Answer with this head, and with a file instead of the body that came with it."""
    client, request = exchange.client, exchange.request
    client.state = "wait_stat"
    try:
        fd, size = _open(path, expected_size(head))
    except (OSError, ValueError) as error:
        return client.send_page(status_for(error))
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
        head.drop("transfer-encoding")  # It described the body that is replaced.
    client.send_file(head, (fd, start, start if request.method == "HEAD" else end))


class UrlExchange(ProxyExchange):
    """A request that is answered with the body of the first URL whose response is as expected. It
    is never started, so the rest of the request's body is discarded."""

    def __init__(self, before: ProxyExchange, urls: str, primary: Response) -> None:
        """`primary`: the head of the response that named the URLs."""
        super().__init__(before.client, before.service, before.request)
        self.client.exchange = self
        self.high_priority = before.high_priority
        self._primary = primary
        self.urls = parse_urls(urls)
        """The URLs that are left to try, the current one first."""
        self._expected_size = expected_size(primary)

    def ask(self) -> None:
        if self.urls:
            self.client.state = "wait_backend"
            host = self.client.server.reproxy_hosts[self.urls[0].node]
            self.wait_in(host.queue)
            host.serve()
        else:
            self.client.send_page(503)

    def no_answer(self) -> None:
        del self.urls[0]
        self.ask()

    def head_for_backend(self) -> bytes:
        request = self.request
        method = "HEAD" if request.method == "HEAD" else "GET"
        lines = [f"{method} {self.urls[0].path} HTTP/1.0", "Connection: keep-alive"]
        for name in ("Range", "Host"):
            if value := request.get(name.lower()):
                lines.append(f"{name}: {value}")
        return "\r\n".join([*lines, "", ""]).encode("latin-1")

    def backend_ready(self, backend: BackendHTTP) -> None:
        self.client.state = "backend_req_sent"

    def backend_lost(self, backend: BackendHTTP) -> None:
        if backend.head is not None:
            return super().backend_lost(backend)
        self.backend = None
        if backend.use_count:
            self.ask()  # A persistent connection has ended; the host may still be up.
        else:
            self.no_answer()

    def response_received(self, backend: BackendHTTP, head: Response, data: bytes) -> None:
        if self._is_expected(head):
            self.pass_on(backend, self._primary, data)
        else:
            self.close_backend(backend, "non_200_reproxy")
            self.no_answer()

    def _is_expected(self, head: Response) -> bool:
        """Whether this response is as expected. If so, this adapts the first backend's head to its
        body."""
        if head.code != 416 and not 200 <= head.code <= 299:
            return False
        if self._expected_size not in (None, head.length):
            return False
        primary = self._primary
        for key in _HEADERS:
            primary.drop(f"x-reproxy-{key}")
        lengths = head.values if head.code != 204 else {"content-length": "0"}
        for name in ("Content-Length", "Transfer-Encoding"):
            if (value := lengths.get(name.lower())) is not None:
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
        return True

    def too_far_behind_backend(self) -> bool:
        return self.client.write_buf_size > self.service.buffer_size_reproxy_url

    def is_answered(self) -> bool:
        return not self.urls


class Cached(NamedTuple):
    """A cached response with X-REPROXY-URL."""

    until: float
    headers: list[tuple[str, str]]
    urls: str


def _cache_key(request: Request) -> str:
    return f"{request.get('host') or ''}|{request.uri}"


class Reproxying:
    """Obeys the X-REPROXY headers of a service's backends, and caches them by host and path. The
    least recently used entry is evicted first."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._cache: OrderedDict[str, Cached] = OrderedDict()
        self._hits = 0
        self._requests = 0

    def answer(self, exchange: ProxyExchange, head: Response) -> None:
        """Obey the X-REPROXY headers in the head of a backend's response."""
        values, client = head.values, exchange.client
        if path := values.get("x-reproxy-file"):
            send_file(exchange, path.encode("latin-1"), head)
        elif urls := values.get("x-reproxy-url"):
            cache_for = values.get("x-reproxy-cache-for")
            if cache_for and self._service.reproxy_cache_maxsize:
                self._keep(_cache_key(exchange.request), cache_for, urls, head)
            UrlExchange(exchange, urls, head).ask()
        elif (service := client.server.services.get(values["x-reproxy-service"])) is not None:
            exchange.hand_over(service)
        else:
            client.send_page(404, "Vhost twiddling not configured for requested pair.")

    def _keep(self, key: str, cache_for: str, urls: str, head: Response) -> None:
        """Cache an answer as `cache_for` says, which is "seconds; Header Header"."""
        seconds, _, names = cache_for.partition(";")
        found = _SECONDS.match(seconds)
        if found is None:
            return
        headers = [
            (name, value) for name in names.split() if (value := head.get(name.lower())) is not None
        ]
        self._cache[key] = Cached(time.monotonic() + float(found[1]), headers, urls)
        self._cache.move_to_end(key)
        self.trim_cache(self._service.reproxy_cache_maxsize)

    def trim_cache(self, most: int) -> None:
        while len(self._cache) > most:
            self._cache.popitem(last=False)

    def answer_from_cache(self, exchange: ProxyExchange) -> bool:
        """Answer without asking a backend, if the URLs are cached. Returns whether they were."""
        request = exchange.request
        key = _cache_key(request)
        self._requests += 1
        found = self._cache.get(key)
        if found is None or found.until < time.monotonic():
            return False
        self._hits += 1
        self._cache.move_to_end(key)
        exchange.drop_body()
        head = Response(200)
        head.set("Date", http_date(int(time.time())))
        for name, value in found.headers:
            head.set(name, value)
        known = request.get("if-modified-since")
        if known is not None and known.partition("; length=")[0] == head.get("last-modified"):
            head = Response(304)
            head.set("Content-Length", "0")
            exchange.client.send_answer(head)
        else:
            UrlExchange(exchange, found.urls, head).ask()
        return True

    def report(self) -> list[str]:
        most = self._service.reproxy_cache_maxsize
        used = len(self._cache) / most * 100
        rate = self._hits / self._requests * 100 if self._requests else 0
        return [
            f"    cache size: {len(self._cache)}/{most} ({used:.2f}%)",
            f"    cache hits: {self._hits}",
            f"cache hit rate: {rate:.2f}%",
        ]
