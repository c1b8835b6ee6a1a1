"""The reverse proxy: a request on its way to a backend, and the response on its way back."""

from __future__ import annotations

import os
import re
import time
from typing import TYPE_CHECKING, Final

from examples.perlbal.clients import Client, Exchange
from examples.perlbal.heads import Request, Response, http_date
from examples.perlbal.reproxy import Url, expected_size, file_to_send, parse_urls
from examples.perlbal.uploads import BufferedUpload
from examples.perlbal.webserver import code_of

if TYPE_CHECKING:
    from examples.perlbal.backends import BackendHTTP
    from examples.perlbal.services import Service

READ_AHEAD: Final = 32_768
"""How many bytes of a body may wait for a backend before no more is read."""
DEADLOCK_SECONDS: Final = 5
"""How long a client that has more to send may take nothing."""
PIECE: Final = 131_072
"""Bytes of an upload on disk that are sent at a time."""
_REPROXY_HEADERS: Final = (
    "x-reproxy-file",
    "x-reproxy-url",
    "x-reproxy-expected-size",
    "x-reproxy-cache-for",
)
_DEBUG_UPLOADS: Final = bool(os.environ.get("PERLBAL_DEBUG_BUFFERED_UPLOADS"))


class ProxyExchange(Exchange):
    """A request to a reverse proxy."""

    _responded = False
    """Whether there was room for more of the answer, after some of it had to wait."""

    def __init__(self, client: Client, service: Service, request: Request) -> None:
        super().__init__(client, service, request)
        self.since = time.monotonic()
        self.backend: BackendHTTP | None = None
        self.backend_stalled = False
        """Whether the backend isn't read from, as the client is too slow."""
        self.high_priority = False
        self.requested = False
        """Whether a backend was asked for."""
        self._dropping = False
        """Whether what still comes of the body is thrown away."""
        self._body = bytearray()
        """What has come of the request's body and has nowhere to go yet."""
        self._upload: BufferedUpload | None = None
        self._retries = 0
        self._primary: Response | None = None
        """The response that asked to have another URL's body in the place of its own."""
        self._urls: list[Url] = []
        """The URLs that may still be tried, the present one first."""
        self._expected_size: int | None = None
        self.reproxying: Url | None = None
        """The URL that a backend is being asked for."""

    # --- the request ------------------------------------------------------------------------------

    def start(self) -> None:
        client, service, request = self.client, self.service, self.request
        client.requests += 1
        if not client.body_left:
            if service.reproxy_cache is not None and self._from_cache():
                return
            return self.request_backend()
        if request.chunked and not service.buffer_uploads:
            return client.send_page(411, "A chunked body needs buffer_uploads")
        self.send_continue()
        if request.chunked:
            request.drop("transfer-encoding")
            self._buffer_to_disk("chunked")
        elif not service.buffer_backend_connect:
            self.request_backend()
        elif (
            service.buffer_uploads
            and service.buffer_upload_threshold_size
            and request.length >= service.buffer_upload_threshold_size
        ):
            self._buffer_to_disk("size")
        else:
            client.state = "buffering_request"

    def _buffer_to_disk(self, reason: str) -> None:
        service, client = self.service, self.client
        name = f"{service.name}-{service.listen or ''}-client-{client.fd}"
        self._upload = BufferedUpload(service.buffer_uploads_path, name)
        if reason != "chunked":
            client.state = "buffering_upload"
            if _DEBUG_UPLOADS:
                self.request.set("X-PERLBAL-BUFFERED-UPLOAD-REASON", reason)

    def _reason_to_buffer(self) -> str | None:
        """Why the body should go to disk, by what has come of it so far; None if it shouldn't."""
        service = self.service
        rate = len(self._body) / ((time.monotonic() - self.since) or 1)
        limit = service.buffer_upload_threshold_time
        if limit and self.client.body_left / rate > limit:
            return "time"
        return "rate" if rate < service.buffer_upload_threshold_rate else None

    def body(self, data: bytes) -> None:
        client, service = self.client, self.service
        if self._dropping:
            return
        if self._upload is not None and not self.requested:
            return self._to_disk(data)
        backend = self.backend
        if backend is not None:
            backend.write(data)
            if backend.write_buf_size > READ_AHEAD:
                client.watch_read(False)
            return
        self._body += data
        if self.requested:
            if len(self._body) >= READ_AHEAD:
                client.watch_read(False)
            return
        if client.body_left and len(self._body) < service.buffer_backend_connect:
            return
        if service.buffer_uploads and (reason := self._reason_to_buffer()) is not None:
            self._buffer_to_disk(reason)
            gathered, self._body = self._body, bytearray()
            return self._to_disk(gathered)
        self.request_backend()

    def _to_disk(self, data: bytes | bytearray) -> None:
        assert self._upload is not None
        try:
            self._upload.write(data)
        except OSError as error:
            self.client.server.log(f"buffered upload {self._upload.name}: {error}")
            self._upload.purge()
            self._drop_body()
            self.client.send_page(500)

    def body_done(self) -> None:
        # What comes behind it has its turn later. Nor is it asked whether the client is still
        # there: as in the original, who has sent a body may shut his side behind it.
        self.client.watch_read(False)
        if self._upload is None or self.requested or self._dropping:
            return
        if self.request.chunked:
            self.request.set("Content-Length", str(self._upload.size))
        self.request_backend()

    def _drop_body(self) -> None:
        """From now on what comes of the body is read and thrown away."""
        self._dropping = True
        if self.client.body_left:
            self.client.watch_read(True)

    def overflow(self, data: bytes) -> None:
        client = self.client
        had_body = self.request.length or self.request.chunked
        # Old browsers send a CRLF behind a body. Anything else is never passed on.
        if had_body and data in (b"\r", b"\r\n"):
            client.inbox = data.removeprefix(b"\r\n")
            return
        client.overfed = True
        client.watch_read(False)
        if not had_body and not self._dropping:
            self.release()
            self._dropping = True
            client.send_page(400, "Can't pipeline to HTTP/1.0")

    # --- the backend ------------------------------------------------------------------------------

    def request_backend(self) -> None:
        self.requested = True
        self.client.state = "wait_backend"
        self.service.balancer.request_backend_connection(self)

    def head_for_backend(self) -> bytes:
        """The request as the service's backends are to have it, with what has come of its body."""
        service, request = self.service, self.request
        values = request.values.copy()
        names = request.names
        names.setdefault("connection", "Connection")
        values["connection"] = "keep-alive" if service.persist_backend else "close"
        # A backend that heeds it although Connection doesn't name it would answer 101, and a client
        # that only offers it, as many do to all servers, would have no answer.
        values.pop("upgrade", None)
        if service.enable_reproxy:
            names.setdefault("x-proxy-capabilities", "X-Proxy-Capabilities")
            values["x-proxy-capabilities"] = "reproxy-file"
        names.setdefault("x-forwarded-for", "X-Forwarded-For")
        ip = self.client.peer_ip_string() or ""
        if not service.trusts(ip):
            values["x-forwarded-for"] = ip
            values.pop("x-host", None)
            values.pop("x-forwarded-host", None)
        elif not service.blind_proxy:
            before = re.sub(r",[ \t]*", ", ", values.get("x-forwarded-for", "")).rstrip(", ")
            values["x-forwarded-for"] = f"{before}, {ip}" if before else ip
        if service.plugins or service.removed_headers or service.inserted_headers:
            changed = Response(0)
            changed.names, changed.values = names, values
            for plugin in service.plugins:
                plugin.backend_client_assigned(self, changed)
            service.munge_headers(changed)
        head = request.to_bytes(values)
        body, self._body = self._body, bytearray()
        return head + body

    def backend_ready(self, backend: BackendHTTP) -> None:
        """The head is on its way."""
        if self.reproxying is not None:
            self.client.state = "backend_req_sent"
            return
        self.client.state = backend.state = "wait_res"
        if self._upload is not None:
            backend.watch_write(True)
        elif self.client.body_left:
            self.client.watch_read(True)

    def backend_drained(self, backend: BackendHTTP) -> None:
        """The backend has taken all that was written to it."""
        upload = self._upload
        if upload is not None:
            if upload.sent < upload.size:
                try:
                    data = upload.read(PIECE)
                except OSError as error:
                    self.client.server.log(f"buffered upload {upload.name}: {error}")
                    data = b""
                if not data:
                    return self.client.close("buffered upload is gone")
                self.client.alive = time.monotonic()
                backend.write(data)
                if upload.sent < upload.size or backend.closed:
                    return
            upload.purge()
            if not backend.write_buf_size:
                backend.watch_write(False)
        elif self.client.body_left and not self.backend_stalled:
            self.client.watch_read(True)

    def too_far_behind_backend(self) -> bool:
        """Whether so much waits for the client that no more should come."""
        service = self.service
        most = service.buffer_size if self.reproxying is None else service.buffer_size_reproxy_url
        return self.client.write_buf_size > most

    def stall_backend(self, backend: BackendHTTP) -> None:
        """The client takes less than the backend gives: that has to wait. So has what is still to
        come of the body: if the backend has closed behind its answer, it would be answered with a
        reset, and what of the answer is on its way would be lost."""
        self.backend_stalled = True
        backend.watch_read(False)
        client, since = self.client, self.client.alive
        if self._dropping or not client.body_left:
            return
        client.watch_read(False)

        def look() -> None:
            # A client that doesn't read before all is sent would wait for ever.
            if self.backend is backend and self.backend_stalled and client.alive == since:
                self._drop_body()

        client.loop.add_timer(DEADLOCK_SECONDS, look)

    def client_drained(self) -> None:
        self._responded = True
        if self.backend_stalled and self.backend is not None and not self.too_far_behind_backend():
            self.backend_stalled = False
            self.backend.watch_read(True)
            if self.client.body_left and not self.backend.write_buf_size:
                self.client.watch_read(True)

    def backend_garbage(self, backend: BackendHTTP, what: str) -> None:
        """What the backend says is no response."""
        self.client.server.log(f"backend {backend.ipport}: {what}")
        self._let_go(backend, "garbage")
        if self.reproxying is not None:
            self.try_next_url()
        else:
            self._drop_body()
            self.client.send_page(502)

    def backend_ended(self, backend: BackendHTTP) -> None:
        """The backend has closed."""
        if backend.head is None:
            if backend.inbox:
                self.backend_garbage(backend, "it closed in the midst of a head")
            else:
                backend.close("remote_closure")
        elif backend.left is None:
            self._let_go(backend, "backend_disconnect")
            self._drop_body()
            self.client.send_last(b"")
        else:
            backend.close("backend_disconnect")

    def backend_lost(self, backend: BackendHTTP) -> None:
        """The backend is closed, and has not answered, or not all. It is not asked again."""
        self.backend = None
        if self.reproxying is not None and backend.head is None:
            if backend.use_count:
                self._ask_for_url()  # It was kept too long: that says nothing of its host.
            else:
                self.try_next_url()
        else:
            self.client.close("backend_error")

    def _let_go(self, backend: BackendHTTP, reason: str) -> None:
        """Close a backend that this request needs no more."""
        self.backend = None
        backend.exchange = None
        backend.close(reason)

    # --- the response -----------------------------------------------------------------------------

    def response_received(self, backend: BackendHTTP, head: Response, data: bytes) -> None:
        """The head of a response is here, and `data` of its body."""
        client, service = self.client, self.service
        values = head.values
        upload = self._upload
        early = client.body_left or upload is not None and upload.sent < upload.size
        if early:
            # It may want the rest of the body all the same, as one that sends back what it reads;
            # but whether it reads that to the end isn't known.
            backend.kept_alive = False
        if self.reproxying is not None:
            if not self._as_expected(head):
                self._let_go(backend, "non_200_reproxy")
                return self.try_next_url()
            head = self._reproxied_head(head)
        elif service.enable_reproxy and (
            values.get("x-reproxy-file")
            or values.get("x-reproxy-url")
            or values.get("x-reproxy-service")
        ):
            return self._reproxy(backend, head)
        elif head.code == 500 and self._retry(backend):
            return
        self._dropping = not early
        client.state = "xfer_res"
        client.setup_keepalive(head)
        self.response_body(backend, head.to_bytes() + data)

    def response_body(self, backend: BackendHTTP, data: bytes) -> None:
        """Some of the response, in the form in which the client is to have it."""
        client = self.client
        client.alive = time.monotonic()
        if backend.left is None or backend.left > 0:
            client.write(data)
            return
        # Off the client first: whatever becomes of that is nothing to the backend any more.
        self.backend = None
        self._drop_body()
        client.send_last(data)
        backend.next_request()

    def _retry(self, backend: BackendHTTP) -> bool:
        """Ask another backend if that is wanted."""
        service = self.service
        request = self.request
        if not service.enable_error_retries or request.method not in ("GET", "HEAD"):
            return False
        if request.length or request.chunked:
            return False  # The body is gone.
        if self._retries >= len(service.error_retry_schedule):
            return False
        delay = service.error_retry_schedule[self._retries]
        self._retries += 1
        self._let_go(backend, "500")
        self.client.state = "draining_res"
        self.requested = False
        if delay:
            self.client.loop.add_timer(delay, self._request_again)
        else:
            self._request_again()
        return True

    def _request_again(self) -> None:
        if self.client.exchange is self:
            self.request_backend()

    # --- reproxying -------------------------------------------------------------------------------

    def _reproxy(self, backend: BackendHTTP, head: Response) -> None:
        """Do what the backend's headers ask for."""
        values, client = head.values, self.client
        self._drop_body()
        self.backend = None
        backend.next_request()
        if path := values.get("x-reproxy-file"):
            self._reproxy_file(path, head)
        elif urls := values.get("x-reproxy-url"):
            cache_for = values.get("x-reproxy-cache-for")
            if cache_for and self.service.reproxy_cache is not None:
                self.service.reproxy_cache.add(self._cache_key(), cache_for, urls, head)
            self._start_reproxy(urls, head)
        elif (service := client.server.services.get(values["x-reproxy-service"])) is not None:
            self.release()
            self._forget_body()
            client.hand_on(service, self.request)
        else:
            client.send_page(404, "Vhost twiddling not configured for requested pair.")

    def _forget_body(self) -> None:
        """Make a request without a body of one whose body is used up."""
        if self.request.length or self.request.chunked:
            self.request.set("Content-Length", "0")
            self.request.length = 0
            self.request.chunked = False

    def _reproxy_file(self, path: str, head: Response) -> None:
        client = self.client
        client.state = "wait_stat"
        try:
            fd, size = file_to_send(path.encode("latin-1"), expected_size(head))
        except (OSError, ValueError) as error:
            return client.send_page(code_of(error))
        status, start, end = self.request.range(size)
        if status == 416:
            head = Response(416)
            head.set("Content-Range", f"bytes */{size}")
        else:
            head.set("Accept-Ranges", "bytes")
            if head.code in (204, 304):
                head.set_code(200)  # It has a body now.
            head.set("Content-Length", str(end - start))
            if status == 206:
                head.set("Content-Range", f"bytes {start}-{end - 1}/{size}")
                head.set_code(206)
            head.drop("x-reproxy-file")
            head.drop("transfer-encoding")  # Of the body that nobody gets.
        if status == 416 or self.request.method == "HEAD":
            os.close(fd)
            client.send_answer(head)
        else:
            client.send_file(head, (fd, start, end))

    def _start_reproxy(self, urls: str, primary: Response) -> None:
        """Have the first of these URLs that gives what is expected."""
        self._primary = primary
        self._urls = parse_urls(urls)
        self._expected_size = expected_size(primary)
        self._ask_for_url()

    def _ask_for_url(self) -> None:
        if not self._urls:
            self.reproxying = None
            return self.client.send_page(503)
        self.client.state = "wait_backend"
        self.reproxying = self._urls[0]
        self.client.server.reproxy_manager.request(self, self.reproxying)

    def try_next_url(self) -> None:
        """The present URL is not to be had."""
        del self._urls[0]
        self._ask_for_url()

    def use_reproxy_backend(self, backend: BackendHTTP) -> None:
        """A backend is there that can be asked for the present URL."""
        assert self.reproxying is not None
        request = self.request
        method = "HEAD" if request.method == "HEAD" else "GET"
        lines = [f"{method} {self.reproxying.path} HTTP/1.0", "Connection: keep-alive"]
        for name in ("Range", "Host"):
            value = request.get(name.lower())
            if value:
                lines.append(f"{name}: {value}")
        backend.begin(self, "\r\n".join([*lines, "", ""]).encode("latin-1"))

    def _as_expected(self, head: Response) -> bool:
        if head.code != 416 and not 200 <= head.code <= 299:
            return False
        return self._expected_size is None or self._expected_size == head.length

    def _reproxied_head(self, head: Response) -> Response:
        """The first backend's head, made to fit the URL's body."""
        assert self._primary is not None
        primary = self._primary
        for key in _REPROXY_HEADERS:
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
        if primary.code in (204, 304):
            primary.set_code(200)
        return primary

    def _cache_key(self) -> str:
        return f"{self.request.get('host') or ''}|{self.request.uri}"

    def _from_cache(self) -> bool:
        """Answer without asking a backend, if it is known where the body is."""
        cache = self.service.reproxy_cache
        assert cache is not None
        found = cache.look_up(self._cache_key())
        if found is None:
            return False
        self._dropping = True
        head = Response(200)
        head.set("Date", http_date(int(time.time())))
        for name, value in found.headers:
            head.set(name, value)
        known = self.request.get("if-modified-since")
        if known is not None and known.partition("; length=")[0] == head.get("last-modified"):
            head = Response(304)
            head.set("Content-Length", "0")
            self.client.send_answer(head)
        else:
            self._start_reproxy(found.urls, head)
        return True

    # --- ending -----------------------------------------------------------------------------------

    def as_string(self) -> str:
        text = ""
        if self.backend is not None:
            text += f"; backend={self.backend.ipport}"
        elif self.client.write_buf_size:
            text += f"; write_buf_size={self.client.write_buf_size}"
        text += "; highpri" if self.high_priority else ""
        text += "; lowpri" if self.request.low_priority else ""
        # Said of an answer that is whole, or of which some had to wait for the client.
        whole = self._dropping and self.backend is None and self.reproxying is None
        text += "; responded" if self._responded or whole else ""
        request = self.request
        if not request.chunked and (request.method == "HEAD" or "content-length" in request.values):
            text += f"; waiting_for={self.client.body_left}"
        return text + ("; reproxying" if self.client.state == "backend_req_sent" else "")

    def release(self) -> None:
        if self.backend is not None:
            self._let_go(self.backend, "proxied_from_client_close")
        elif self.reproxying is not None:
            self.client.server.reproxy_manager.forget(self, self.reproxying)
        elif self.requested:
            self.service.balancer.forget(self)
        if self._upload is not None:
            self._upload.purge()
