"""Services: their parameters and their listeners."""

from __future__ import annotations

import ipaddress
import os
import socket
import time
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Final, cast

from danga_raw import Listener
from examples.perlbal.backends import tune
from examples.perlbal.balancer import Balancer
from examples.perlbal.clients import Client
from examples.perlbal.heads import Head, wire
from examples.perlbal.management import ClientManage
from examples.perlbal.parameters import LEFT_OUT, PARAMETERS, LanguageError, Parameters, address
from examples.perlbal.reproxy import Reproxying

if TYPE_CHECKING:
    from examples.perlbal.plugins import Plugin
    from examples.perlbal.pools import Pool
    from examples.perlbal.server import Server

BACKLOG: Final = 1024
NOT_DUMPED: Final = ("persist_client_timeout", "default_service")
"""The first only sets two others; the second may name a service that is created later."""


def written(value: object) -> str:
    """A parameter's value in the language."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return ",".join(map(written, cast("tuple[object, ...]", value))) or ","
    if isinstance(value, float):
        return str(value).removesuffix(".0")
    return str(getattr(value, "name", value))


class TCPListener(Listener):
    def __init__(self, service: Service, sock: socket.socket) -> None:
        super().__init__(sock, self.accept_client, service.server.loop)
        self.service = service
        self.created = time.monotonic()
        self.accepted_count = 0
        """How many connections it has accepted."""

    def accept_client(self, connection: socket.socket, address: object) -> None:
        self.accepted_count += 1
        service = self.service
        if service.role == "management":
            ClientManage(service.server, connection)
            return
        if service.client_sndbuf_size:
            size = min(service.client_sndbuf_size, 1 << 30)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)
        Client(service, connection)

    def stop(self, reason: str) -> None:
        """Accept the connections in the kernel's queue, which would be lost, and close."""
        for _ in range(2 * BACKLOG):
            before = self.accepted_count
            self.event_read()
            if self.accepted_count == before:
                break
        if self.sock is not None:
            # This frees the address at once; close(2) waits for the end of the batch.
            with suppress(OSError):
                self.sock.shutdown(socket.SHUT_RDWR)
        self.close(reason)

    def as_string(self) -> str:
        text = super().as_string()
        return (
            f"Perlbal::{text}: listening on {self.service.listen} for service '{self.service.name}'"
        )


