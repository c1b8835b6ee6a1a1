"""The state of a running server (services, pools, plugins, counts), and its shutdown."""

from __future__ import annotations

import os
import select
import signal
import time
from collections import ChainMap
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from danga_raw import Loop, Socket, log_exception
from examples.perlbal.backends import BackendHTTP, Nodes
from examples.perlbal.clients import Client, Exchange, IdleClients
from examples.perlbal.commands import COMMANDS
from examples.perlbal.language import Command, Context, Language
from examples.perlbal.parameters import PARAMETERS, LanguageError, Parameter
from examples.perlbal.pools import Pool
from examples.perlbal.proxy import ProxyExchange
from examples.perlbal.reproxyhosts import ReproxyHosts
from examples.perlbal.selector import SelectorExchange
from examples.perlbal.services import Service, TCPListener
from examples.perlbal.webserver import WebExchange

if TYPE_CHECKING:
    from examples.perlbal.plugins import Plugin


def write_line(text: str, fd: int = 2) -> None:
    """Write a line to standard error or another descriptor, and never wait: if it is closed or is a
    full pipe, the rest is lost. If print() failed, Python would try again at exit, and that would
    set the exit status."""
    data = os.fsencode(f"{text}\n")
    with suppress(OSError):
        while data and select.select((), (fd,), (), 0)[1]:
            data = data[os.write(fd, data[: select.PIPE_BUF]) :]


class Server:
    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.services: dict[str, Service] = {}
        self.pools: dict[str, Pool] = {}
        self.pools_by_command = False
        """Whether a command has created a pool. Then none is created implicitly any more."""
        self.defaults: dict[str, str] = {}
        """The values set by DEFAULT, as text."""
        self.plugins: dict[str, Plugin] = {}
        self.exchanges: dict[str, type[Exchange]] = {
            "reverse_proxy": ProxyExchange,
            "web_server": WebExchange,
            "selector": SelectorExchange,
        }
        self.language = Language(self)
        self.reproxy_hosts = ReproxyHosts(self)
        self.idle = IdleClients(self)
        self.nodes = Nodes()
        self.no_verify: dict[str, float] = {}
        """Nodes that don't support OPTIONS, and until when they are used unverified."""
        self.verified_directories: set[str] = set()
        self.requests = 0
        self.usage: tuple[float, float, int] = (0.0, 0.0, 0)
        """User time, system time and requests at the last PROC."""
        self.clients = 0
        """The number of open connections from HTTP clients."""
        self.started = int(time.time())
        self.pidfile: str | None = None
        self.running = False
        self.ended = False
        """Whether it was told to end at once."""
        self.stopping = False
        """Whether a graceful shutdown is in progress."""

    def log(self, message: str) -> None:
        write_line(message)

    # --- services, pools, commands ----------------------------------------------------------------

    @property
    def commands(self) -> Mapping[str, Command]:
        """The commands by first word, including those of the loaded plugins."""
        return ChainMap(COMMANDS, *(plugin.commands() for plugin in self.plugins.values()))

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        """The parameters of services, including those of the loaded plugins."""
        return ChainMap(*(plugin.parameters for plugin in self.plugins.values()), PARAMETERS)

    def create(self, kind: str, name: str) -> None:
        """Create a "service" or a "pool". Raises `LanguageError` if the name is taken."""
        if name in self.services:
            raise LanguageError(f"service '{name}' already exists")
        if name in self.pools:
            raise LanguageError(f"pool '{name}' already exists")
        if kind == "service":
            self.services[name] = Service(self, name)
        else:
            self.pools[name] = Pool(name, self.loop)

    def sockets(self) -> Iterator[Socket]:
        """The open sockets, in the order of their descriptors."""
        for _, each in sorted(self.loop.descriptor_map.items()):
            if not each.closed:
                yield each

    # --- running and ending -----------------------------------------------------------------------

    def install_signal_handlers(self) -> None:
        """Install the signal handlers, which run in the loop. Called before the first service
        listens, so that no signal is lost."""
        self.loop.add_signal_handler(signal.SIGTERM, self.shut_down_gracefully)
        self.loop.add_signal_handler(signal.SIGINT, self.stop)
        self.loop.add_signal_handler(signal.SIGHUP, lambda: None)
        self.loop.add_signal_handler(signal.SIGUSR1, self._log_status)

    def run(self) -> None:
        self.running = True
        self.loop.on_exception = log_exception
        if self.pidfile:
            try:
                with open(self.pidfile, "w", encoding="ascii") as file:
                    file.write(f"{os.getpid()}\n")
            except (OSError, ValueError) as error:
                self.log(f"couldn't create pidfile '{self.pidfile}': {error}")
                self.pidfile = None
        try:
            while True:
                try:
                    self.loop.run()
                    break
                except OSError as error:  # The wait failed, perhaps for lack of memory.
                    self.log(str(error))
                    time.sleep(1)
        finally:
            if self.pidfile:
                with suppress(OSError):
                    os.unlink(self.pidfile)
            for each in list(self.sockets()):
                each.close("shutdown")

    def _log_status(self) -> None:
        commands = [f"show service {name}" for name in sorted(self.services)]
        for command in (*commands, "states", "queues"):
            self.language.run(command, self.log, Context(verbose=False))

    def stop(self) -> None:
        self.ended = True
        self.loop.stop()

    def shut_down_gracefully(self, seconds: int = 0) -> None:
        """Stop listening, let the requests in progress finish, and end; after `seconds` at the
        latest, unless that is 0."""
        if seconds:
            self.loop.add_timer(seconds, self.stop)
        self.stopping = True
        for service in self.services.values():
            service.connect_ahead = 0
        for each in list(self.sockets()):
            if isinstance(each, TCPListener):
                each.stop("graceful_death")
        for each in list(self.sockets()):
            if isinstance(each, (Client, BackendHTTP)) and not each.closed:
                each.die_gracefully()
        self._stop_if_alone()

    def client_closed(self) -> None:
        self.clients -= 1
        self._stop_if_alone()

    def _stop_if_alone(self) -> None:
        if self.stopping and not self.clients:
            self.loop.stop()
