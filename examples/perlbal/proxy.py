"""The reverse proxy: sends a request to a backend, and the response back to the client."""

from __future__ import annotations

import os
import random
import re
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from examples.perlbal.clients import Client, Exchange
from examples.perlbal.files import PIECE
from examples.perlbal.heads import Head, Request, Response
from examples.perlbal.uploads import Body

if TYPE_CHECKING:
    from examples.perlbal.backends import BackendHTTP
    from examples.perlbal.services import Service

READ_AHEAD: Final = 32_768
"""The client isn't read from while more bytes of its body than this wait for the backend."""
DEADLOCK_SECONDS: Final = 5
"""How long a client with more to send may take nothing of the answer."""
_OTHER_BODIES: Final = ("x-reproxy-file", "x-reproxy-url", "x-reproxy-service")
_NO_BODY: Final = Body()
"""That of all requests without a body, which never write to it."""
_DEBUG_UPLOADS: Final = bool(os.environ.get("PERLBAL_DEBUG_BUFFERED_UPLOADS"))


Queue = OrderedDict["ProxyExchange", None]
"""The requests that wait for a backend, in the order in which they are served."""


class ProxyExchange(Exchange):
    backend: BackendHTTP | None = None
    backend_stalled = False
    """Whether the backend isn't read from because the client is too slow."""
    high_priority = False
    requested = False
    """Whether a backend was requested."""
    _queue: Queue | None = None
    """The queue in which it waits, or has waited, for a backend."""
    _dropping = True
    """Whether the rest of the body is discarded. This is so until `start` is called, which it isn't
    if a plugin answers."""
    _next_service: Service | None = None
    """The service that gets the request once its body has arrived."""
    _retries = 0
    _responded = False
    """Whether the client's socket has become writable after a part of the answer had to wait."""
    _body: Body = _NO_BODY
    """The part of the request's body that waits for a backend."""

    def __init__(self, client: Client, service: Service, request: Request) -> None:
        super().__init__(client, service, request)
        self.since = time.monotonic()

    # --- the request ------------------------------------------------------------------------------

    def start(self) -> None:
        client, service, request = self.client, self.service, self.request
        client.requests += 1
        if request.chunked and not service.buffer_uploads:
            return client.send_page(411, "A chunked body needs buffer_uploads")
        self._dropping = False
        if not client.body_left:
            if not service.reproxy_cache_maxsize or not service.reproxying.answer_from_cache(self):
                self.request_backend()
            return
        self._body = Body()
        self.send_continue()
        if request.chunked:
            request.drop("transfer-encoding")
            self._buffer_to_disk("chunked")
        elif not service.buffer_backend_connect:
            self.request_backend()
        elif service.buffer_uploads and 0 < service.buffer_upload_threshold_size <= request.length:
            self._buffer_to_disk("size")
        else:
            client.state = "buffering_request"

    def _buffer_to_disk(self, reason: str) -> None:
        service, client = self.service, self.client
        name = f"{service.name}-{service.listen or ''}-client-{client.fd}"
        number = random.randrange(0xFFFFFFFF)
        self._body.file = f"{service.buffer_uploads_path or ''}/{name}-{number}"
        if reason != "chunked":
            client.state = "buffering_upload"
            if _DEBUG_UPLOADS:
                self.request.set("X-PERLBAL-BUFFERED-UPLOAD-REASON", reason)

    def _reason_to_buffer(self) -> str | None:
        """Why the body should go to disk, judging by what has arrived; None if it shouldn't."""
        service = self.service
        rate = self._body.size / ((time.monotonic() - self.since) or 1)
        limit = service.buffer_upload_threshold_time
        if limit and self.client.body_left / rate > limit:
            return "time"
        return "rate" if rate < service.buffer_upload_threshold_rate else None

    def body(self, data: bytes) -> None:
        service, backend = self.service, self.backend
        if self._dropping:
            return
        if backend is not None:
            backend.write(data)
            return self._pace_client()
        self._keep(data)
        if self.requested:
            self._pace_client()
        elif self._body.file is not None or self._body.size < service.buffer_backend_connect:
            return
        elif service.buffer_uploads and (reason := self._reason_to_buffer()) is not None:
            self._buffer_to_disk(reason)
            self._keep(b"")
        else:
            self.request_backend()

    def _keep(self, data: bytes) -> None:
        try:
            self._body.write(data)
        except OSError as error:
            self.client.server.log(f"buffered upload {self._body.file}: {error}")
            self.drop_body()
            self.client.send_page(500)

    def body_done(self) -> None:
        # The next request has to wait. This also keeps an end of input from being noticed: as in
        # the original, a client may shut down its side after it has sent a body.
        self.client.watch_read(False)
        if self._next_service is not None:
            return self.hand_over(self._next_service)
        if self.request.chunked:
            self.request.set("Content-Length", str(self._body.size))
        if not self.requested:
            self.request_backend()

    def hand_over(self, service: Service) -> None:
        """Hand the request to another service, without its body, once that has arrived."""
        client, request = self.client, self.request
        self._next_service = service
        if client.body_left:
            return
        if client.inbox:
            self.overflow()
        if request.length or request.chunked:
            request.set("Content-Length", "0")
            request.length, request.chunked = 0, False
        client.hand_over(service, request)

    def drop_body(self) -> None:
        """Discard the body: what is stored, and what still arrives."""
        self._dropping = True
        self._body.purge()
        self._pace_client()

    def _pace_client(self) -> None:
        """Read more of the body from the client if there is room for it, otherwise pause."""
        client, backend = self.client, self.backend
        if not client.body_left:
            return
        if self._dropping:
            room = True
        elif backend is not None:
            room = not self.backend_stalled and backend.write_buf_size <= READ_AHEAD
        else:
            room = self._body.left < READ_AHEAD
        client.watch_read(room)

    def overflow(self) -> None:
        client = self.client
        had_body = self.request.length or self.request.chunked
        rest, client.inbox = client.inbox, b""
        # Old browsers send a CRLF after a body. Anything else is never passed on.
        if had_body and rest in (b"\r", b"\r\n"):
            client.inbox = rest.removeprefix(b"\r\n")
            return
        client.has_surplus = True
        client.watch_read(False)
        if not had_body and not self._dropping:
            self.release()
            self._dropping = True
            client.send_page(400, "Can't pipeline to HTTP/1.0")

    # --- the backend ------------------------------------------------------------------------------

    def request_backend(self) -> None:
        # The client may have left, or been refused, if this was delayed.
        if self.client.exchange is self and not self._dropping:
            self.requested = True
            self.client.state = "wait_backend"
            self.service.balancer.request_backend_connection(self)

    def wait_in(self, queue: Queue) -> None:
        """Wait in a queue until there is a backend or the client leaves."""
        self._queue = queue
        queue[self] = None

    def head_for_backend(self) -> bytes:
        """The request for the backend, with what is in memory of its body."""
        service, request = self.service, self.request
        # Every request comes here, so this avoids the cost of calling Head.set.
        names, values = request.names, request.values.copy()
        names.setdefault("connection", "Connection")
        values["connection"] = "keep-alive" if service.persist_backend else "close"
        # A backend that obeys Upgrade although Connection doesn't name it would answer 101. A
        # client that merely offers it, as many do to all servers, would get no answer.
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
            head = Head()
            head.names, head.values = names, values
            for plugin in service.plugins:
                plugin.backend_client_assigned(self, head)
            service.munge_headers(head)
        data, body = request.to_bytes(values), self._body
        return data + body.read(body.left) if body.left and body.file is None else data

    def backend_ready(self, backend: BackendHTTP) -> None:
        """Called when the head has been written to the backend."""
        self.client.state = backend.state = "wait_res"
        if self._body.left:
            backend.watch_write(True)
        else:
            self._pace_client()

    def backend_drained(self, backend: BackendHTTP) -> None:
        """Called when everything written to the backend has been sent."""
        client, body = self.client, self._body
        if body.left:
            try:
                data = body.read(PIECE)
            except OSError as error:
                client.server.log(f"buffered upload {body.file}: {error}")
                data = b""
            if not data:
                return client.close("buffered upload is gone")
            client.last_active = time.monotonic()
            backend.write(data)
            if body.left or backend.closed:
                return
        body.purge()
        if not backend.write_buf_size:
            backend.watch_write(False)
            self._pace_client()

    def too_far_behind_backend(self) -> bool:
        """Whether so much waits for the client that the backend should pause."""
        return self.client.write_buf_size > self.service.buffer_size

    def stall_backend(self, backend: BackendHTTP) -> None:
        """Pause the backend, because the client is slower. The body has to wait as well: if the
        backend has closed after its answer, more of the body would cause a reset, and the part of
        the answer that is still in transit would be lost."""
        self.backend_stalled = True
        backend.watch_read(False)
        self._pace_client()
        since = self.client.last_active

        def check() -> None:
            # A client that reads only after it has sent everything would wait forever.
            if self.client.last_active == since:
                self.drop_body()

        if self.client.body_left:
            self.later(DEADLOCK_SECONDS, check)

    def client_drained(self) -> None:
        self._responded = True
        if self.backend_stalled and self.backend is not None and not self.too_far_behind_backend():
            self.backend_stalled = False
            self.backend.watch_read(True)
            self._pace_client()

    def backend_garbage(self, backend: BackendHTTP, what: str) -> None:
        """Called when what the backend has sent isn't a response."""
        self.client.server.log(f"backend {backend.ipport}: {what}")
        self.close_backend(backend, "garbage")
        self.no_answer()

    def no_answer(self) -> None:
        """Called when the backend gave no answer that can be passed on, and has been closed."""
        self.drop_body()
        self.client.send_page(502)

    def backend_ended(self, backend: BackendHTTP) -> None:
        if backend.inbox:
            self.backend_garbage(backend, "it closed in the midst of a head")
        elif backend.head is not None and backend.left is None:
            self.close_backend(backend, "backend_disconnect")
            self.drop_body()
            self.client.send_last(b"")
        else:
            backend.close("backend_disconnect")

    def backend_lost(self, backend: BackendHTTP) -> None:
        """Called when the backend is closed before the end of its answer. There is no retry."""
        self.backend = None
        self.client.close("backend_error")

    def close_backend(self, backend: BackendHTTP, reason: str) -> None:
        """Close a backend that this request no longer needs."""
        self.backend = None
        backend.exchange = None
        backend.close(reason)

    # --- the response -----------------------------------------------------------------------------

    def response_received(self, backend: BackendHTTP, head: Response, data: bytes) -> None:
        """Called with the head of a response and the part of its body that came with it."""
        early = self.client.body_left or self._body.left
        if early:
            # The backend may still want the rest of the body, for instance if it sends back what it
            # reads. But whether it reads it to the end isn't known.
            backend.kept_alive = False
        if self.service.enable_reproxy and any(map(head.values.get, _OTHER_BODIES)):
            self.drop_body()
            self.backend = None
            backend.next_request()
            self.service.reproxying.answer(self, head)
        elif head.code != 500 or not self._retry(backend):
            self._dropping |= not early
            self.pass_on(backend, head, data)

    def pass_on(self, backend: BackendHTTP, head: Response, data: bytes) -> None:
        """Begin to answer with this head and this part of the body."""
        self.response_body(backend, self.client.begin_answer(head, "xfer_res") + data)

    def response_body(self, backend: BackendHTTP, data: bytes) -> None:
        """Called with a part of the response, as it is to be sent to the client."""
        client = self.client
        client.last_active = time.monotonic()
        if backend.left is None or backend.left > 0:
            client.write(data)
            return
        # Detach the backend first, so that nothing that happens to the client affects it.
        self.backend = None
        self.drop_body()
        client.send_last(data)
        backend.next_request()

    def _retry(self, backend: BackendHTTP) -> bool:
        """Ask another backend, if the service does so. Returns whether it did."""
        service, request = self.service, self.request
        if (
            not service.enable_error_retries
            or request.method not in ("GET", "HEAD")
            or self._body is not _NO_BODY  # It isn't kept.
            or self._retries >= len(service.error_retry_schedule)
        ):
            return False
        self.later(service.error_retry_schedule[self._retries], self.request_backend)
        self._retries += 1
        self.close_backend(backend, "500")
        self.client.state = "draining_res"
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
        # For an answer that is complete, or of which a part had to wait for the client.
        text += "; responded" if self._responded or self.is_answered() else ""
        request = self.request
        if not request.chunked and (request.method == "HEAD" or "content-length" in request.values):
            text += f"; waiting_for={self.client.body_left}"
        return text + ("; reproxying" if self.client.state == "backend_req_sent" else "")

    def is_answered(self) -> bool:
        """Whether the answer is complete."""
        return self._dropping and self.backend is None

    def release(self) -> None:
        if self.backend is not None:
            self.close_backend(self.backend, "proxied_from_client_close")
        elif self._queue is not None:
            self._queue.pop(self, None)
        self._body.purge()
