"""Services: what the parameters of one are, and its listener."""

from __future__ import annotations

import ipaddress
import socket
from typing import TYPE_CHECKING, Final

from danga_raw import Listener
from examples.perlbal.balancer import Balancer
from examples.perlbal.clients import Client
from examples.perlbal.heads import Head
from examples.perlbal.management import ManagementConnection
from examples.perlbal.parameters import PARAMETERS, LanguageError, Netmask, Value, address, boolean
from examples.perlbal.reproxy import ReproxyCache

if TYPE_CHECKING:
    from examples.perlbal.plugins import Plugin
    from examples.perlbal.pools import Pool
    from examples.perlbal.server import Server

BACKLOG: Final = 1024
_TRUST_CACHE: Final = 1000


class TCPListener(Listener):
    """The listening socket of a service."""

    __slots__ = ("created", "entered", "service")

    def __init__(self, service: Service, sock: socket.socket) -> None:
        super().__init__(sock, self.enter, service.server.loop)
        self.service = service
        self.created = service.server.now()
        self.entered = 0
        """How many connections it has taken in."""

    def enter(self, connection: socket.socket, address: object) -> None:
        """Make an object of a new connection."""
        self.entered += 1
        service = self.service
        if service.role == "management":
            ManagementConnection(service.server, connection)
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
        try:
            # Its address is free at once then, while close(2) waits for the end of the batch.
            if self.sock is not None:
                self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.close(reason)

    def as_string(self) -> str:
        text = super().as_string().replace(type(self).__name__, "Perlbal::TCPListener", 1)
        return f"{text}: listening on {self.service.listen} for service '{self.service.name}'"


