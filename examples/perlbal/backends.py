"""Connections to backends: verified, used one request after another, and watched while idle."""

from __future__ import annotations

import re
import socket
import time
from collections import Counter, deque
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Protocol

from danga_raw import Socket, Timer
from examples.perlbal.heads import Refused, Response, parse_response, take_head
from examples.perlbal.pools import Node, Pool

if TYPE_CHECKING:
    from examples.perlbal.proxy import ProxyExchange
    from examples.perlbal.server import Server
    from examples.perlbal.services import Service

READ_SIZE: Final = 61_440
KERNEL_BUFFER: Final = 131_072
"""How many bytes that aren't sent yet may wait in the kernel."""
GIVE_UP_SECONDS: Final = 15
"""How long a connection may be on its way, with its OPTIONS."""
NO_VERIFY_SECONDS: Final = 60
MOST_NODES: Final = 10_000
CODES_KEPT: Final = 500
MOST_READS: Final = 64
_TIMEOUT: Final = re.compile(r"\btimeout=(\d{1,9})", re.IGNORECASE | re.ASCII)


def tune(sock: socket.socket) -> None:
    """Have what is written go out at once, and little of it wait in the kernel, where that can be
    told: so room comes in small steps, and who takes little at a time isn't thought to be idle."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with suppress(AttributeError, OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, KERNEL_BUFFER)


class Owner(Protocol):
    """Whom a backend connection works for: a service's balancer, or a host of reproxied URLs."""

    server: Server

    @property
    def service(self) -> Service | None: ...

    def register_boredom(self, backend: BackendHTTP) -> None: ...
    def note_backend_close(self, backend: BackendHTTP) -> None: ...


class NodeStats:
    """What became of the connections to one node."""

    attempts = connects = verifies = requests = 0
    lastattempt = lastconnect = lastresponse = 0

    def __init__(self) -> None:
        self.codes: deque[int] = deque(maxlen=CODES_KEPT)

    def lines(self) -> list[str]:
        """The answer to NODE: of what there was any."""
        counts = [f"{key} {value}" for key, value in vars(self).items() if key != "codes"]
        codes = sorted(Counter(self.codes).items())
        return counts + [f"responsecodes {code} {count}" for code, count in codes]


class Nodes(dict[str, NodeStats]):
    """All nodes that were heard of lately, by "ip:port"."""

    def __missing__(self, name: str) -> NodeStats:
        if len(self) >= MOST_NODES:
            del self[next(iter(self))]
        stats = self[name] = NodeStats()
        return stats


