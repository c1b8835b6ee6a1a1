"""The commands of the language, but for those of plugins."""

from __future__ import annotations

import ipaddress
import math
import os
import re
import resource
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

from examples.perlbal.backends import BackendHTTP
from examples.perlbal.clients import Client
from examples.perlbal.heads import TOKEN
from examples.perlbal.language import Answer, Call, Command
from examples.perlbal.parameters import NODE, PARAMETERS, LanguageError, named, words
from examples.perlbal.plugins import PLUGINS
from examples.perlbal.pools import Pool
from examples.perlbal.services import Service
from examples.perlbal.webserver import MIME_TYPES

VERSION: Final = "1.80"
"""The version of Perlbal whose language this is."""

COMMANDS: Final[dict[str, Command]] = {}
"""The commands by their first words."""


def command(
    words: str, pattern: str = "", usage: str = ""
) -> Callable[[Callable[..., Answer]], Callable[..., Answer]]:
    """Makes a function a command by these words."""

    def add(run: Callable[..., Answer]) -> Callable[..., Answer]:
        COMMANDS.update(dict.fromkeys(words.split(), Command(run, pattern, usage)))
        return run

    return add


# --- services and pools ---------------------------------------------------------------------------


@command("create", r" (service|pool) (\w+)", "usage: CREATE {service|pool} <name>")
def create(call: Call, what: str, name: str) -> None:
    call.server.create(what, name)
    call.server.pools_by_command |= what == "pool"
    call.context.last_created = name


@command("use", r" (\w+)", "usage: USE <service_or_pool_name>")
def use(call: Call, name: str) -> None:
    if name not in call.server.services and name not in call.server.pools:
        raise LanguageError(f"Non-existent pool or service '{name}'")
    call.context.last_created = name


@command("set", r" (?:(\w+)[. ])?([\w.]+) ?= ?(.+)", "usage: SET [<service>] <param> = <value>")
def set_parameter(call: Call, name: str, key: str, value: str) -> Answer:
    server = call.server
    name = name or call.context.last_created
    if not name:
        raise LanguageError("omitted service/pool name not implied from context")
    if key == "plugins" and name in server.services:
        return _set_plugins(call, server.services[name], value)
    things: dict[str, Service | Pool] = {**server.services, **server.pools}
    named(things, name, f"service/pool '{name}' does not exist").set(key, value)
    return None


def _set_plugins(call: Call, service: Service, names: str) -> Answer:
    wanted = dict.fromkeys(words(names.lower()))
    loaded = call.server.plugins
    found = [loaded[name] for name in wanted if name in loaded]
    for plugin in found:
        plugin.check(service)
    for plugin in service.plugins:
        plugin.unregister(service)
    service.plugins = found
    for plugin in found:
        plugin.register(service)
    lacking = [name for name in wanted if name not in loaded and name != "none"]
    for name in lacking:
        call.out(f"ERROR: Plugin {name} not loaded; not registered for {service.name}.")
    return "" if lacking else None


@command("default", r" (\w+) ?= ?(.+)", "usage: DEFAULT <param> = <value>")
def default(call: Call, key: str, value: str) -> None:
    if key in PARAMETERS:
        # What is wrong is told here, not by the next role.
        PARAMETERS[key].read(Service(call.server, ""), key, value)
    call.server.defaults[key] = value


@command(
    "header",
    r"\s+(\w+)\s+(insert|remove)\s+(.+?)(?:\s*:\s*(.+))?",
    "Usage: HEADER <service> {INSERT|REMOVE} <header>[: <value>]",
)
def header(call: Call, name: str, verb: str, field: str, value: str) -> None:
    service = call.service(name)
    if verb == "insert" and not value:
        raise LanguageError("no value provided")
    if not TOKEN.fullmatch(field):
        raise LanguageError(f"'{field}' is no name of a header")
    if verb == "remove":
        service.removed_headers.append(field)
    else:
        service.inserted_headers.append((field, value))


@command("enable disable", r" (\w+)", "Usage: {ENABLE|DISABLE} <service>")
def enable(call: Call, name: str) -> None:
    service = call.service(name)
    if call.word == "enable":
        service.enable()
    else:
        service.disable()


