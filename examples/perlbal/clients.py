"""Connections from HTTP clients, of every role but management.

A connection reads heads; each request gets an `Exchange`, of the kind that the service's role asks
for, which is handed the body and sees to the answer. Between requests there is none, so that an
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
from examples.perlbal.files import Part, SentFiles
from examples.perlbal.heads import BODILESS, SERVER, Refused, Request, Response, read_off, take_head
from examples.perlbal.uploads import ChunkDecoder

if TYPE_CHECKING:
    from examples.perlbal.server import Server
    from examples.perlbal.services import Service

READ_SIZE: Final = 65_536
SMALL_FILE: Final = 65_536
"""Up to here a file is read and goes out with its head."""
LINGER_SECONDS: Final = 30.0
ASK_AGAIN_SECONDS: Final = 0.25
"""How long a kept client is waited for behind its answer, when the server ends: who asks again at
once does so within a round trip."""
MOST_SERVICES: Final = 10
UNKNOWN: Final = 1 << 62
"""The length of a chunked body."""

LOOKS_PER_SECOND: Final = 10
"""How often idle clients are looked for at the most."""
CLIENTS_PER_SECOND: Final = 20_000
"""How many are looked at in a second, about, at the most."""

_CLASS_NAMES: Final = {"reverse_proxy": "ClientProxy", "web_server": "ClientHTTP"}


class Exchange:
    """A request and what is done about it, by the role of its service: see the subclasses."""

    takes_body = True
    """Whether it can be handed what comes behind the head."""

    def __init__(self, client: Client, service: Service, request: Request) -> None:
        self.client = client
        self.service = service
        self.request = request

    def start(self) -> None:
        """The head is there, and no plugin has seen to it."""
        self.client.send_page(500, f"Can't map to service type {self.service.role}")

    def body(self, data: bytes) -> None:
        """Some of the request's body; what nobody asked for is thrown away."""

    def body_done(self) -> None:
        """The request's body is whole."""

    def overflow(self) -> None:
        """The client has sent more than this takes: perhaps the next request. It has to wait."""
        self.client.watch_read(False)

    def end_of_input(self) -> None:
        """The client has ended its side, or is gone."""
        self.client.close("user_disconnected")

    def send_continue(self) -> None:
        """Say that the body may come, if the client waits for that."""
        client, request = self.client, self.request
        if client.body_left and "100-continue" in (request.get("expect") or "").lower():
            request.drop("expect")
            if request.chunked or request.version != "1.0":
                client.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def later(self, seconds: float, step: Callable[[], None]) -> None:
        """Take a step then, if this is still what the client waits for; as in its own handlers,
        what goes wrong is its end."""

        def take() -> None:
            if self.client.exchange is self:
                try:
                    step()
                except BaseException:
                    self.client.close("exception")
                    raise

        self.client.loop.add_timer(seconds, take)

    def client_drained(self) -> None:
        """There was room to write to the client."""

    def release(self) -> None:
        """Let go of all that it holds. May be called twice."""

    def as_string(self) -> str:
        """What SOCKS is to tell of it."""
        return ""


