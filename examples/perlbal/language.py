"""The language of the configuration file and the management port, a line at a time."""

from __future__ import annotations

import ipaddress
import math
import os
import re
import resource
import socket
import struct
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from examples.perlbal.backends import BackendHTTP
from examples.perlbal.clients import Client
from examples.perlbal.heads import wire
from examples.perlbal.parameters import PARAMETERS, LanguageError
from examples.perlbal.plugins import LEFT_OUT, PLUGINS
from examples.perlbal.webserver import MIME_TYPES

if TYPE_CHECKING:
    from examples.perlbal.pools import Pool
    from examples.perlbal.server import Server
    from examples.perlbal.services import Service

    Out = Callable[[str], object]

VERSION: Final = "1.80"
"""The version of Perlbal whose language this is."""

_NODE: Final = r"(\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}|\[[\da-f:.]+\])(?::(\d{1,5}))?"
_LEFT_OUT: Final = {
    "xs": "there is no Perl here",
    "leaks": "there is no Perl here",
    "gladiator": "there is no Perl here",
    "varsize": "there is no Perl here",
    "obj": "there is no Perl here",
    "track": "there is no Perl here",
    "prof": "use a profiler of Python's",
    "crash": "it is not done on purpose",
    "state": "states aren't recorded",
}


class Context:
    """What commands leave to those behind them: one for each file and connection."""

    __slots__ = ("last_created", "verbose")

    def __init__(self, verbose: bool) -> None:
        self.verbose = verbose
        """Whether success is told."""
        self.last_created = ""
        """The service or pool that SET means when it names none."""


class Command:
    """One command that is being carried out."""

    __slots__ = ("context", "language", "out", "silent", "text", "word")

    def __init__(
        self, language: Language, word: str, text: str, out: Out, context: Context
    ) -> None:
        self.language = language
        self.word = word
        self.text = text
        """In lower case up to the first "="."""
        self.out = out
        self.context = context
        self.silent = False
        """Whether it has answered already, or is to say nothing."""

    def parse(self, pattern: str, usage: str = "") -> tuple[str, ...]:
        """The groups of a pattern that fits the whole command, "" for each that isn't there.
        Raises `LanguageError`."""
        found = re.fullmatch(pattern, self.text, re.ASCII)
        if found is None:
            raise LanguageError(usage or f"Invalid syntax to '{self.word}' command")
        return tuple(group or "" for group in found.groups())

    def no_options(self) -> None:
        if self.text != self.word:
            raise LanguageError(f"The '{self.word}' command takes no arguments")

    def list(self, lines: list[str]) -> None:
        """Answer with a list."""
        for line in lines:
            self.out(line)
        self.out(".")
        self.silent = True

    def say(self, line: str) -> None:
        self.out(line)
        self.silent = True

    def service_in_context(self) -> Service:
        name = self.context.last_created
        if not name:
            raise LanguageError(
                "No service name in context from CREATE SERVICE <name> or USE <service_name>"
            )
        service = self.language.server.services.get(name)
        if service is None:
            raise LanguageError(f"Non-existent service '{name}'")
        return service


def _interface_address(name: str) -> str:
    """The IPv4 address of a network interface, by ioctl(SIOCGIFADDR), which is Linux's."""
    try:
        from fcntl import ioctl

        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            answer = ioctl(sock.fileno(), 0x8915, struct.pack("256s", name.encode()[:15]))
        return socket.inet_ntoa(answer[20:24])
    except OSError:
        raise LanguageError(f"Can't find IP of interface '{name}'") from None


def _variable(found: re.Match[str]) -> str:
    kind, colon, value = found[1].partition(":")
    if not colon or not value:
        raise LanguageError(f"Unknown config variable: {found[1]}")
    if kind != "ip":
        raise LanguageError(f"Unknown config variable type: {kind}")
    if not re.fullmatch(r"[\w.@-]+", value, re.ASCII):
        raise LanguageError("Bogus-looking iface name")
    return _interface_address(value)


