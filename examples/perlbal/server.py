"""What a running server has: services, pools, plugins, counts, and how it ends."""

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


def tell(text: str, fd: int = 2) -> None:
    """Write to standard error, or another descriptor; it serves as well where nobody reads that,
    be it closed, or a pipe that is full: there what would wait for a reader is lost.
    A print() that failed would be tried again at the end, and be the exit status."""
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
        """Whether a pool was created by command: then none is made by itself any more."""
        self.defaults: dict[str, str] = {}
        """What DEFAULT has set, as it is written."""
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
        """Until when a node isn't verified, as it was found not to know how."""
        self.verified_directories: set[str] = set()
        self.requests = 0
        self.usage: tuple[float, float, int] = (0.0, 0.0, 0)
        """User and system time, and requests, when PROC last told them."""
        self.clients = 0
        """The connections of HTTP clients that are open."""
        self.started = int(time.time())
        self.pidfile: str | None = None
        self.running = False
        self.ended = False
        """Whether it has been told to end at once."""
        self.stopping = False
        """Whether a graceful shutdown is going on."""

    def log(self, message: str) -> None:
        tell(message)

    # --- what there is ----------------------------------------------------------------------------

    @property
    def commands(self) -> Mapping[str, Command]:
        """The commands by their first words, with those of the loaded plugins."""
        return ChainMap(COMMANDS, *(plugin.commands() for plugin in self.plugins.values()))

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        """The parameters of services, with those of the loaded plugins."""
        return ChainMap(*(plugin.parameters for plugin in self.plugins.values()), PARAMETERS)

    def create(self, kind: str, name: str) -> None:
        """Make a "service" or a "pool" of this name. Raises `LanguageError` if there is one."""
        if name in self.services:
            raise LanguageError(f"service '{name}' already exists")
        if name in self.pools:
            raise LanguageError(f"pool '{name}' already exists")
        if kind == "service":
            self.services[name] = Service(self, name)
        else:
            self.pools[name] = Pool(name, self.loop)

    def sockets(self) -> Iterator[Socket]:
        """All that are open, by number."""
        for _, each in sorted(self.loop.descriptor_map.items()):
            if not each.closed:
                yield each

    # --- running and ending -----------------------------------------------------------------------

    def heed_signals(self) -> None:
        """From now on, and before the first service listens: what they ask for is done when the
        loop runs."""
        self.loop.add_signal_handler(signal.SIGTERM, self.shut_down_gracefully)
        self.loop.add_signal_handler(signal.SIGINT, self.stop)
        self.loop.add_signal_handler(signal.SIGHUP, lambda: None)
        self.loop.add_signal_handler(signal.SIGUSR1, self._log_what_goes_on)

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
                except OSError as error:  # Waiting failed, for want of memory maybe.
                    self.log(str(error))
                    time.sleep(1)
        finally:
            if self.pidfile:
                with suppress(OSError):
                    os.unlink(self.pidfile)
            for each in list(self.sockets()):
                each.close("shutdown")

    def _log_what_goes_on(self) -> None:
        commands = [f"show service {name}" for name in sorted(self.services)]
        for command in (*commands, "states", "queues"):
            self.language.run(command, self.log, Context(verbose=False))

    def stop(self) -> None:
        self.ended = True
        self.loop.stop()

    def shut_down_gracefully(self, seconds: int = 0) -> None:
        """Take nobody in any more, let those finish who are at something, and end; after so many
        seconds at the latest, if that isn't 0."""
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