@command("pool", rf" (\w+) (\w+) {NODE}")
def change_pool(call: Call, first: str, second: str, ip: str, port: str) -> None:
    verb, name = (second, first) if second in ("add", "remove") else (first, second)
    if verb not in ("add", "remove"):
        raise LanguageError("Invalid command:  must be 'add' or 'remove'")
    pool = named(call.server.pools, name, f"Pool '{name}' not found")
    try:
        host = str(ipaddress.ip_address(ip.strip("[]")))
    except ValueError:
        raise LanguageError(f"'{ip}' is no address") from None
    number = int(port or 80)
    if not 0 < number < 65536:
        raise LanguageError(f"{port} is no port")
    (pool.add if verb == "add" else pool.remove)(host, number)


@command("show", r" (service|pool)(?: (\w+))?")
def show(call: Call, what: str, name: str) -> Answer:
    services, pools = call.server.services, call.server.pools
    if what == "service" and name:
        return named(services, name, "Unknown service").report()
    if what == "service":
        return [
            f"{each.name} {each.listen or 'not_listening'}"
            f" {'ENABLED' if each.enabled else 'DISABLED'}"
            for _, each in sorted(services.items())
        ]
    if not name:
        return [
            line
            for each, pool in sorted(pools.items())
            for line in (f"{each} nodes {len(pool.nodes)}", f"{each} services {len(pool.users)}")
        ]
    pool = named(pools, name, f"pool '{name}' does not exist")
    return [f"{node.name} {pool.used[node.name]}" for node in pool.nodes]


@command("dumpconfig", ".*")
def dumpconfig(call: Call) -> None:
    server = call.server
    blocks = [[f"LOAD {plugin.name}" for plugin in server.plugins.values()]]
    blocks += [pool.dump() for pool in server.pools.values()]
    blocks += [service.dump() for service in server.services.values()]
    # Behind all services, for it may be one of those that come later.
    blocks.append(
        [
            f"SET {service.name}.default_service = {service.default_service.name}"
            for service in server.services.values()
            if service.default_service is not None
        ]
    )
    for block in filter(None, blocks):
        for line in (*block, ""):
            call.out(line)


# --- plugins --------------------------------------------------------------------------------------


@command("load", r" (\w+)")
def load(call: Call, name: str) -> None:
    server = call.server
    there = ", ".join(sorted(PLUGINS))
    kind = named(PLUGINS, name, f"Plugin {name} is not supported here; there are {there}")
    if name not in server.plugins:
        server.plugins[name] = kind(server)


@command("unload", r" (\w+)")
def unload(call: Call, name: str) -> None:
    server = call.server
    plugin = server.plugins.pop(name, None)
    if plugin is None:
        return
    for service in server.services.values():
        if plugin in service.plugins:
            plugin.unregister(service)
            service.plugins.remove(plugin)


@command("reload", r" (\w+)")
def reload(call: Call, name: str) -> Answer:
    plugin = named(call.server.plugins, name, f"Unknown/unloaded plugin '{name}'")
    raise LanguageError(f"Plugin Perlbal::Plugin::{plugin.name} doesn't support reloading")


@command("plugins")
def plugins(call: Call) -> Answer:
    return [
        " ".join([service.name, *(plugin.name for plugin in service.plugins)])
        for service in call.server.services.values()
        if service.plugins
    ]


# --- the server -----------------------------------------------------------------------------------


@command("server", r" (\S+) ?= ?(.+)")
def server_option(call: Call, key: str, value: str) -> None:
    server = call.server
    if found := re.fullmatch(r"max_reproxy_connections(?:\((.+)\))?", key):
        server.reproxy_hosts.most[found[1] or ""] = max(0, _number(value))
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
            os.nice(max(-40, min(_number(value), 40)))  # More would be as much.
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


def _number(text: str) -> int:
    if not re.fullmatch(r"-?\d{1,18}", text, re.ASCII):
        raise LanguageError("Expected numeric parameter")
    return int(text)


@command("shutdown", r"(\s?graceful)?\s?(\d{1,9})?")
def shutdown(call: Call, graceful: str, seconds: str) -> Answer:
    if not graceful:
        call.server.stop()
        return ""
    call.server.shut_down_gracefully(int(seconds or "0"))
    return None


@command("verbose", " (on|off)", "usage: VERBOSE {on|off}")
def verbose(call: Call, state: str) -> None:
    call.context.verbose = state == "on"


@command("help")
def help_(call: Call) -> Answer:
    return sorted(COMMANDS)


@command("uptime version")
def uptime(call: Call) -> Answer:
    started = call.server.started
    return [f"starttime {started}", f"uptime {int(time.time()) - started}", f"version {VERSION}"]