class Client(Socket):
    state = "reading_headers"
    inbox = b""
    """What was read and is not used yet."""
    exchange: Exchange | None = None
    """The present request, and what is done about it."""
    body_left = 0
    """Bytes of the request's body that haven't come yet."""
    decoder: ChunkDecoder | None = None
    keep_alive = False
    overfed = False
    """Whether there is more to come from it that nobody wants."""
    observed_ip: str | None = None
    """The address that a trusted upstream says the request comes from."""
    requests = 0
    adopted = 0
    """How often the present request was handed on."""
    file: SentFiles | None = None
    _linger: Timer | None = None
    """Ends it where the client isn't the first to do so."""

    def __init__(self, service: Service, sock: socket.socket) -> None:
        self.server = service.server
        super().__init__(sock, self.server.loop)
        self.base = service
        """The service that it came to, and comes back to after each request."""
        self.service = service
        """The service that has the present request."""
        self.created = self.alive = time.monotonic()
        self.server.clients += 1
        self.watch_read(True)
        self.server.idle.look_at(self.alive + self.idle_seconds())

    # --- reading ----------------------------------------------------------------------------------

    def event_read(self) -> None:
        self.alive = time.monotonic()
        data = self.read(READ_SIZE)
        if data is None:
            if self.exchange is not None:
                self.exchange.end_of_input()
            else:
                self.close("remote_closure")
        elif self.exchange is None and self.state == "draining_res":
            if self.decoder is None and self.body_left:
                self.body_left -= len(data)
                if self.body_left <= 0:
                    self.close("no_keep_alive")
        elif data:
            self.inbox += data
            self.go_on()

    def go_on(self) -> None:
        """Give what has come to whom it is for: the present request, or the next one."""
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
        # RFC 9112, 2.2: an empty line before a request is nothing; some browsers send it after POST.
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
            self.requests += 1  # A proxy counts those that its plugins have not answered.
        for plugin in service.plugins:
            if plugin.start_http_request(exchange):
                return
        exchange.start()

    def is_trusted(self) -> bool:
        """Whether what it says of others is believed."""
        return self.service.trusts(self.peer_ip_string() or "")

    def hand_on(self, service: Service, request: Request) -> None:
        self.adopted += 1
        if self.adopted > MOST_SERVICES:
            self.send_page(500, "Services lead in a circle")
        else:
            self.serve(service, request)

    # --- answering --------------------------------------------------------------------------------

    def begin_answer(self, head: Response, state: str) -> bytes:
        """Decide whether to go on after this answer, and say so in its head, which is returned as
        it is sent."""
        self.state = state
        exchange = self.exchange
        self.keep_alive = bool(
            self.base.persist_client
            and exchange is not None
            and exchange.request.keep_alive
            and not self.body_left
            and not self.overfed
            and not self.server.stopping
            and head.tells_its_end(exchange.request.method == "HEAD")
        )
        head.set("Connection", "keep-alive" if self.keep_alive else "close")
        timeout = self.service.persist_client_idle_timeout
        if self.keep_alive and timeout:
            head.set("Keep-Alive", f"timeout={timeout}, max=100")
        else:
            head.drop("keep-alive")
        return head.to_bytes()

    def send_last(self, data: bytes) -> None:
        """Write the last of an answer; when it is out, the next request may come."""
        if not self.write(data):
            self.write(self.finished)
        elif not self.closed:
            self.finished()

    def send_page(self, code: int, text: str = "") -> None:
        """Answer with a page of our own."""
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
        """Answer with this head and a part of a file, which is closed when it is out."""
        fd, start, end = part
        if end - start > SMALL_FILE:
            return self.send_files(head, SentFiles(self, iter((part,))))
        try:
            data = os.pread(fd, end - start, start)
        except OSError:
            data = b""
        os.close(fd)
        if len(data) < end - start:
            self.close("the file has shrunk")
        else:
            self.send_last(self.begin_answer(head, "xfer_disk") + data)

    def send_files(self, head: Response, files: SentFiles) -> None:
        self.file = files
        self.watch_read(False)
        self.watch_write(True)
        if self.write(self.begin_answer(head, "xfer_disk")):
            files.go_on()

    def refuse(self, refused: Refused) -> None:
        """Answer what isn't taken, and end."""
        if not refused.status:
            return self.close("parse_header_failure")
        self.overfed = True
        self.watch_read(False)  # Nobody knows of what it is a part.
        self.send_page(refused.status, refused.text)

    def finished(self) -> None:
        """The answer is out: wait for the next request, or end."""
        self.alive = time.monotonic()
        exchange, self.exchange = self.exchange, None
        self.service = self.base
        if exchange is not None:
            exchange.release()
        if not self.keep_alive or self.overfed:
            return self._end()
        self.state = "persist_wait"
        self.server.idle.look_at(self.alive + (self.base.persist_client_idle_timeout or math.inf))
        self.watch_read(True)
        if self.server.stopping:
            self.die_gracefully()

    def _end(self) -> None:
        """Close; but where there is more to be read, that would take the answer with it: so let the
        client be the first, as RFC 9112, 9.6 asks."""
        if not self.body_left and not self.overfed and not self.inbox.strip(b"\r\n"):
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
        self.alive = time.monotonic()
        if self.file is None or self.write_buf_size:
            super().event_write()
        if self.file is not None:
            self.file.go_on()
        if self.exchange is not None and not self.closed:
            self.exchange.client_drained()
        if self.exchange is None:
            self.go_on()

    # --- ending -----------------------------------------------------------------------------------

    def is_between_requests(self) -> bool:
        """Its state alone doesn't tell, which STATES shows: as in the original it stays the same
        while a PUT or a body in chunks comes in."""
        return self.state == "persist_wait" and self.exchange is None

    def idle_seconds(self) -> float:
        """How long it may be silent."""
        if self.is_between_requests():
            return self.service.persist_client_idle_timeout or math.inf
        return self.service.idle_timeout or math.inf

    def is_idle(self, seconds: float, now: float) -> bool:
        """Whether it has sent and taken nothing for so long."""
        if self.alive + seconds <= now and (self.write_buf_size or self.file is not None):
            # There is room for more when half of what waits in the kernel is taken. When the last of
            # it went out is in struct tcp_info (linux/tcp.h), unless that was sent again.
            if self.sock is not None and sys.platform == "linux":
                info = self.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 64)
                milliseconds = int.from_bytes(info[44:48], sys.byteorder)  # tcpi_last_data_sent
                if not info[2]:  # tcpi_retransmits
                    self.alive = max(self.alive, now - milliseconds / 1000)
        return self.alive + seconds <= now

    def die_gracefully(self) -> None:
        """Close if it has nothing to do, and had something before; but not at once behind an answer
        that let it ask again: that request may be on its way, and would be lost."""
        if not self.is_between_requests():
            return
        left = self.alive + ASK_AGAIN_SECONDS - time.monotonic()
        if left > 0:
            self.loop.add_timer(left, self.die_gracefully)
            return
        self.event_read()  # One may have come just now.
        if self.is_between_requests() and not self.inbox:
            self.close("graceful_shutdown")

    def event_err(self) -> None:
        self.close("error")

    def event_hup(self) -> None:
        if self.loop.have_kqueue:
            self.event_read()  # There half a hang-up comes here as well.
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
            text += f"; observed_ip={read_off(self.observed_ip)}"
        text += f"; reqs={self.requests}; {self.state}"
        if self.exchange is not None:
            request = self.exchange.request
            text += f"; http://{read_off((request.get('host') or 'unknown') + request.uri)}"
            text += self.exchange.as_string()
        return text


class IdleClients:
    """Closes clients that were silent too long, at most a tenth of a second late.

    A timer for each would cost more than it is worth: most clients are heard of long before their
    time. So all are looked at when the first of them may be due.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._timer: Timer | None = None
        self._due = math.inf

    def look_at(self, due: float) -> None:
        """Look at all then, as one of them may be due."""
        if due >= self._due:
            return
        self._due = due
        if self._timer is not None:
            self._timer.cancel()
        # Fewer looks where there is much to be looked at.
        pause = max(1 / LOOKS_PER_SECOND, self._server.clients / CLIENTS_PER_SECOND)
        wait = max(due - time.monotonic(), pause)
        self._timer = self._server.loop.add_timer(wait, self._look)

    def _look(self) -> None:
        self._due = due = math.inf
        now = time.monotonic()
        for each in list(self._server.loop.descriptor_map.values()):
            if isinstance(each, Client):
                seconds = each.idle_seconds()
                if each.is_idle(seconds, now):
                    each.close("perlbal_timeout")
                else:
                    due = min(due, each.alive + seconds)
        self.look_at(due)
