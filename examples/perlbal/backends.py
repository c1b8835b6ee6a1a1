"""Connections to backends: verified, used for one request after another, and watched while idle."""

from __future__ import annotations

import math
import re
import socket
import time
from collections import Counter, deque
from contextlib import suppress
from typing import TYPE_CHECKING, Final, TypeAlias

from danga_raw import Socket, Timer
from examples.perlbal.heads import Refused, Response, parse_response, take_head
from examples.perlbal.pools import Node, Pool

if TYPE_CHECKING:
    from examples.perlbal.balancer import Balancer
    from examples.perlbal.proxy import ProxyExchange
    from examples.perlbal.reproxyhosts import ReproxyHost

READ_SIZE: Final = 61_440
KERNEL_BUFFER: Final = 131_072
"""How many unsent bytes may wait in the kernel."""
GIVE_UP_SECONDS: Final = 15
"""How long connecting may take, including the answer to OPTIONS."""
NO_VERIFY_SECONDS: Final = 60
MAX_NODES: Final = 10_000
CODES_KEPT: Final = 500
MAX_READS: Final = 64
Owner: TypeAlias = "Balancer | ReproxyHost"
_TIMEOUT: Final = re.compile(r"\btimeout=(\d{1,9})", re.IGNORECASE | re.ASCII)


def tune(sock: socket.socket) -> None:
    """Send what is written at once, and limit the unsent data in the kernel if the system can. Then
    the socket is writable more often, and a slow client isn't taken for an idle one."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with suppress(AttributeError, OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, KERNEL_BUFFER)


class NodeStats:
    """Statistics of the connections to one node."""

    attempts = connects = verifies = requests = 0
    lastattempt = lastconnect = lastresponse = 0

    def __init__(self) -> None:
        self.codes: deque[int] = deque(maxlen=CODES_KEPT)

    def lines(self) -> list[str]:
        """The answer to NODE: the counts that aren't zero."""
        counts = [f"{key} {value}" for key, value in vars(self).items() if key != "codes"]
        codes = sorted(Counter(self.codes).items())
        return counts + [f"responsecodes {code} {count}" for code, count in codes]


class Nodes(dict[str, NodeStats]):
    """The nodes by "ip:port". Beyond `MAX_NODES`, the one added first is dropped."""

    def __missing__(self, name: str) -> NodeStats:
        if len(self) >= MAX_NODES:
            del self[next(iter(self))]
        stats = self[name] = NodeStats()
        return stats


