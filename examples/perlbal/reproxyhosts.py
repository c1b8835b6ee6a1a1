"""Connections to the hosts of X-REPROXY-URL, for all services together."""

from __future__ import annotations

import socket
import time
from collections import OrderedDict
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from examples.perlbal.backends import BackendHTTP
from examples.perlbal.pools import Node

if TYPE_CHECKING:
    from examples.perlbal.proxy import Queue
    from examples.perlbal.server import Server

KEPT_SECONDS: Final = 5
CONNECT_SECONDS: Final = 5.0


class ReproxyHost:
    """The connections to one host of X-REPROXY-URL, and who waits for them."""

    service = None

    def __init__(self, hosts: ReproxyHosts, node: Node) -> None:
        self.hosts = hosts
        self.server = hosts.server
        self.node = node
        self.queue: Queue = OrderedDict()
        self.connecting: BackendHTTP | None = None
        self.bored: list[BackendHTTP] = []
        """Those that have nothing to do, the one used last at the end."""
        self.was_bored = False
        """Whether there ever was one of them."""
        self.connected: set[BackendHTTP] = set()
        self.refused = False
        """Whether it has just refused one connection more."""

    def serve(self) -> None:
        """Close what was idle too long, and see that a connection comes for who waits, or that he
        tries his next URL."""
        now = time.monotonic()
        limit = now - KEPT_SECONDS
        old = {each for each in self.bored if each.idle_since < limit or each.ends_soon(now)}
        # First all, as each that is closed comes here again.
        self.bored = [each for each in self.bored if each not in old]
        for each in old:
            each.close("too_close_disconnect")
        while self.queue and self.bored:
            self.register_boredom(self.bored.pop())
        most = self.hosts.most.get(self.node.name) or self.hosts.most[""]
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
            waiting = list(self.queue)
            self.queue.clear()
            for exchange in waiting:
                if not exchange.client.closed:
                    exchange.no_answer()

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
            backend.idle_since = time.monotonic()
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


class ReproxyHosts(dict[Node, ReproxyHost]):
    """The hosts that are made use of, for all services together."""

    def __init__(self, server: Server) -> None:
        super().__init__()
        self.server = server
        self.most = {"": 0}
        """How many connections to each host, and under "" to those that aren't named; 0: any."""

    def __missing__(self, node: Node) -> ReproxyHost:
        if not self:
            self.server.loop.add_timer(1, self._clean)
        host = self[node] = ReproxyHost(self, node)
        return host

    def _clean(self) -> None:
        for node, host in list(self.items()):
            if host.clean():
                del self[node]
        if self:
            self.server.loop.add_timer(1, self._clean)

    def report(self) -> list[str]:
        """The answer to `REPROXY_STATE`."""
        hosts = [(node.name, host) for node, host in self.items()]
        lines = [f"connecting {name} 1" for name, host in hosts if host.connecting]
        lines += [f"bored {name} {len(host.bored)}" for name, host in hosts if host.was_bored]
        lines += [f"clients_queued {name} {len(host.queue)}" for name, host in hosts]
        for name, host in hosts:
            lines.append(f"backends {name} {len(host.connected)}")
            lines += [f"... {backend.as_string()}" for backend in host.connected]
        (_, rest), *named = self.most.items()
        lines += [f"SERVER max_reproxy_connections({name}) = {most}" for name, most in named]
        return [*lines, f"SERVER max_reproxy_connections = {rest}"]
