"""Connections from HTTP clients, for every role except management.

A connection reads request heads. Each request gets an `Exchange` of the class for the service's
role, which receives the body and produces the answer. Between requests there is none, so that an
idle client costs little.
"""

from __future__ import annotations

import math
import os
import socket
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from danga_raw import Socket, Timer
from examples.perlbal.files import FileSender, Part, close_file
from examples.perlbal.heads import BODILESS, SERVER, Refused, Request, Response, take_head, unwire
from examples.perlbal.uploads import ChunkDecoder

if TYPE_CHECKING:
    from examples.perlbal.server import Server
    from examples.perlbal.services import Service

READ_SIZE: Final = 65_536
SMALL_FILE: Final = 65_536
"""A file up to this size is read and sent together with the head."""
LINGER_SECONDS: Final = 30.0
NEXT_REQUEST_SECONDS: Final = 0.25
"""How long a persistent connection stays open after its last answer during a shutdown. If a client
sends its next request at once, that takes one round trip."""
MAX_SERVICES: Final = 10
UNKNOWN: Final = 1 << 62
"""The length of a chunked body."""

CHECKS_PER_SECOND: Final = 10
"""How often to look for idle clients, at most."""
CLIENTS_PER_SECOND: Final = 20_000
"""About how many clients to look at per second, at most."""

_CLASS_NAMES: Final = {"reverse_proxy": "ClientProxy", "web_server": "ClientHTTP"}


class Exchange:
    """A request and its handling. There is a subclass for each role."""

    takes_body = True
    """Whether it can receive the body."""

    def __init__(self, client: Client, service: Service, request: Request) -> None:
        self.client = client
        self.service = service
        self.request = request

    def start(self) -> None:
        """Called when the head has arrived and no plugin has answered the request."""
        self.client.send_page(500, f"Can't map to service type {self.service.role}")

    def body(self, data: bytes) -> None:
        """Called with a part of the request's body. This discards it."""

    def body_done(self) -> None:
        """Called when the request's body is complete."""

    def overflow(self) -> None:
        """Called when the client has sent more than this request takes, perhaps its next request.
        This makes it wait."""
        self.client.watch_read(False)

    def end_of_input(self) -> None:
        """Called when the client has shut down its side, or has closed."""
        self.client.close("user_disconnected")

    def send_continue(self) -> None:
        """Send 100 Continue, if the client expects it."""
        client, request = self.client, self.request
        if client.body_left and "100-continue" in (request.get("expect") or "").lower():
            request.drop("expect")
            if request.chunked or request.version != "1.0":
                client.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def later(self, seconds: float, step: Callable[[], None]) -> None:
        """Call `step` after this delay, if this is still the client's current request. As in the
        client's handlers, an exception closes the client."""

        def take() -> None:
            if self.client.exchange is self:
                try:
                    step()
                except BaseException:
                    self.client.close("exception")
                    raise

        self.client.loop.add_timer(seconds, take)

    def client_drained(self) -> None:
        """Called after a write when the client's socket has become writable."""

    def release(self) -> None:
        """Release everything it holds. May be called twice."""

    def as_string(self) -> str:
        """Its part of the client's line in SOCKS."""
        return ""