class BackendHTTP(Socket):
    state = "connecting"
    exchange: ProxyExchange | None = None
    head: Response | None = None
    """The head of the current response, once it has arrived."""
    inbox: bytes = b""
    """The beginning of an incomplete head."""
    left: int | None = None
    """Bytes left of the response's body; None if it ends with the connection."""
    unreachable = False
    """Whether the connect failed."""
    has_attention = False
    """Whether a process, not only the kernel, is known to be at the other end."""
    keep_alive_seconds = math.inf
    """How many seconds it said it would wait for another request; infinite if it didn't say."""
    use_count = 0
    kept_alive = False
    """Whether the connection stays open after the current response."""
    _verify_timer: Timer
    """Closes the connection if OPTIONS isn't answered in time."""

    def __init__(self, sock: socket.socket, owner: Owner, node: Node) -> None:
        tune(sock)
        super().__init__(sock, owner.server.loop)
        self.owner = owner
        self.server = owner.server
        self.service = owner.service
        self.ipport = node.name
        self.stats = self.server.nodes[self.ipport]
        self.created: float = time.monotonic()
        self.idle_since = self.created
        """When it last became idle."""
        self.pool: Pool | None = self.service.pool if self.service is not None else None

    @classmethod
    def open(cls, owner: Owner, node: Node, timeout: float) -> BackendHTTP | None:
        """Start connecting. None if that fails at once."""
        stats = owner.server.nodes[node.name]
        stats.attempts += 1
        stats.lastattempt = int(time.time())
        try:
            return cls.connect(node, owner, node, timeout=timeout)
        except (OSError, ValueError, OverflowError) as error:
            # A nodefile may contain an invalid address or port.
            owner.server.log(f"connecting to {node.name}: {error}")
            return None

    def age(self) -> int:
        return int(time.monotonic() - self.created)

    def ends_soon(self, now: float) -> bool:
        """Whether the backend will close it about now, according to its Keep-Alive field."""
        return self.keep_alive_seconds < now + 2 - self.idle_since

    def has_ended(self) -> bool:
        """Whether it can't be reused, because the backend has closed it or sent more than an
        answer; then this closes it. The loop may report that too late for a request that arrived in
        the same turn. read(2)."""
        if self.read(1) != b"":
            self.close("read_with_no_client")
        return self.closed

    # --- getting ready ----------------------------------------------------------------------------

    def event_connect(self, error: OSError | None) -> None:
        # As in the original, a refused connect is counted, one without an answer isn't.
        if not isinstance(error, TimeoutError):
            self.stats.connects += 1
            self.stats.lastconnect = int(time.time())
        if error is not None:
            self.unreachable = True
            return self.close("connect failed")
        self.watch_read(True)
        service, until = self.service, self.server.no_verify.get(self.ipport, 0)
        if service is None or not service.verify_backend or until > time.monotonic():
            self.state = "bored"
            return self.owner.register_boredom(self)
        left = self.created + GIVE_UP_SECONDS - time.monotonic()
        self._verify_timer = self.loop.add_timer(left, lambda: self.close("callback_timeout"))
        self.state = "verifying_backend"
        path = service.verify_backend_path
        self.write(f"OPTIONS {path} HTTP/1.0\r\nConnection: keep-alive\r\n\r\n".encode("latin-1"))

    def _verify_failed(self) -> None:
        self.server.no_verify[self.ipport] = time.monotonic() + NO_VERIFY_SECONDS
        self.close("no_keep_alive")

    def _read_verification(self, data: bytes) -> None:
        if self.head is None:
            try:
                found = self._read_head(data, head_only=True)
            except Refused:
                return self._verify_failed()
            if found is None:
                return
            head, data = found
            # If the head announces a body, wait for it, although OPTIONS seldom has one.
            self.left = head.length or 0
        assert self.left is not None
        self.left -= len(data)
        if self.left < 0 or not self.kept_alive:
            self._verify_failed()
        elif self.left == 0:
            self._verify_timer.cancel()
            self.has_attention = True
            self.stats.verifies += 1
            self.next_request(initial=True)

    # --- requests ---------------------------------------------------------------------------------

    def assign(self, exchange: ProxyExchange) -> None:
        """Send a request to this backend. The exchange sends the body."""
        if self.pool is not None:
            self.pool.used[self.ipport] += 1
        # Before a plugin can raise: then both are closed, and neither is left waiting.
        self.exchange, exchange.backend = exchange, self
        self.state = "sending_req"
        self.write(exchange.head_for_backend())
        if not self.closed:
            exchange.backend_ready(self)

    def next_request(self, initial: bool = False) -> None:
        """Called when a request is done: close, or become idle. `initial`: it was the OPTIONS."""
        self.exchange = None
        self.stats.lastresponse = int(time.time())
        if not initial:
            self.stats.requests += 1
            self.use_count += 1
            # The rest of an unwanted body would be taken for the next response.
            if self.left != 0 or not self.kept_alive or self.write_buf_size:
                return self.close("next_request_no_persist")
        self.idle_since = time.monotonic()
        self.state = "bored"
        self.head = None
        self.left = None
        self.owner.register_boredom(self)

    # --- responses --------------------------------------------------------------------------------

    def _read_head(self, data: bytes, head_only: bool) -> tuple[Response, bytes] | None:
        """The response's head, once it is complete, and the data after it. This records what the
        head says about the connection, before it is changed for the client. `head_only`: the
        response has no body, whatever its length. Raises `Refused`."""
        data = self.inbox + data
        while (found := take_head(data)) is not None:
            head, data = parse_response(found[0]), found[1]
            if head.code == 101:
                raise Refused(502, "101 unasked for")
            if head.code >= 200:
                self.head, self.inbox = head, b""
                self.left = 0 if head_only else head.length
                self.kept_alive = head.kept_alive(head_only)
                timeout = _TIMEOUT.search(head.values.get("keep-alive", ""))
                self.keep_alive_seconds = int(timeout[1]) if timeout else math.inf
                return head, data
            # An interim response: another follows.
        self.inbox = data
        return None

    def event_read(self) -> None:
        exchange = self.exchange
        try:
            self._read(exchange)
        except BaseException:
            # The loop closes the backend. The client may be detached, and would wait forever.
            if exchange is not None:
                exchange.client.close("exception")
            raise

    def _read(self, exchange: ProxyExchange | None) -> None:
        if exchange is not None and self.head is not None and exchange.too_far_behind_backend():
            return exchange.stall_backend(self)
        data = self.read(READ_SIZE)
        if data == b"":
            return
        if self.state == "verifying_backend":
            if data is None:
                self.close("remote_closure")
            else:
                self._read_verification(data)
        elif exchange is None:
            # An idle backend has nothing to send.
            self.close("read_with_no_client")
        elif data is None:
            exchange.backend_ended(self)
        elif self.head is not None:
            exchange.response_body(self, self._count(data))
        else:
            try:
                found = self._read_head(data, exchange.request.method == "HEAD")
            except Refused as refused:
                return exchange.backend_garbage(self, refused.text)
            if found is None:
                return
            head, data = found
            self.has_attention = True
            self.state = "xfer_res"
            self.stats.codes.append(head.code)
            exchange.response_received(self, head, self._count(data))

    def _count(self, data: bytes) -> bytes:
        """Count received bytes of the body. Those beyond the announced length are cut off, and the
        connection isn't reused."""
        if self.left is not None:
            self.left -= len(data)
            if self.left < 0:
                return data[: self.left]
        return data

    def event_write(self) -> None:
        super().event_write()
        exchange = self.exchange
        if exchange is not None and not self.write_buf_size:
            exchange.backend_drained(self)

    # --- ending -----------------------------------------------------------------------------------

    def event_err(self) -> None:
        # Data that arrived before the error can still be read.
        for _ in range(MAX_READS):
            if self.closed or self.exchange is None or self.exchange.backend_stalled:
                break
            self.event_read()
        self.close("error")

    def event_hup(self) -> None:
        self.event_read()  # There may be data left. The end of input is handled there.

    def close(self, reason: str | None = None) -> None:
        if self.closed:
            return
        if self.exchange is not None and reason in ("EPIPE", "ECONNRESET"):
            # A write has failed. If it was of the body, the backend may have answered before. Close
            # in the next turn, as the exchange may ask another backend, whose write may fail too.
            broken = self.event_err if self.state != "sending_req" else self.close
            return self.loop.call_soon(broken)
        self.state = "closed"
        super().close(reason)
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.backend_lost(self)
        self.owner.note_backend_close(self)

    def die_gracefully(self) -> None:
        if self.state == "bored":
            self.close("graceful_death")

    def class_name(self) -> str:
        return "Perlbal::BackendHTTP"

    def as_string(self) -> str:
        text = "Perlbal::" + super().as_string()
        self.local_addr_string()
        if self.local_port is not None:
            text += f": localport={self.local_port}"
        if self.exchange is not None:
            text += f"; client={self.exchange.client.fd}"
        text += f"; uses={self.use_count}; {self.state}"
        if self.service is not None and self.service.verify_backend:
            text += f"; has_attention={'yes' if self.has_attention else 'no'}"
        return text