class Service(Parameters):
    def __init__(self, server: Server, name: str) -> None:
        self.server = server
        self.name = name
        self.enabled = False
        self.listener: TCPListener | None = None
        self.plugins: list[Plugin] = []
        self.extra: dict[str, str] = {}
        """The settings of plugins: `SET service.plugin.key` and `SET service.extra.key`."""
        self.removed_headers: list[str] = []
        self.inserted_headers: list[tuple[str, str]] = []
        self.balancer = Balancer(self)
        self.reproxying = Reproxying(self)
        self.trusts = lru_cache(1000)(self._trusts)
        """Whether the forwarding headers of a client at this address are trusted."""
        for key in PARAMETERS:  # Every request reads some; instance attributes are found faster.
            setattr(self, key, getattr(self, key))

    # --- setting ----------------------------------------------------------------------------------

    def set(self, key: str, text: str) -> None:
        """Run `SET service.key = text`. Raises `LanguageError`."""
        if key in ("nodefile", "balance_method"):
            return self._own_pool(key).set(key, text)
        if key in LEFT_OUT:
            raise LanguageError(f"The '{key}' option is not supported here")
        parameter = self.server.parameters.get(key)
        if parameter is None:
            if not key.startswith("extra.") and not any(key in p.settings for p in self.plugins):
                raise LanguageError(f"Unknown service parameter '{key}'")
            self.extra[key] = text
            return
        if not parameter.is_for(self.role):
            raise LanguageError(
                f"The '{key}' option can only be set on a '{parameter.role}' service"
            )
        value = parameter.read(self, key, text)
        change = getattr(self, f"_set_{key}", None)
        if change is not None:
            change(value)
        setattr(self, key, value)
        self.trusts.cache_clear()
        self.server.idle.check_at(0)
        self.balancer.pool_changed()

    def _set_role(self, role: str) -> None:
        if self.enabled and role != self.role:
            raise LanguageError(
                f"service {self.name} is enabled; disable it before its role changes"
            )
        self.role = role
        for key, parameter in self.server.parameters.items():
            if parameter.is_for(role) and key != "role":
                if key in self.server.defaults:
                    self.set(key, self.server.defaults[key])
                elif (value := getattr(Service, key, 0)) not in (None, "", ()):
                    setattr(self, key, value)  # A pool or a directory is kept.

    def _set_listen(self, listen: str) -> None:
        if self.enabled and listen != self.listen:
            # Open the new one first: if that fails, nothing has changed.
            listener = self._open(listen)
            if self.listener is not None:
                self.listener.stop("listens elsewhere")
            self.listener = listener

    def _set_persist_client_timeout(self, seconds: int) -> None:
        for key in ("persist_client_idle_timeout", "idle_timeout"):
            self.set(key, str(seconds))

    def _set_pool(self, pool: Pool) -> None:
        if self.pool is not None:
            self.pool.users.remove(self)
        pool.users.append(self)

    def _own_pool(self, key: str) -> Pool:
        """The pool whose `key` is being set. A service without a pool gets its own, unless a
        command has created one."""
        if self.pool is None:
            if self.server.pools_by_command:
                raise LanguageError(
                    f"ERROR: Attempt to vivify pool {self.name}_pool but one or more pools\n"
                    f"       have already been created manually.  Please set {key} on a\n"
                    "       previously created pool."
                )
            self.server.create("pool", f"{self.name}_pool")
            self.set("pool", f"{self.name}_pool")
        assert self.pool is not None
        return self.pool

    # --- listening --------------------------------------------------------------------------------

    def enable(self) -> None:
        """Start listening, if it has an address. Raises `LanguageError`."""
        if self.enabled:
            raise LanguageError(f"service {self.name} is already enabled")
        if self.listen is not None:
            self.listener = self._open(self.listen)
        self.enabled = True
        self.balancer.spawn_backends()

    def _open(self, listen: str) -> TCPListener:
        host, port = address(listen)
        if not host:
            # Anyone who can connect to the management port can do what this process can.
            host = "127.0.0.1" if self.role == "management" else "0.0.0.0"
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            sock = socket.create_server((host, port), family=family, backlog=BACKLOG)
        except OSError as error:
            raise LanguageError(
                f"Can't start service '{self.name}' on {listen}: Error creating listening socket:"
                f" {os.strerror(error.errno or 0)}"
            ) from None
        tune(sock)  # Accepted sockets inherit the options.
        return TCPListener(self, sock)

    def disable(self) -> None:
        """Stop listening; open connections continue. Raises `LanguageError`."""
        if not self.enabled:
            raise LanguageError(f"service {self.name} is already disabled")
        if self.role == "management":
            raise LanguageError("can't disable management service")
        self.enabled = False
        if self.listener is not None:
            self.listener.stop("disabled")
            self.listener = None

    # --- requests ---------------------------------------------------------------------------------

    def _trusts(self, ip: str) -> bool:
        if self.always_trusted or not self.trusted_upstream_proxies:
            return self.always_trusted
        try:
            address = ipaddress.ip_address(ip)
        except ValueError:
            return False
        return any(address in each for each in self.trusted_upstream_proxies)

    def munge_headers(self, head: Head) -> None:
        """Apply the HEADER commands to a head."""
        for name in self.removed_headers:
            head.drop(name)
        for name, value in self.inserted_headers:
            head.set(name, wire(value))

    # --- reports ----------------------------------------------------------------------------------

    def report(self) -> list[str]:
        """The answer to `SHOW SERVICE name`."""
        balancer = self.balancer
        lines = [
            f"SERVICE {self.name}",
            f"     listening: {self.listen or '--'}",
            f"          role: {self.role}",
        ]
        if self.role in ("reverse_proxy", "web_server"):
            lines.append(f"  pend clients: {balancer.waiting()}")
            lines.append(f"  pend backend: {len(balancer.pending)}")
            for name, backend in sorted(balancer.pending.items()):
                lines.append(f"   {name} - {backend.state} - {backend.age()}s")
        if self.role == "web_server":
            lines.append(f"        docroot: {self.docroot or ''}")
        if self.role != "reverse_proxy":
            return lines
        if self.reproxy_cache_maxsize:
            lines += self.reproxying.report()
        lines.append(f" connect-ahead: {len(balancer.bored)}/{self.connect_ahead}")
        if self.pool is not None:
            lines += [f"          pool: {self.pool.name}", "         nodes:"]
            for node in self.pool.nodes:
                lines.append(f"                {node.name:<21} {self.pool.used[node.name]:7d}")
        return lines

    def dump(self) -> list[str]:
        """The commands that recreate it."""
        lines: list[str] = []
        for key, parameter in self.server.parameters.items():
            default: object = getattr(Service, key, 0)
            value = getattr(self, key, default)
            if parameter.is_for(self.role) and value != default and key not in NOT_DUMPED:
                lines.append(f"SET {key} = {written(value)}")
        if self.plugins:
            lines.append(f"SET plugins = {', '.join(plugin.name for plugin in self.plugins)}")
        lines += [f"SET {self.name}.{key} = {text}" for key, text in self.extra.items()]
        for plugin in self.plugins:
            lines += plugin.dump(self)
        lines += [f"HEADER {self.name} REMOVE {name}" for name in self.removed_headers]
        for name, value in self.inserted_headers:
            lines.append(f"HEADER {self.name} INSERT {name}: {value}")
        # A new service isn't enabled, so DISABLE would be an error.
        last = f"ENABLE {self.name}" if self.enabled else f"# DISABLE {self.name}"
        return [f"CREATE SERVICE {self.name}", *(f"  {line}" for line in lines), last]