class Language:
    """Carries out commands on a server."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._last_usage = (0.0, 0.0, 0)

    def load_file(self, name: str, out: Out) -> None:
        """Carry out the commands of a file. Raises `LanguageError` at the first that fails."""
        try:
            with open(name, encoding="utf-8", errors="surrogateescape") as file:
                lines = file.read().splitlines()
        except OSError as error:
            raise LanguageError(f"Error opening config file ({name}): {error.strerror}") from None
        context = Context(verbose=False)
        for number, line in enumerate(lines, 1):
            if not self.run(line, out, context):
                raise LanguageError(f"{name}, line {number}: {line.strip()}")

    def run(self, line: str, out: Out, context: Context) -> bool:
        """Carry out one line, and answer by `out`. False if it failed."""
        try:
            command = self._read(line, out, context)
            if command is None:
                return True
            handler = getattr(self, f"_do_{command.word}", None)
            if handler is None:
                handler = self.server.plugin_commands.get(command.word)
            if handler is None:
                if command.word in _LEFT_OUT:
                    reason = _LEFT_OUT[command.word]
                    raise LanguageError(f"{command.text} is not supported here: {reason}")
                raise LanguageError(f"unknown command: {command.word}")
            handler(command)
        except LanguageError as error:
            out(f"ERROR: {error}")
            return False
        if context.verbose and not command.silent:
            out("OK")
        return True

    def _read(self, line: str, out: Out, context: Context) -> Command | None:
        text = " ".join(line.partition("#")[0].split())
        text = re.sub(r"\$\{(.+?)\}", _variable, text)
        text = re.sub(r"\$(\w+)", lambda found: os.environ.get(found[1], ""), text, flags=re.ASCII)
        left, equals, right = text.strip().partition("=")
        text = left.lower() + equals + right
        if not text:
            return None
        word = re.match(r"\w+", text, re.ASCII)
        if word is None:
            raise LanguageError("invalid command")
        return Command(self, word[0], text, out, context)

    # --- services and pools -----------------------------------------------------------------------

    def _do_create(self, command: Command) -> None:
        what, name = command.parse(
            r"create (service|pool) (\w+)", "usage: CREATE {service|pool} <name>"
        )
        if what == "service":
            self.server.create_service(name)
        else:
            self.server.create_pool(name)
            self.server.pools_by_command = True
        command.context.last_created = name

    def _do_use(self, command: Command) -> None:
        (name,) = command.parse(r"use (\w+)", "usage: USE <service_or_pool_name>")
        if name not in self.server.services and name not in self.server.pools:
            raise LanguageError(f"Non-existent pool or service '{name}'")
        command.context.last_created = name

    def _do_set(self, command: Command) -> None:
        name, key, value = command.parse(
            r"set (?:(\w+)[. ])?([\w.]+) ?= ?(.+)", "usage: SET [<service>] <param> = <value>"
        )
        name = name or command.context.last_created
        if not name:
            raise LanguageError("omitted service/pool name not implied from context")
        if name in self.server.services:
            service = self.server.services[name]
            if key == "plugins":
                self._set_plugins(command, service, value)
            else:
                service.set(key, value)
        elif name in self.server.pools:
            self.server.pools[name].set(key, value)
            self._pool_changed(self.server.pools[name])
        else:
            raise LanguageError(f"service/pool '{name}' does not exist")

    def _set_plugins(self, command: Command, service: Service, names: str) -> None:
        for plugin in service.plugins:
            plugin.unregister(service)
        service.plugins = []
        for name in re.split(r"[\s,]+", names):
            plugin_or_none = self.server.plugins.get(name.lower())
            if name == "none":
                continue
            if plugin_or_none is None:
                command.say(f"ERROR: Plugin {name} not loaded; not registered for {service.name}.")
            elif plugin_or_none not in service.plugins:
                plugin_or_none.register(service)
                service.plugins.append(plugin_or_none)

    def _do_default(self, command: Command) -> None:
        key, value = command.parse(r"default (\w+) ?= ?(.+)", "usage: DEFAULT <param> = <value>")
        if key in PARAMETERS:
            PARAMETERS[key].read(
                key, "", value
            )  # What is wrong is told here, not by the next role.
        self.server.defaults[key] = value

    def _do_header(self, command: Command) -> None:
        name, verb, header, value = command.parse(
            r"header\s+(\w+)\s+(insert|remove)\s+(.+?)(?:\s*:\s*(.+))?",
            "Usage: HEADER <service> {INSERT|REMOVE} <header>[: <value>]",
        )
        service = self.server.services.get(name)
        if service is None:
            raise LanguageError(f"service '{name}' does not exist")
        if not re.fullmatch(r"[!#$%&'*+.^`|~\w-]+", header, re.ASCII):
            raise LanguageError(f"'{header}' is no name of a header")
        if verb == "remove":
            service.removed_headers.append(header)
        elif not value:
            raise LanguageError("no value provided")
        else:
            service.inserted_headers.append((header, wire(value)))

    def _do_enable(self, command: Command) -> None:
        verb, name = command.parse(r"(disable|enable) (\w+)", "Usage: {ENABLE|DISABLE} <service>")
        service = self.server.services.get(name)
        if service is None:
            raise LanguageError(f"service '{name}' does not exist")
        if verb == "enable":
            service.enable()
        else:
            service.disable()

    _do_disable = _do_enable

    def _do_pool(self, command: Command) -> None:
        first, second, ip, port = command.parse(rf"pool (\w+) (\w+) {_NODE}")
        verb, name = (second, first) if second in ("add", "remove") else (first, second)
        if verb not in ("add", "remove"):
            raise LanguageError("Invalid command:  must be 'add' or 'remove'")
        pool = self.server.pools.get(name)
        if pool is None:
            raise LanguageError(f"Pool '{name}' not found")
        try:
            host = str(ipaddress.ip_address(ip.strip("[]")))
        except ValueError:
            raise LanguageError(f"'{ip}' is no address") from None
        number = int(port or 80)
        if not 0 < number < 65536:
            raise LanguageError(f"{port} is no port")
        (pool.add if verb == "add" else pool.remove)(host, number)
        self._pool_changed(pool)

    def _pool_changed(self, pool: Pool) -> None:
        """Who waits for a node may have one now."""
        for service in self.server.services.values():
            if service.pool is pool:
                service.balancer.generation += 1
                if service.enabled:
                    service.balancer.spawn_backends()

    def _do_show(self, command: Command) -> None:
        services, pools = self.server.services, self.server.pools
        what, name = command.parse(r"show (service|pool)(?: (\w+))?")
        if what == "service" and name:
            if name not in services:
                raise LanguageError("Unknown service")
            command.list(services[name].report())
        elif what == "service":
            command.list(
                [
                    f"{each.name} {each.listen or 'not_listening'}"
                    f" {'ENABLED' if each.enabled else 'DISABLED'}"
                    for _, each in sorted(services.items())
                ]
            )
        elif name:
            if name not in pools:
                raise LanguageError(f"pool '{name}' does not exist")
            pool = pools[name]
            command.list([f"{node.name} {pool.used[node.name]}" for node in pool.nodes])
        else:
            lines: list[str] = []
            for each, pool in sorted(pools.items()):
                lines += [f"{each} nodes {len(pool.nodes)}", f"{each} services {pool.services}"]
            command.list(lines)

    def _do_dumpconfig(self, command: Command) -> None:
        for plugin in self.server.plugins.values():
            command.out(f"LOAD {plugin.name}")
        if self.server.plugins:
            command.out("")
        for pool in self.server.pools.values():
            command.out(f"CREATE POOL {pool.name}")
            for line in pool.dump():
                command.out("  " + line)
            command.out("")
        for service in self.server.services.values():
            command.out(f"CREATE SERVICE {service.name}")
            for line in service.dump():
                command.out("  " + line)
            command.out(f"{'ENABLE' if service.enabled else 'DISABLE'} {service.name}")
            command.out("")

    # --- plugins ----------------------------------------------------------------------------------

    def _do_load(self, command: Command) -> None:
        (name,) = command.parse(r"load (\w+)")
        if name in LEFT_OUT:
            raise LanguageError(f"Plugin {name} is not supported here")
        if name not in PLUGINS:
            raise LanguageError(f"No plugin {name}; there are {', '.join(sorted(PLUGINS))}")
        if name not in self.server.plugins:
            plugin = self.server.plugins[name] = PLUGINS[name](self.server)
            self.server.plugin_commands |= plugin.commands()
            self.server.extra_parameters |= plugin.parameters
            for service in self.server.services.values():
                for key, parameter in plugin.parameters.items():
                    if parameter.role == service.role and parameter.default is not None:
                        service.set(key, parameter.default)

    def _do_unload(self, command: Command) -> None:
        (name,) = command.parse(r"unload (\w+)")
        plugin = self.server.plugins.pop(name, None)
        if plugin is None:
            return
        for service in self.server.services.values():
            if plugin in service.plugins:
                plugin.unregister(service)
                service.plugins.remove(plugin)
        for word in plugin.commands():
            self.server.plugin_commands.pop(word, None)
        for key in plugin.parameters:
            self.server.extra_parameters.pop(key, None)

    def _do_reload(self, command: Command) -> None:
        (name,) = command.parse(r"reload (\w+)")
        if name not in self.server.plugins:
            raise LanguageError(f"Unknown/unloaded plugin '{name}'")
        plugin = self.server.plugins[name]
        raise LanguageError(f"Plugin Perlbal::Plugin::{plugin.name} doesn't support reloading")

    def _do_plugins(self, command: Command) -> None:
        command.no_options()
        command.list(
            [
                " ".join([service.name, *(plugin.name for plugin in service.plugins)])
                for service in self.server.services.values()
                if service.plugins
            ]
        )

    # --- the server -------------------------------------------------------------------------------

    def _do_server(self, command: Command) -> None:
        key, value = command.parse(r"server (\S+) ?= ?(.+)")
        server = self.server
        if found := re.fullmatch(r"max_reproxy_connections(?:\((.+)\))?", key):
            most = max(0, _number(value))
            if found[1]:
                server.reproxy_manager.most_to[found[1]] = most
            else:
                server.reproxy_manager.most = most
        elif key == "max_connections":
            number = _number(value)
            try:
                resource.setrlimit(resource.RLIMIT_NOFILE, (number, number))
            except (OSError, ValueError):
                if os.geteuid():
                    raise LanguageError("Need to be root to increase max connections.") from None
                raise LanguageError("Unable to set limit.") from None
        elif key == "nice_level":
            try:
                os.nice(_number(value))
            except OSError as error:
                raise LanguageError(f"Unable to renice: {error.strerror}") from None
        elif key == "aio_mode":
            if value == "linux":
                raise LanguageError("Linux::AIO no longer supported")
            if value not in ("none", "ioaio"):
                raise LanguageError("Unknown AIO mode")
        elif key == "aio_threads":
            _number(value)
        elif key in ("track_obj", "crash_backtrace"):
            if value not in ("0", "1"):
                raise LanguageError("Expected 1 or 0")
        elif key == "pidfile":
            if server.running:
                raise LanguageError(
                    "pidfile must be configured at startup, before Perlbal::run is called"
                )
            server.pidfile = value
        else:
            raise LanguageError(f"unknown server option '{value}'")

    def _do_shutdown(self, command: Command) -> None:
        graceful, seconds = command.parse(r"shutdown(\s?graceful)?\s?(\d{1,9})?")
        if graceful:
            self.server.shut_down_gracefully(int(seconds) if seconds else None)
        else:
            command.silent = True
            self.server.stop()

    def _do_verbose(self, command: Command) -> None:
        (state,) = command.parse(r"verbose (on|off)", "usage: VERBOSE {on|off}")
        command.context.verbose = state == "on"

    def _do_help(self, command: Command) -> None:
        command.no_options()
        own = [name.removeprefix("_do_") for name in dir(self) if name.startswith("_do_")]
        command.list(sorted(own))

    def _do_uptime(self, command: Command) -> None:
        command.no_options()
        started = self.server.started
        command.list(
            [f"starttime {started}", f"uptime {int(time.time()) - started}", f"version {VERSION}"]
        )

    _do_version = _do_uptime

    def _do_proc(self, command: Command) -> None:
        command.no_options()
        usage = resource.getrusage(resource.RUSAGE_SELF)
        now = (usage.ru_utime, usage.ru_stime, self.server.requests)
        before, self._last_usage = self._last_usage, now
        command.list(
            [
                f"time: {int(time.time())}",
                f"pid: {os.getpid()}",
                f"utime: {now[0]:.6g} (+{now[0] - before[0]:.6g})",
                f"stime: {now[1]:.6g} (+{now[1] - before[1]:.6g})",
                f"reqs: {now[2]} (+{now[2] - before[2]})",
            ]
        )

    def _do_fd(self, command: Command) -> None:
        command.no_options()
        try:
            count = len(os.listdir("/proc/self/fd")) - 1
        except OSError:
            count = len(os.listdir("/dev/fd")) - 1
        command.list([f"max {resource.getrlimit(resource.RLIMIT_NOFILE)[1]}", f"cur {count}"])

    def _do_mime(self, command: Command) -> None:
        what, ending, kind = command.parse(r"mime(?:\s+(\w+)(?:\s+(\w+))?(?:\s+(\S+))?)?")
        if what in ("", "list"):
            command.list([f"{each} {name}" for each, name in sorted(MIME_TYPES.items())])
        elif what == "set":
            if not ending or not kind:
                raise LanguageError("Usage: set <ext> <mime>")
            MIME_TYPES[ending] = wire(kind)
            command.say(f"{ending} set to {kind}.")
        elif what == "remove":
            if MIME_TYPES.pop(ending, None) is None:
                raise LanguageError(f"{ending} not a defined extension.")
            command.say(f"{ending} removed.")
        else:
            raise LanguageError("Usage: list, remove <ext>, set <ext> <mime>")

    # --- what is going on -------------------------------------------------------------------------

    def _do_nodes(self, command: Command) -> None:
        ip, port = command.parse(rf"nodes?(?:\s+{_NODE})?")
        stats = self.server.nodes
        names = [f"{ip}:{port or 80}"] if ip else list(stats)
        command.list(
            [f"{name} {line}" for name in names if name in stats for line in stats[name].lines()]
        )

    _do_node = _do_nodes

    def _do_states(self, command: Command) -> None:
        (name,) = command.parse(r"states(?:\s+(.+))?")
        service = self.server.services.get(name)
        if name and service is None:
            raise LanguageError("Service not found.")
        counts: dict[str, int] = {}
        for each in self.server.sockets():
            if isinstance(each, Client):
                owner: Service | None = each.service
                kind = each.class_name()
                if service is not None and kind == "Perlbal::ClientHTTPBase":
                    continue
            elif isinstance(each, BackendHTTP):
                owner, kind = each.owner.service, "Perlbal::BackendHTTP"
            else:
                continue
            if service is None or owner is service:
                key = f"{kind} {each.state}"
                counts[key] = counts.get(key, 0) + 1
        command.list([f"{key} {count}" for key, count in sorted(counts.items())])

    def _do_queues(self, command: Command) -> None:
        command.no_options()
        lines: list[str] = []
        for service in self.server.services.values():
            if service.role != "reverse_proxy":
                continue
            balancer = service.balancer
            for name, queue in (
                ("normal", balancer.waiting),
                ("highpri", balancer.waiting_highpri),
                ("lowpri", balancer.waiting_lowpri),
            ):
                age = int(time.monotonic() - next(iter(queue)).since) if queue else 0
                lines.append(f"{service.name}-{name}.age {age}")
                lines.append(f"{service.name}-{name}.count {len(queue)}")
        command.list(lines)

    def _do_backends(self, command: Command) -> None:
        command.no_options()
        counts: dict[str, int] = {}
        for each in self.server.sockets():
            if isinstance(each, BackendHTTP):
                counts[each.ipport] = counts.get(each.ipport, 0) + 1
        command.list([f"{name} {count}" for name, count in sorted(counts.items())])

    def _do_pending(self, command: Command) -> None:
        command.no_options()
        command.list(
            [
                f"{name} {node} {backend.age()}"
                for name, service in sorted(self.server.services.items())
                for node, backend in sorted(service.balancer.pending.items())
            ]
        )

    def _do_noverify(self, command: Command) -> None:
        command.no_options()
        now = time.monotonic()
        command.list(
            [f"{name} {math.ceil(until - now)}" for name, until in self.server.no_verify.items()]
        )

    def _do_socks(self, command: Command) -> None:
        (mode,) = command.parse(r"socks(?: (\w+))?")
        if mode == "summary":
            command.list(self.server.sockets_summary())
        elif mode in ("", "all"):
            command.list(self.server.sockets_list())
        else:
            command.list([])

    def _do_reproxy_state(self, command: Command) -> None:
        command.list(self.server.reproxy_manager.report())

    def _do_aio(self, command: Command) -> None:
        command.no_options()
        command.list([])


def _number(text: str) -> int:
    if not re.fullmatch(r"-?\d{1,18}", text, re.ASCII):
        raise LanguageError("Expected numeric parameter")
    return int(text)


def print_line(line: str) -> None:
    """Where a file's commands answer to."""
    print(line, file=sys.stderr if line.startswith("ERROR") else sys.stdout, flush=True)