class Client(Socket):
    state = "reading_headers"
    inbox = b""
    """Data that was read and not processed yet."""
    exchange: Exchange | None = None
    """The current request; None between requests."""
    body_left = 0
    """Bytes of the request's body that haven't arrived yet."""
    decoder: ChunkDecoder | None = None
    keep_alive = False
    has_surplus = False
    """Whether it has sent, or is sending, data that nobody will process."""
    observed_ip: str | None = None
    """The client's address according to a trusted upstream."""
    requests = 0
    adopted = 0
    """How often the current request was handed to another service."""
    file: FileSender | None = None
    _linger: Timer | None = None
    """Closes the connection if the client doesn't do so first."""

    def __init__(self, service: Service, sock: socket.socket) -> None:
        self.server = service.server
        super().__init__(sock, self.server.loop)
        self.base = service
        """The service that accepted it, and to which it returns after each request."""
        self.service = service
        """The service that handles the current request."""
        self.created = self.last_active = time.monotonic()
        self.server.clients += 1
        self.watch_read(True)
        self.server.idle.check_at(self.last_active + self.idle_seconds())

    # --- reading ----------------------------------------------------------------------------------

    def event_read(self) -> None:
        self.last_active = time.monotonic()
        data = self.read(READ_SIZE)
        if data is None:
            if self.exchange is not None:
                self.exchange.end_of_input()
            else:
                self.close("remote_closure")
        elif self._linger is not None:
            if 0 < self.body_left <= len(data):
                self.close("no_keep_alive")
            self.body_left -= len(data)
        elif data:
            self.inbox += data
            self.go_on()

    def go_on(self) -> None:
        """Process the data in `inbox`: the body of the current request, or the next request."""
        while self.inbox:
            exchange = self.exchange
            if exchange is None:
                if not self._next_request():
                    return
            elif exchange.takes_body and self.body_left:
                self._take_body(exchange)
            else:
                return exchange.overflow()

    def _next_request(self) -> bool:
        # RFC 9112, 2.2: ignore an empty line before a request. Some browsers send it after POST.
        self.inbox = self.inbox.removeprefix(b"\r\n")
        try:
            found = take_head(self.inbox)
            if found is None:
                return False
            request = Request(found[0])
        except Refused as refused:
            self.refuse(refused)
            return False
        self.inbox = found[1]
        self.server.requests += 1
        self.adopted = 0
        self.observed_ip = None
        if request.chunked:
            self.decoder = ChunkDecoder()
            self.body_left = UNKNOWN
        else:
            self.body_left = request.length
        self.serve(self.base, request)
        return True

    def _take_body(self, exchange: Exchange) -> None:
        data, self.inbox = self.inbox, b""
        if self.decoder is not None:
            try:
                data, self.inbox = self.decoder.feed(data)
            except Refused as refused:
                return self.refuse(refused)
            if 0 < self.service.max_chunked_request_size < self.decoder.size:
                return self.close("max_chunked_request_size")
            if self.decoder.done:
                self.decoder = None
                self.body_left = 0
        else:
            data, self.inbox = data[: self.body_left], data[self.body_left :]
            self.body_left -= len(data)
        if data:
            exchange.body(data)
        if self.exchange is exchange and not self.body_left:
            exchange.body_done()

    def serve(self, service: Service, request: Request) -> None:
        self.service = service
        if (service.always_trusted or service.trusted_upstream_proxies) and self.is_trusted():
            forwarded = request.values.get("x-forwarded-for", "")
            self.observed_ip = forwarded.partition(",")[0].strip(" \t") or None
        kind = self.server.exchanges.get(service.role, Exchange)
        exchange = self.exchange = kind(self, service, request)
        if service.role == "web_server":
            self.requests += 1  # A proxy counts only those that no plugin has answered.
        for plugin in service.plugins:
            if plugin.start_http_request(exchange):
                return
        exchange.start()

    def is_trusted(self) -> bool:
        """Whether its forwarding headers are trusted."""
        return self.service.trusts(self.peer_ip_string() or "")

    def hand_over(self, service: Service, request: Request) -> None:
        self.adopted += 1
        if self.adopted > MAX_SERVICES:
            self.send_page(500, "Services lead in a circle")
        else:
            self.serve(service, request)

    # --- answering --------------------------------------------------------------------------------

    def begin_answer(self, head: Response, state: str) -> bytes:
        """Decide whether the connection persists after this answer, and set that in its head.
        Returns the head's bytes."""
        self.state = state
        exchange = self.exchange
        self.keep_alive = bool(
            self.base.persist_client
            and exchange is not None
            and exchange.request.keep_alive
            and not self.body_left
            and not self.has_surplus
            and not self.server.stopping
            and head.end_is_known(exchange.request.method == "HEAD")
        )
        head.set("Connection", "keep-alive" if self.keep_alive else "close")
        timeout = self.service.persist_client_idle_timeout
        if self.keep_alive and timeout:
            head.set("Keep-Alive", f"timeout={timeout}, max=100")
        else:
            head.drop("keep-alive")
        return head.to_bytes()

    def send_last(self, data: bytes) -> None:
        """Write the last part of an answer. Once it is sent, the next request may begin."""
        if not self.write(data):
            self.write(self.finished)
        elif not self.closed:
            self.finished()

    def send_page(self, code: int, text: str = "") -> None:
        """Answer with a page of the server's own."""
        head = Response(code)
        body = b""
        if code not in BODILESS:
            reason = f" - {head.reason}" if head.reason else ""
            body = f"<h1>{code}{reason}</h1>\n{text}".encode("latin-1", "replace")
            head.set("Content-Type", "text/html")
            head.set("Content-Length", str(len(body)))
        if self.service.server_tokens:
            head.set("Server", SERVER)
        self.send_answer(head, body)

    def send_answer(self, head: Response, body: bytes = b"") -> None:
        """Answer with this head and this body."""
        if self.exchange is not None and self.exchange.request.method == "HEAD":
            body = b""
        self.send_last(self.begin_answer(head, "xfer_resp") + body)

    def send_file(self, head: Response, part: Part) -> None:
        """Answer with this head and a part of a file, which is closed when that is sent."""
        fd, start, end = part
        if end - start > SMALL_FILE:
            return self.send_files(head, FileSender(self, iter((part,))))
        try:
            data = os.pread(fd, end - start, start)
        except OSError as error:
            self.server.log(f"reading a file: {error}")
            data = b""
        close_file(fd)
        if len(data) < end - start:
            self.close("the file has shrunk")
        else:
            self.send_last(self.begin_answer(head, "xfer_disk") + data)

    def send_files(self, head: Response, files: FileSender) -> None:
        self.file = files
        self.watch_read(False)
        self.watch_write(True)
        if self.write(self.begin_answer(head, "xfer_disk")):
            files.go_on()

    def refuse(self, refused: Refused) -> None:
        """Answer a message that is not accepted, and close."""
        if not refused.status:
            return self.close("parse_header_failure")
        self.has_surplus = True
        self.watch_read(False)  # What follows can't be attributed to a request.
        self.send_page(refused.status, refused.text)

    def finished(self) -> None:
        """Called when the answer is sent: wait for the next request, or close."""
        self.last_active = time.monotonic()
        exchange, self.exchange = self.exchange, None
        self.service = self.base
        if exchange is not None:
            exchange.release()
        if not self.keep_alive or self.has_surplus:
            return self._end()
        self.state = "persist_wait"
        self.server.idle.check_at(
            self.last_active + (self.base.persist_client_idle_timeout or math.inf)
        )
        self.watch_read(True)
        if self.server.stopping:
            self.die_gracefully()

    def _end(self) -> None:
        """Close. With unread data, that would reset the connection and lose the answer; then let
        the client close first (RFC 9112, 9.6)."""
        if not self.body_left and not self.has_surplus and not self.inbox.strip(b"\r\n"):
            if not self.read(READ_SIZE):
                return self.close("no_keep_alive")
        self.state = "draining_res"
        self.inbox = b""
        try:
            assert self.sock is not None
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            return self.close("no_keep_alive")
        self.watch_read(True)
        seconds = LINGER_SECONDS if self.body_left else 2.0
        self._linger = self.loop.add_timer(seconds, lambda: self.close("no_keep_alive"))

    def event_write(self) -> None:
        self.last_active = time.monotonic()
        if self.file is None or self.write_buf_size:
            super().event_write()
        if self.file is not None:
            self.file.go_on()
        if self.exchange is not None:
            self.exchange.client_drained()
        else:
            self.go_on()

    # --- ending -----------------------------------------------------------------------------------

    def is_between_requests(self) -> bool:
        """Whether it waits for another request. `state`, which STATES shows, isn't enough: as in
        the original, it doesn't change while a PUT or a chunked body arrives."""
        return self.state == "persist_wait" and self.exchange is None

    def idle_seconds(self) -> float:
        """Its idle timeout at present."""
        if self.is_between_requests():
            return self.service.persist_client_idle_timeout or math.inf
        return self.service.idle_timeout or math.inf

    def is_idle(self, seconds: float, now: float) -> bool:
        """Whether it has neither sent nor taken anything for this long."""
        if self.last_active + seconds <= now and (self.write_buf_size or self.file is not None):
            # The socket is writable again only when half of the kernel's unsent data has gone. When
            # the kernel last sent some is in struct tcp_info (linux/tcp.h), except while it
            # retransmits.
            if self.sock is not None and sys.platform == "linux":
                info = self.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 64)
                milliseconds = int.from_bytes(info[44:48], sys.byteorder)  # tcpi_last_data_sent
                if not info[2]:  # tcpi_retransmits
                    self.last_active = max(self.last_active, now - milliseconds / 1000)
        return self.last_active + seconds <= now

    def die_gracefully(self) -> None:
        """Close if it is between requests, but not immediately after a keep-alive answer: the next
        request may be on its way, and would be lost."""
        if not self.is_between_requests():
            return
        left = self.last_active + NEXT_REQUEST_SECONDS - time.monotonic()
        if left > 0:
            self.loop.add_timer(left, self.die_gracefully)
            return
        self.event_read()  # A request may have arrived just now.
        if self.is_between_requests() and not self.inbox:
            self.close("graceful_shutdown")

    def event_err(self) -> None:
        self.close("error")

    def event_hup(self) -> None:
        if self.loop.have_kqueue:
            self.event_read()  # There, a half-close is reported as a hang-up, too.
        else:
            self.close("hup")

    def close(self, reason: str | None = None) -> None:
        if self.closed:
            return
        self.state = "closed"
        self.inbox = b""
        super().close(reason)
        if self._linger is not None:
            self._linger.cancel()
        file, self.file = self.file, None
        if file is not None:
            file.close()
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.release()
        self.server.client_closed()

    def class_name(self) -> str:
        return "Perlbal::" + _CLASS_NAMES.get(self.service.role, "ClientHTTPBase")

    def as_string(self) -> str:
        text = super().as_string().replace(type(self).__name__, self.class_name(), 1)
        self.local_addr_string()
        if self.local_port is not None:
            text += f": localport={self.local_port}"
        if self.observed_ip is not None:
            text += f"; observed_ip={unwire(self.observed_ip)}"
        text += f"; reqs={self.requests}; {self.state}"
        if self.exchange is not None:
            request = self.exchange.request
            text += f"; http://{unwire((request.get('host') or 'unknown') + request.uri)}"
            text += self.exchange.as_string()
        return text


class IdleClients:
    """Closes clients that have passed their idle timeout, at most a tenth of a second late.

    A timer for each client would be wasteful, since most are active long before they time out. So
    all clients are checked when the first of them may be due.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._timer: Timer | None = None
        self._due = math.inf

    def check_at(self, due: float) -> None:
        """Check all clients at this time, since one of them may be due."""
        if due >= self._due:
            return
        self._due = due
        if self._timer is not None:
            self._timer.cancel()
        # With more clients, check less often.
        pause = max(1 / CHECKS_PER_SECOND, self._server.clients / CLIENTS_PER_SECOND)
        wait = max(due - time.monotonic(), pause)
        self._timer = self._server.loop.add_timer(wait, self._check)

    def _check(self) -> None:
        self._due = due = math.inf
        now = time.monotonic()
        for each in list(self._server.loop.descriptor_map.values()):
            if isinstance(each, Client):
                seconds = each.idle_seconds()
                if each.is_idle(seconds, now):
                    each.close("perlbal_timeout")
                else:
                    due = min(due, each.last_active + seconds)
        self.check_at(due)
