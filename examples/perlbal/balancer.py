"""The waiting requests of a reverse proxy, in three queues, and its connections to backends."""

from __future__ import annotations

import random
import re
import time
from collections import Counter, OrderedDict, deque
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

from examples.perlbal.backends import GIVE_UP_SECONDS, BackendHTTP
from examples.perlbal.heads import wire

if TYPE_CHECKING:
    from examples.perlbal.pools import Pool
    from examples.perlbal.proxy import ProxyExchange, Queue
    from examples.perlbal.services import Service

MAX_NEW_CONNECTIONS: Final = 10
QUICK_SECONDS: Final = 2
"""How long to wait for a connect before another node is tried as well. A lost SYN is sent again
after one second (RFC 6298, 2.1)."""
CONNECT_SECONDS: Final = 5
RETRY_SECONDS: Final = 1
MAX_UNUSED: Final = 10
"""How many connections in a row a node may close unused before it is blocked."""
UNVERIFIED_SECONDS: Final = 5
"""The maximum age of a connection that was neither used nor verified."""


class Balancer:
    """Matches the requests and the backends of one service."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.server = service.server
        self.queues: dict[str, Queue] = {
            priority: OrderedDict() for priority in ("highpri", "normal", "lowpri")
        }
        self.pending: dict[str, BackendHTTP] = {}
        """The connections not yet established, at most one for each node."""
        self.blocked: set[str] = set()
        """The nodes that aren't tried for the moment."""
        self.ended_unused: Counter[str] = Counter()
        """How many connections in a row each node has closed before they were used."""
        self.bored: deque[BackendHTTP] = deque()
        """The idle connections, the best first."""
        self._will_check_again = False

    def waiting(self) -> int:
        return sum(map(len, self.queues.values()))

    # --- clients ----------------------------------------------------------------------------------

    def request_backend_connection(self, exchange: ProxyExchange) -> None:
        """Give the exchange a backend, now or when its turn comes."""
        if self.service.high_priority_cookie:
            exchange.high_priority = self._is_high_priority(exchange)
        while self.bored:
            backend = self.bored.popleft()
            now = time.monotonic()
            if not backend.has_attention and backend.created < now - UNVERIFIED_SECONDS:
                backend.close("too_old_bored")
            elif backend.ends_soon(now):
                backend.close("too_close_disconnect")
            elif not backend.has_ended():
                backend.assign(exchange)
                return self.spawn_backends()
        priority = "lowpri" if exchange.request.low_priority else "normal"
        if exchange.high_priority:
            priority = "highpri"
        exchange.wait_in(self.queues[priority])
        self.spawn_backends()

    def _is_high_priority(self, exchange: ProxyExchange) -> bool:
        # As in the original, the last cookie of a name is used, and if no contents are configured,
        # every request has high priority, with or without the cookie.
        cookies: dict[str, str] = {}
        for each in re.split(r";[ \t]+", exchange.request.get("cookie") or ""):
            name, equals, value = each.rpartition("=")
            if equals:
                cookies[unquote(name, "latin-1")] = unquote(value, "latin-1")
        value = cookies.get(wire(self.service.high_priority_cookie), "")
        return wire(self.service.high_priority_cookie_contents) in value

    def _next_client(self) -> ProxyExchange | None:
        size, normal = self.service.queue_relief_size, self.queues["normal"]
        relieved = size and len(normal) >= size
        if relieved and random.random() * 100 < self.service.queue_relief_chance:
            return normal.popitem(last=False)[0]
        for queue in self.queues.values():
            if queue:
                return queue.popitem(last=False)[0]
        return None

    # --- backends ---------------------------------------------------------------------------------

    def pool_changed(self) -> None:
        """Called when the service's pool or the pool's nodes have changed. Close connections to
        removed nodes that are idle or not yet established, and serve the waiting requests."""
        for backend in (*self.bored, *self.pending.values()):
            if not self._in_pool(backend):
                backend.close("invalid_generation")
        # A selector may have sent requests here although the service doesn't listen.
        if self.service.enabled or self.waiting():
            self.spawn_backends()

    def _in_pool(self, backend: BackendHTTP) -> bool:
        pool = self.service.pool
        return pool is not None and pool is backend.pool and backend.ipport in pool.used

    def spawn_backends(self) -> None:
        """Open the connections that are needed beyond those that are idle or pending."""
        pool = self.service.pool
        wanted = self.waiting() + self.service.connect_ahead - len(self.bored)
        if wanted <= 0 or pool is None:
            return
        now, pending = time.monotonic(), list(self.pending.values())
        overdue = [
            each
            for each in pending
            if wanted > len(pending)
            and each.state == "connecting"
            and each.created <= now - CONNECT_SECONDS
        ]
        for each in overdue:
            del self.pending[each.ipport]
        lacking = wanted - sum(each.created > now - QUICK_SECONDS for each in pending)
        if lacking > 0:
            self._connect(pool, min(lacking, MAX_NEW_CONNECTIONS))
        for each in overdue:
            each.close("connect_timeout")
        if self.pending and not self._will_check_again:
            self._will_check_again = True
            self.server.loop.add_timer(RETRY_SECONDS, self._check_again)

    def _check_again(self) -> None:
        self._will_check_again = False
        self.spawn_backends()

    def _connect(self, pool: Pool, count: int) -> None:
        for node in random.sample(pool.nodes, len(pool.nodes)):
            if node.name in self.blocked or node.name in self.pending:
                continue
            backend = BackendHTTP.open(self, node, GIVE_UP_SECONDS)
            if backend is None:
                self._block(node.name)
            else:
                self.pending[node.name] = backend
                count -= 1
                if not count:
                    break

    def register_boredom(self, backend: BackendHTTP) -> None:
        self._no_longer_pending(backend)
        if not self._in_pool(backend):
            return backend.close("invalid_generation")
        if 0 < self.service.max_backend_uses < backend.use_count:
            return backend.close("pool_requested_closure")
        if backend.use_count and self.waiting() and backend.has_ended():
            return
        if (exchange := self._next_client()) is not None:
            backend.assign(exchange)
        elif self.server.stopping or (
            backend.use_count and len(self.bored) >= self.service.backend_persist_cache
        ):
            backend.close("too_many_bored")
        elif backend.has_attention:
            self.bored.appendleft(backend)
        else:
            self.bored.append(backend)
        if not backend.use_count:
            self.spawn_backends()  # Its node may get another connection now.

    def _block(self, name: str) -> None:
        """Don't connect to a node for a second."""

        def unblock() -> None:
            self.blocked.discard(name)
            del self.ended_unused[name]
            self.spawn_backends()

        self.blocked.add(name)
        self.server.loop.add_timer(RETRY_SECONDS, unblock)

    def note_backend_close(self, backend: BackendHTTP) -> None:
        """Called when a backend is closed, by either side."""
        name = backend.ipport
        was_free = backend in self.bored or self.pending.get(name) is backend
        self._no_longer_pending(backend)
        if backend in self.bored:
            self.bored.remove(backend)
        if backend.unreachable:
            self._block(name)
        elif backend.use_count:
            del self.ended_unused[name]
        elif was_free and backend.age() < RETRY_SECONDS and self._in_pool(backend):
            # A restart of the backend closes some, too. Retrying at once could go on forever.
            self.ended_unused[name] += 1
            if self.ended_unused[name] >= MAX_UNUSED:
                self._block(name)
        self.spawn_backends()

    def _no_longer_pending(self, backend: BackendHTTP) -> None:
        if self.pending.get(backend.ipport) is backend:
            del self.pending[backend.ipport]