class BackendHTTP(Socket):
    state = "connecting"
    exchange: ProxyExchange | None = None
    head: Response | None = None
    """The response that is coming in, from when its head is there."""
    inbox: bytes = b""
    """What was read and isn't a whole head yet."""
    left: int | None = None
    """Bytes of the response's body that are to come; None if they end with the connection."""
    unreachable = False
    """Whether it is closed because the connect failed."""
    has_attention = False
    """Whether a process and not only the kernel is known to be behind it."""
    stays = 0
    """Seconds for which it said that it would wait for another request; 0 if it didn't say."""
    use_count = 0
    kept_alive = False
    """Whether the present response leaves it open for another request."""
    _verify_timer: Timer
    """Ends it where there is no answer to OPTIONS in time."""

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
        """When it last began to have nothing to do."""
        self.pool: Pool | None = self.service.pool if self.service is not None else None

    @classmethod
    def open(cls, owner: Owner, node: Node, timeout: float) -> BackendHTTP | None:
        """Begin to connect; None if that fails at once."""
        stats = owner.server.nodes[node.name]
        stats.attempts += 1
        stats.lastattempt = int(time.time())
        try:
            return cls.connect(node, owner, node, timeout=timeout)
        except (OSError, ValueError, OverflowError) as error:
            # A node of a file may be no address, or its port none.
            owner.server.log(f"connecting to {node.name}: {error}")
            return None

    def age(self) -> int:
        return int(time.monotonic() - self.created)

    def ends_soon(self, now: float) -> bool:
        """Whether it will close about now, by what it said."""
        return 0 < self.stays < now + 2 - self.idle_since

    def is_over(self) -> bool:
        """Whether it can't be asked any more, and is closed: it has ended, or has said more than its
        answer. The loop may tell that too late for a request that came in the same turn. read(2)."""
        if self.read(1) != b"":
            self.close("read_with_no_client")
        return self.closed

    # --- getting ready ----------------------------------------------------------------------------

    def event_connect(self, error: OSError | None) -> None:
        # One that is refused counts as well, as in the original; one that has no answer doesn't.
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
            # A length is taken at its word, although OPTIONS has seldom a body.
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
        """Send this backend a request, whose body follows by the exchange."""
        if self.pool is not None:
            self.pool.used[self.ipport] += 1
        # Theirs before a plugin may fail: it takes both along then, and neither is left to wait.
        self.exchange, exchange.backend = exchange, self
        self.state = "sending_req"
        self.write(exchange.head_for_backend())
        if not self.closed:
            exchange.backend_ready(self)

    def next_request(self, initial: bool = False) -> None:
        """What it was doing is done: close, or wait for more. `initial`: it was the OPTIONS."""
        if self.closed:
            return
        self.exchange = None
        self.stats.lastresponse = int(time.time())
        if not initial:
            self.stats.requests += 1
            self.use_count += 1
            # A body that nobody wants would be taken for the next response.
            if self.left != 0 or not self.kept_alive or self.write_buf_size:
                return self.close("next_request_no_persist")
        self.idle_since = time.monotonic()
        self.state = "bored"
        self.head = None
        self.left = None
        self.owner.register_boredom(self)

    # --- responses --------------------------------------------------------------------------------

    def _read_head(self, data: bytes, head_only: bool) -> tuple[Response, bytes] | None:
        """The response's head, once it is whole, and what follows it; what it says of the
        connection is noted, before it is changed for the client. `head_only`: it has no body,
        whatever its length. Raises `Refused`."""
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
                self.stays = int(timeout[1]) if timeout else 0
                return head, data
            # A preliminary response: another follows.
        self.inbox = data
        return None

    def event_read(self) -> None:
        exchange = self.exchange
        try:
            self._read(exchange)
        except BaseException:
            # The loop closes this; but the client may be its no longer, and wait for ever.
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
            # An idle backend has nothing to say but that it ends.
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
        """Count what has come of the body. More than was announced is cut, and the connection isn't
        used again."""
        if self.left is not None:
            self.left -= len(data)
            if self.left < 0:
                return data[: self.left]
        return data

    def event_write(self) -> None:
        super().event_write()
        exchange = self.exchange
        if exchange is not None and not self.closed and not self.write_buf_size:
            exchange.backend_drained(self)

    # --- ending -----------------------------------------------------------------------------------

    def event_err(self) -> None:
        # What came before the error is still there to be read.
        for _ in range(MOST_READS):
            if self.closed or self.exchange is None or self.exchange.backend_stalled:
                break
            self.event_read()
        self.close("error")

    def event_hup(self) -> None:
        # What is still to be read is read first; its end tells the rest.
        self.event_read()
        if not self.closed and self.exchange is None:
            self.close("after_hup")

    def close(self, reason: str | None = None) -> None:
        if self.closed:
            return
        if self.exchange is not None and reason in ("EPIPE", "ECONNRESET"):
            # A write has failed. If that was of the body, it may have answered before. Closed in
            # the next turn, as the exchange may ask another, of which that may be as true.
            broken = self.event_err if self.state != "sending_req" else self.close
            return self.loop.call_soon(broken)
        if self.state == "verifying_backend":
            self._verify_timer.cancel()
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
        if self.exchange is not None and not self.exchange.client.closed:
            text += f"; client={self.exchange.client.fd}"
        text += f"; uses={self.use_count}; {self.state}"
        if self.service is not None and self.service.verify_backend:
            text += f"; has_attention={'yes' if self.has_attention else 'no'}"
        return text
