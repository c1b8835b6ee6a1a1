"""Connections to the hosts of X-REPROXY-URL, shared by all services."""

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
    """The connections to one host of X-REPROXY-URL, and the requests that wait for them."""

    service = None

    def __init__(self, hosts: ReproxyHosts, node: Node) -> None:
        self.hosts = hosts
        self.server = hosts.server
        self.node = node
        self.queue: Queue = OrderedDict()
        self.connecting: BackendHTTP | None = None
        self.bored: list[BackendHTTP] = []
        """The idle connections, the most recently used last."""
        self.was_bored = False
        """Whether a connection has ever been idle."""
        self.connected: set[BackendHTTP] = set()
        self.refused = False
        """Whether it has just refused an additional connection."""

    def serve(self) -> None:
        """Close connections that were idle too long. Give the waiting requests a connection, or
        make them try their next URL."""
        now = time.monotonic()
        limit = now - KEPT_SECONDS
        old = {each for each in self.bored if each.idle_since < limit or each.ends_soon(now)}
        # Remove all before closing any, because each close calls this function again.
        self.bored = [each for each in self.bored if each not in old]
        for each in old:
            each.close("too_close_disconnect")
        while self.queue and self.bored:
            self.register_boredom(self.bored.pop())
        most = self.hosts.limits.get(self.node.name) or self.hosts.limits[""]
        enough = self.refused or most and len(self.connected) >= most
        if not self.queue or self.connecting or self.connected and enough:
            return
        with suppress(OSError, ValueError, OverflowError):
            # As in the original, a host name is looked up synchronously, and IPv4 is preferred.
            found = socket.getaddrinfo(*self.node, type=socket.SOCK_STREAM)
            found.sort(key=lambda info: info[0] != socket.AF_INET)
            node = Node(str(found[0][4][0]), self.node.port)
            self.connecting = BackendHTTP.open(self, node, CONNECT_SECONDS)
        if self.connecting is None:
            self._give_up()

    def _give_up(self) -> None:
        """A connect has failed. If there is no other connection, make all waiting requests try
        their next URL. Otherwise try again at the next `clean`, not in every turn."""
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
        """Close connections that were idle too long. True if the host is no longer used."""
        self.refused = False
        self.serve()
        return not self.connecting and not self.connected


class ReproxyHosts(dict[Node, ReproxyHost]):
    """The hosts in use, shared by all services."""

    def __init__(self, server: Server) -> None:
        super().__init__()
        self.server = server
        self.limits = {"": 0}
        """The most connections to each host, with "" for all other hosts; 0 for no limit."""

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
        (_, rest), *named = self.limits.items()
        lines += [f"SERVER max_reproxy_connections({name}) = {most}" for name, most in named]
        return [*lines, f"SERVER max_reproxy_connections = {rest}"]