@command("proc")
def proc(call: Call) -> Answer:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    now = (usage.ru_utime, usage.ru_stime, call.server.requests)
    before, call.server.usage = call.server.usage, now
    return [
        f"time: {int(time.time())}",
        f"pid: {os.getpid()}",
        f"utime: {now[0]:.6g} (+{now[0] - before[0]:.6g})",
        f"stime: {now[1]:.6g} (+{now[1] - before[1]:.6g})",
        f"reqs: {now[2]} (+{now[2] - before[2]})",
    ]


@command("fd")
def fd(call: Call) -> Answer:
    folder = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return [f"max {most}", f"cur {len(os.listdir(folder)) - 1}"]


@command("mime", r"(?:\s+(\w+)(?:\s+(\w+))?(?:\s+(\S+))?)?")
def mime(call: Call, what: str, ending: str, kind: str) -> Answer:
    if what in ("", "list"):
        return [f"{each} {name}" for each, name in sorted(MIME_TYPES.items())]
    if what == "set":
        if not ending or not kind:
            raise LanguageError("Usage: set <ext> <mime>")
        MIME_TYPES[ending] = kind
        return f"{ending} set to {kind}."
    if what == "remove":
        if MIME_TYPES.pop(ending, None) is None:
            raise LanguageError(f"{ending} not a defined extension.")
        return f"{ending} removed."
    raise LanguageError("Usage: list, remove <ext>, set <ext> <mime>")


# --- what is going on -----------------------------------------------------------------------------


@command("nodes node", rf"(?:\s+{NODE})?")
def nodes(call: Call, ip: str, port: str) -> Answer:
    stats = call.server.nodes
    names = [f"{ip}:{port or 80}"] if ip else list(stats)
    return [f"{name} {line}" for name in names if name in stats for line in stats[name].lines()]


@command("states", r"(?:\s+(.+))?")
def states(call: Call, name: str) -> Answer:
    service = named(call.server.services, name, "Service not found.") if name else None
    counts: Counter[str] = Counter()
    for each in call.server.sockets():
        if isinstance(each, (Client, BackendHTTP)):
            kind = each.class_name()
            if service is None or each.service is service and kind != "Perlbal::ClientHTTPBase":
                counts[f"{kind} {each.state}"] += 1
    return _counted(counts)


def _counted(counts: Counter[str]) -> list[str]:
    return [f"{name} {count}" for name, count in sorted(counts.items())]


@command("queues")
def queues(call: Call) -> Answer:
    lines: list[str] = []
    for service in call.server.services.values():
        if service.role == "reverse_proxy":
            for name, queue in service.balancer.queues.items():
                age = int(time.monotonic() - next(iter(queue)).since) if queue else 0
                lines.append(f"{service.name}-{name}.age {age}")
                lines.append(f"{service.name}-{name}.count {len(queue)}")
    return lines


@command("backends")
def backends(call: Call) -> Answer:
    return _counted(
        Counter(each.ipport for each in call.server.sockets() if isinstance(each, BackendHTTP))
    )


@command("pending")
def pending(call: Call) -> Answer:
    return [
        f"{name} {node} {backend.age()}"
        for name, service in sorted(call.server.services.items())
        for node, backend in sorted(service.balancer.pending.items())
    ]


@command("noverify")
def noverify(call: Call) -> Answer:
    now, known = time.monotonic(), call.server.no_verify.items()
    return [f"{name} {math.ceil(until - now)}" for name, until in known if until > now]


@command("socks", r"(?: (\w+))?")
def socks(call: Call, mode: str) -> Answer:
    """All connections; or how many there are of each kind."""
    now = time.monotonic()
    if mode in ("", "all"):
        return [f"{'fd':>5} {'age':>6}"] + [
            f"{each.fd:5} {int(now - getattr(each, 'created', now)):5}s {each.as_string()}"
            for each in call.server.sockets()
        ]
    if mode != "summary":
        return []
    sockets = list(call.server.sockets())
    kinds = Counter(each.as_string().partition("(")[0] for each in sockets)
    waiting = sum(each.write_buf_size for each in sockets)
    files = sum(isinstance(each, Client) and each.file is not None for each in sockets)
    return [
        *(f"{count:5} {name}" for name, count in sorted(kinds.items())),
        f"Aggregate write buffer: {waiting / 1024:.1f}k",
        f"            Open files: {files}",
    ]


@command("reproxy_state", ".*")
def reproxy_state(call: Call) -> Answer:
    return call.server.reproxy_hosts.report()


@command("aio")
def aio(call: Call) -> Answer:
    return []