class Service:
    """A named service. What can be set of it has the names of the language."""

    # Set by the language: see parameters.py for what they are and their defaults.
    role: str
    listen: str | None = None
    persist_client: int = 0
    persist_client_idle_timeout: int = 30
    idle_timeout: int = 30
    always_trusted: int = 0
    trusted_upstream_proxies: tuple[Netmask, ...] = ()
    max_chunked_request_size: int
    client_sndbuf_size: int = 0
    server_tokens: int = 1
    persist_backend: int
    backend_persist_cache: int
    connect_ahead: int = 0
    max_backend_uses: int
    verify_backend: int
    verify_backend_path: str
    buffer_size: int
    buffer_size_reproxy_url: int
    buffer_backend_connect: int
    buffer_uploads: int
    buffer_uploads_path: str | None = None
    buffer_upload_threshold_time: int
    buffer_upload_threshold_size: int
    buffer_upload_threshold_rate: int
    queue_relief_size: int
    queue_relief_chance: int
    high_priority_cookie: str = ""
    high_priority_cookie_contents: str = ""
    blind_proxy: int
    enable_reproxy: int = 0
    enable_error_retries: int
    error_retry_schedule: str
    docroot: str | None = None
    index_files: tuple[str, ...]
    dirindexing: int
    enable_put: int
    enable_delete: int
    enable_md5: int
    max_put_size: int
    min_put_directory: int
    enable_concatenate_get: int
    latency: int = 0

    def __init__(self, server: Server, name: str) -> None:
        self.server = server
        self.name = name
        self.role = ""
        self.enabled = False
        self.listener: TCPListener | None = None
        self.pool: Pool | None = None
        self.default_service: Service | None = None
        self.plugins: list[Plugin] = []
        self.extra: dict[str, str] = {}
        """What plugins are told by `SET service.plugin.key` and `SET service.extra.key`."""
        self.as_written: dict[str, str] = {}
        """The text of each parameter that was set or has a default, for DUMPCONFIG."""
        self.removed_headers: list[str] = []
        self.inserted_headers: list[tuple[str, str]] = []
        self.balancer = Balancer(self)
        self.reproxy_cache: ReproxyCache | None = None
        self._trust: dict[str, bool] = {}

    # --- setting ----------------------------------------------------------------------------------

    def set(self, key: str, text: str) -> None:
        """Carry out `SET service.key = text`. Raises `LanguageError`."""
        if key in ("nodefile", "balance_method"):
            self._own_pool().set(key, text)
            return
        parameter = PARAMETERS.get(key) or self.server.extra_parameters.get(key)
        if parameter is None:
            if key.startswith("extra."):
                self.extra[key] = text
                return
            for plugin in self.plugins:
                if key in plugin.settings:
                    self.extra[key] = text
                    return
            raise LanguageError(f"Unknown service parameter '{key}'")
        if parameter.role not in ("*", self.role):
            raise LanguageError(
                f"The '{key}' option can only be set on a '{parameter.role}' service"
            )
        value = parameter.read(key, self.name, text)
        self._store(key, value)
        self.as_written[key] = text

    def _store(self, key: str, value: Value) -> None:
        match key, value:
            case "role", str():
                self._set_role(value)
            case "listen", str():
                self._set_listen(value)
            case "pool", str():
                self._set_pool(value)
            case "default_service", str():
                if value not in self.server.services:
                    raise LanguageError(f"Service '{value}' not found")
                self.default_service = self.server.services[value]
            case "persist_client_timeout", int():
                self.persist_client_idle_timeout = self.idle_timeout = value
                for each in ("persist_client_idle_timeout", "idle_timeout"):
                    self.as_written[each] = str(value)
            case "reproxy_cache_maxsize", int():
                if value:
                    self.reproxy_cache = self.reproxy_cache or ReproxyCache()
                    self.reproxy_cache.set_maxsize(value)
                else:
                    self.reproxy_cache = None
            case _:
                setattr(self, key, value)
        if key in ("always_trusted", "trusted_upstream_proxies"):
            self._trust.clear()
        elif key in ("idle_timeout", "persist_client_idle_timeout", "persist_client_timeout"):
            self.server.idle.look_soon()
        elif key in ("connect_ahead", "pool") and self.enabled:
            self.balancer.spawn_backends()

    def _set_role(self, role: str) -> None:
        if self.enabled and role != self.role:
            raise LanguageError(
                f"service {self.name} is enabled; disable it before its role changes"
            )
        self.role = role
        for key, parameter in (PARAMETERS | self.server.extra_parameters).items():
            if parameter.role in ("*", role):
                text = self.server.defaults.get(key, parameter.default)
                if text is not None and key != "role":
                    self.set(key, text)

    def _set_listen(self, listen: str) -> None:
        if self.enabled and listen != self.listen:
            # The new one first: if it can't be had, all stays as it was.
            listener = self._open(listen)
            if self.listener is not None:
                self.listener.stop("listens elsewhere")
            self.listener = listener
        self.listen = listen

    def _set_pool(self, name: str) -> None:
        pool = self.server.pools.get(name)
        if pool is None:
            raise LanguageError(f"Pool '{name}' not found")
        if self.pool is not None:
            self.pool.services -= 1
        self.pool = pool
        pool.services += 1
        self.balancer.generation += 1

    def _own_pool(self) -> Pool:
        """The pool; an old habit makes one of its own, as long as none was made by command."""
        if self.pool is None:
            if self.server.pools_by_command:
                raise LanguageError(
                    f"Attempt to vivify pool {self.name}_pool but one or more pools have already"
                    " been created manually. Please set it on a previously created pool."
                )
            self.server.create_pool(f"{self.name}_pool")
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
        where = address(listen)
        assert where is not None
        host, port = where
        if not host:
            # Whoever may speak to the management port may do all that this process may.
            host = "127.0.0.1" if self.role == "management" else "0.0.0.0"
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            sock = socket.socket(family, socket.SOCK_STREAM)
            try:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                # The accepted ones inherit it: a request or an answer is written at once.
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.bind((host, port))
                sock.listen(BACKLOG)
                return TCPListener(self, sock)
            except BaseException:
                sock.close()
                raise
        except OSError as error:
            raise LanguageError(
                f"Can't start service '{self.name}' on {listen}:"
                f" Error creating listening socket: {error.strerror}"
            ) from None

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

    def trusts(self, ip: str) -> bool:
        """Whether what a client of that address says of others is believed."""
        if self.always_trusted:
            return True
        if not self.trusted_upstream_proxies:
            return False
        if (known := self._trust.get(ip)) is not None:
            return known
        try:
            address = ipaddress.ip_address(ip)
            found = any(address in each for each in self.trusted_upstream_proxies)
        except ValueError:
            found = False
        if len(self._trust) >= _TRUST_CACHE:
            self._trust.clear()
        self._trust[ip] = found
        return found

    def munge_headers(self, head: Head) -> None:
        """Carry out the HEADER commands."""
        for name in self.removed_headers:
            head.drop(name)
        for name, value in self.inserted_headers:
            head.set(name, value)

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
            lines.append(f"  pend clients: {balancer.waiting_count()}")
            lines.append(f"  pend backend: {len(balancer.pending)}")
            for name, backend in sorted(balancer.pending.items()):
                lines.append(f"   {name} - {backend.state} - {backend.age()}s")
        if self.role == "web_server":
            lines.append(f"        docroot: {self.docroot or ''}")
        if self.role != "reverse_proxy":
            return lines
        if self.reproxy_cache is not None:
            lines += self.reproxy_cache.report()
        lines.append(f" connect-ahead: {len(balancer.bored)}/{self.connect_ahead}")
        if self.pool is not None:
            lines += [f"          pool: {self.pool.name}", "         nodes:"]
            for node in self.pool.nodes:
                lines.append(f"                {node.name:<21} {self.pool.used[node.name]:7d}")
        return lines

    def dump(self) -> list[str]:
        """The commands that make it what it is."""
        known = PARAMETERS | self.server.extra_parameters
        first = [key for key in ("role", "listen", "pool") if key in self.as_written]
        lines: list[str] = []
        for key in first + sorted(set(self.as_written) - set(first)):
            parameter = known.get(key)
            text = self.as_written[key]
            if parameter is None or not parameter.dumped or parameter.role not in ("*", self.role):
                continue
            value = parameter.read(key, self.name, text)
            if parameter.default is not None and (
                value == parameter.read(key, self.name, parameter.default)
            ):
                continue
            if parameter.read is boolean:
                text = "on" if value else "off"
            elif isinstance(value, (int, str)):
                text = str(value) or "/"
            lines.append(f"SET {key} = {text}")
        if self.plugins:
            lines.append(f"SET plugins = {', '.join(plugin.name for plugin in self.plugins)}")
        lines += [f"SET {self.name}.{key} = {text}" for key, text in self.extra.items()]
        for plugin in self.plugins:
            lines += plugin.dump(self)
        lines += [f"HEADER {self.name} REMOVE {name}" for name in self.removed_headers]
        for name, value in self.inserted_headers:
            lines.append(f"HEADER {self.name} INSERT {name}: {value}")
        return lines
