"""Services: what the parameters of one are, and its listener."""

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
"""The first is the two that it sets, the other may be a service that comes later."""


def written(value: object) -> str:
    """A parameter's value, as it is written in the language."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return ",".join(map(written, cast("tuple[object, ...]", value))) or ","
    if isinstance(value, float):
        return str(value).removesuffix(".0")
    return str(getattr(value, "name", value))


class TCPListener(Listener):
    def __init__(self, service: Service, sock: socket.socket) -> None:
        super().__init__(sock, self.enter, service.server.loop)
        self.service = service
        self.created = time.monotonic()
        self.entered = 0
        """How many connections it has taken in."""

    def enter(self, connection: socket.socket, address: object) -> None:
        self.entered += 1
        service = self.service
        if service.role == "management":
            ClientManage(service.server, connection)
            return
        if service.client_sndbuf_size:
            size = min(service.client_sndbuf_size, 1 << 30)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)
        Client(service, connection)

    def stop(self, reason: str) -> None:
        """Take in those who are in the queue of the kernel, who would be lost, and close."""
        for _ in range(2 * BACKLOG):
            before = self.entered
            self.event_read()
            if self.entered == before:
                break
        if self.sock is not None:
            # Its address is free at once then, while close(2) waits for the end of the batch.
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
        """What plugins are told by `SET service.plugin.key` and `SET service.extra.key`."""
        self.removed_headers: list[str] = []
        self.inserted_headers: list[tuple[str, str]] = []
        self.balancer = Balancer(self)
        self.reproxying = Reproxying(self)
        self.trusts = lru_cache(1000)(self._trusts)
        """Whether what a client of an address says of others is believed."""
        for key in PARAMETERS:  # What is asked of each request is found sooner at the object.
            setattr(self, key, getattr(self, key))

    # --- setting ----------------------------------------------------------------------------------

    def set(self, key: str, text: str) -> None:
        """Carry out `SET service.key = text`. Raises `LanguageError`."""
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
        self.server.idle.look_at(0)
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
                    setattr(self, key, value)  # A pool or a folder stays.

    def _set_listen(self, listen: str) -> None:
        if self.enabled and listen != self.listen:
            # The new one first: if it can't be had, all stays as it was.
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

    def _set_reproxy_cache_maxsize(self, maxsize: int) -> None:
        self.reproxying.trim_cache(maxsize)

    def _own_pool(self, key: str) -> Pool:
        """The pool, of which `key` is set; an old habit makes one of its own, as long as none was
        made by command."""
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
        """Listen, if it has an address to listen on. Raises `LanguageError`."""
        if self.enabled:
            raise LanguageError(f"service {self.name} is already enabled")
        if self.listen is not None:
            self.listener = self._open(self.listen)
        self.enabled = True
        if self.role == "reverse_proxy":
            self.balancer.spawn_backends()

    def _open(self, listen: str) -> TCPListener:
        host, port = address(listen)
        if not host:
            # Whoever may speak to the management port may do all that this process may.
            host = "127.0.0.1" if self.role == "management" else "0.0.0.0"
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            sock = socket.create_server((host, port), family=family, backlog=BACKLOG)
        except OSError as error:
            raise LanguageError(
                f"Can't start service '{self.name}' on {listen}: Error creating listening socket:"
                f" {os.strerror(error.errno or 0)}"
            ) from None
        tune(sock)  # The accepted ones inherit it.
        return TCPListener(self, sock)

    def disable(self) -> None:
        """Listen no longer; connections that are there go on. Raises `LanguageError`."""
        if not self.enabled:
            raise LanguageError(f"service {self.name} is already disabled")
        if self.role == "management":
            raise LanguageError("can't disable management service")
        self.enabled = False
        if self.listener is not None:
            self.listener.stop("disabled")
            self.listener = None

    # --- what requests ask it ---------------------------------------------------------------------

    def _trusts(self, ip: str) -> bool:
        if self.always_trusted or not self.trusted_upstream_proxies:
            return self.always_trusted
        try:
            address = ipaddress.ip_address(ip)
        except ValueError:
            return False
        return any(address in each for each in self.trusted_upstream_proxies)

    def munge_headers(self, head: Head) -> None:
        """Carry out the HEADER commands."""
        for name in self.removed_headers:
            head.drop(name)
        for name, value in self.inserted_headers:
            head.set(name, wire(value))

    # --- telling ----------------------------------------------------------------------------------

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
        """The commands that make it what it is."""
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
        # A new service isn't enabled: to disable it would be an error.
        last = f"ENABLE {self.name}" if self.enabled else f"# DISABLE {self.name}"
        return [f"CREATE SERVICE {self.name}", *(f"  {line}" for line in lines), last]
