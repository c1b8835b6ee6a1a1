"""The plugins that are built in, and the class that others are made of.

A plugin of one's own is a subclass of `Plugin` that is put into `PLUGINS` before the configuration
is read. LOAD brings a plugin's commands, and `SET service.plugins` its services.
"""

from __future__ import annotations

import glob
import ipaddress
import os
import re
import shlex
from typing import TYPE_CHECKING, ClassVar, Final

from examples.perlbal.heads import Head, Request, Response, read_off, wire
from examples.perlbal.language import Call, Command
from examples.perlbal.parameters import LanguageError, Netmask, Parameter, boolean, netmask

if TYPE_CHECKING:
    from examples.perlbal.clients import Exchange
    from examples.perlbal.proxy import ProxyExchange
    from examples.perlbal.selector import SelectorExchange
    from examples.perlbal.server import Server
    from examples.perlbal.services import Service

MOST_LABELS: Final = 127
"""Of a name (RFC 1035, 2.3.4); a request may have a hundred thousand of them."""
_HOST_PATTERN: Final = re.compile(r"[\w\-.*;:\[\]]+", re.ASCII)
_USE_OBSERVED_IP: Final = "accesscontrol.use_observed_ip"
_USING: Final = re.compile(r"/__using/([\w.]+)/\w+(?:\?.*)?", re.ASCII)


class Plugin:
    """What can be done to the requests of a service, and commands of its own."""

    name = ""
    settings: frozenset[str] = frozenset()
    """What can be set of a service that uses it, as "plugin.key"."""
    parameters: ClassVar[dict[str, Parameter]] = {}
    """Parameters of services that there are once it is loaded; each is 0 until it is set."""

    def __init__(self, server: Server) -> None:
        self.server = server

    def commands(self) -> dict[str, Command]:
        """Its commands, by their first word. They raise `LanguageError`."""
        return {}

    def check(self, service: Service) -> None:
        """Raises `LanguageError` if the service can't use it."""

    def register(self, service: Service) -> None:
        """A service begins to use it."""

    def unregister(self, service: Service) -> None:
        """A service uses it no longer, and what was set of it there is gone."""
        for key in self.settings:
            service.extra.pop(key, None)

    def start_http_request(self, exchange: Exchange) -> bool:
        """See a request first. True if it has been answered."""
        return False

    def select(self, exchange: SelectorExchange) -> bool:
        """Hand a request to a selector on to a service, or answer it. True if it did."""
        return False

    def backend_client_assigned(self, exchange: ProxyExchange, head: Head) -> None:
        """Change the fields that go to a backend."""

    def dump(self, service: Service) -> list[str]:
        """The commands that make it what it is for a service."""
        return []


class HostMaps(Plugin):
    """What is mapped to the names of hosts, for each service."""

    def __init__(self, server: Server) -> None:
        super().__init__(server)
        self.maps: dict[Service, dict[str, str]] = {}

    @staticmethod
    def host(request: Request) -> str:
        """The host that is asked for, without its port and the dot of the root; "" if none is."""
        host = read_off(request.values.get("host") or "").lower()
        return re.sub(r":\d+$", "", host).removesuffix(".")

    def find(self, service: Service, host: str) -> list[str]:
        """What is mapped to a host, the best first: to itself, to "*." and it or a domain that it
        is in, to "*"."""
        maps = self.maps.get(service, {})
        labels = host.rsplit(".", MOST_LABELS)
        domains = [f"*.{'.'.join(labels[number:])}" for number in range(len(labels))]
        return [maps[each] for each in (host, *domains, "*") if each in maps]


class Vhosts(HostMaps):
    """Services by the name of the host."""

    name = "Vhosts"

    def commands(self) -> dict[str, Command]:
        usage = "usage: VHOST [<service>] <host_or_pattern> = <dest_service>"
        return {"vhost": Command(self._vhost, r"\s+(?:(\w+)\s+)?(\S+)\s*=\s*(\w+)", usage)}

    def _vhost(self, call: Call, name: str, host: str, target: str) -> None:
        name = name or call.context.last_created
        if not name:
            raise LanguageError("omitted service name not implied from context")
        service = self.server.services.get(name)
        if service is None or service.role != "selector":
            raise LanguageError(f"Service '{name}' is not a selector service")
        if not _HOST_PATTERN.fullmatch(host):
            raise LanguageError(f"invalid host pattern: '{host}'")
        self.maps.setdefault(service, {})[host] = target

    def check(self, service: Service) -> None:
        if service.role != "selector":
            raise LanguageError(
                "You can't load the vhost plugin on a service not of role selector."
            )

    def register(self, service: Service) -> None:
        self.maps[service] = {}

    def select(self, exchange: SelectorExchange) -> bool:
        services, service, request = self.server.services, exchange.service, exchange.request
        host = self.host(request)
        if host and (using := _USING.fullmatch(request.uri)):
            name = self.maps.get(service, {}).get(f"{host};using:{using[1]}", "")
            if name in services:
                request.set("Host", using[1])
                exchange.hand_on(services[name])
            else:
                text = "Vhost twiddling not configured for requested pair."
                exchange.client.send_page(404, text)
            return True
        for name in self.find(service, host):
            if name in services:
                exchange.hand_on(services[name])
                return True
        if service.default_service is not None:
            return False
        exchange.client.send_page(404, "Not Found (no configured vhost)")
        return True

    def dump(self, service: Service) -> list[str]:
        return [f"VHOST {host} = {name}" for host, name in self.maps.get(service, {}).items()]


class Redirect(HostMaps):
    """Other hosts for some."""

    name = "Redirect"

    def commands(self) -> dict[str, Command]:
        usage = "usage: REDIRECT HOST <match_host> <target_host>"
        return {"redirect": Command(self._redirect, r"\s+host\s+(\S+)\s+(\S+)", usage)}

    def _redirect(self, call: Call, host: str, target: str) -> str:
        service = call.service_in_context()
        self.maps.setdefault(service, {})[host.lower()] = target.lower()
        return ""

    def start_http_request(self, exchange: Exchange) -> bool:
        client, service, request = exchange.client, exchange.service, exchange.request
        targets = self.find(service, self.host(request))
        if targets:
            head = Response(301)
            head.set("Location", f"http://{wire(targets[0])}{request.uri}")
            head.set("Content-Length", "0")
            if service.server_tokens:
                head.set("Server", "Perlbal")
            client.send_answer(head)
        return bool(targets)

    def dump(self, service: Service) -> list[str]:
        return [f"REDIRECT HOST {host} {to}" for host, to in self.maps.get(service, {}).items()]


class AccessControl(Plugin):
    """Rules of who may come in."""

    name = "AccessControl"
    settings = frozenset((_USE_OBSERVED_IP,))

    def __init__(self, server: Server) -> None:
        super().__init__(server)
        self.rules: dict[Service, list[tuple[str, str, str, Netmask]]] = {}
        """Action, kind, how it is written, and the addresses that it means."""
        self.denies: set[Service] = set()
        """Where who isn't named by a rule stays outside."""

    def commands(self) -> dict[str, Command]:
        pattern = r"\s+(policy|allow|deny|reset|queue_low)(?:\s+(\S+))?(?:\s+(\S+))?"
        return {"access": Command(self._access, pattern, "usage: ACCESS <cmd> <arg1> [<arg2>]")}

    def _access(self, call: Call, action: str, what: str, value: str) -> None:
        service = call.service_in_context()
        if action == "reset":
            self.rules.pop(service, None)
            self.denies.discard(service)
        elif action == "policy":
            if what not in ("allow", "deny"):
                raise LanguageError("policy must be 'allow' or 'deny'")
            (self.denies.add if what == "deny" else self.denies.discard)(service)
        elif what not in ("ip", "netmask"):
            raise LanguageError(f"Unknown item to {action}: '{what}'")
        else:
            read = netmask if what == "netmask" else ipaddress.ip_address
            try:
                mask = ipaddress.ip_network(read(value))
            except ValueError:
                raise LanguageError(f"Error parsing {what}") from None
            self.rules.setdefault(service, []).append((action, what, value, mask))

    def start_http_request(self, exchange: Exchange) -> bool:
        client, service = exchange.client, exchange.service
        ip = client.peer_ip_string() or ""
        use = service.extra.get(_USE_OBSERVED_IP, "off").lower()
        if client.observed_ip and use not in ("off", "0", "false", "no"):
            ip = client.observed_ip
        action = self.action(service, ip)
        exchange.request.low_priority |= action == "queue_low"
        if action == "deny":
            client.send_page(403, "Access denied.")
        return action == "deny"

    def action(self, service: Service, ip: str) -> str:
        """What is to be done to whoever comes from this address."""
        try:
            address = ipaddress.ip_address(ip)
        except ValueError:
            # An upstream may say anything: a mask of all has that too, as in the original, unless
            # it looks like an address with a port.
            address = ipaddress.ip_address("::" if ":" in ip else "0.0.0.0")
        if isinstance(address, ipaddress.IPv6Address):
            address = address.ipv4_mapped or address
        for action, _, _, mask in self.rules.get(service, ()):
            if address in mask:
                return action
        return "deny" if service in self.denies else "allow"

    def dump(self, service: Service) -> list[str]:
        lines = [
            f"ACCESS {action.upper()} {what.upper()} {value}"
            for action, what, value, _ in self.rules.get(service, ())
        ]
        return [*lines, f"ACCESS POLICY {'DENY' if service in self.denies else 'ALLOW'}"]


class XFFExtras(Plugin):
    """X-Forwarded-Port and X-Forwarded-Proto for backends."""

    name = "XFFExtras"
    parameters: ClassVar[dict[str, Parameter]] = {
        "send_backend_port": Parameter("reverse_proxy", boolean),
        "send_backend_proto": Parameter("reverse_proxy", boolean),
    }

    def backend_client_assigned(self, exchange: ProxyExchange, head: Head) -> None:
        client, service = exchange.client, exchange.service
        if service.blind_proxy and client.is_trusted():
            return
        if getattr(service, "send_backend_port", 0):
            client.local_ip_string()
            head.set("X-Forwarded-Port", str(client.local_port))
        if getattr(service, "send_backend_proto", 0):
            head.set("X-Forwarded-Proto", "http")


class Include(Plugin):
    """Commands from other files."""

    name = "Include"
    MOST_DEEP = 10
    _depth = 0

    def commands(self) -> dict[str, Command]:
        usage = "usage: INCLUDE = <config files>"
        return {"include": Command(self._include, r"\s+=\s+(.+)", usage)}

    def _include(self, call: Call, patterns: str) -> None:
        if self._depth >= self.MOST_DEEP:
            raise LanguageError(f"INCLUDE within INCLUDE, {self.MOST_DEEP} deep: {patterns}")
        self._depth += 1
        try:
            for pattern in map(os.path.expanduser, shlex.split(patterns)):
                names = glob.glob(pattern) if glob.has_magic(pattern) else [pattern]
                for name in sorted(names, key=lambda name: (name.lower(), name)):
                    self.server.language.load_file(name, call.out)
        finally:
            self._depth -= 1


PLUGINS: Final[dict[str, type[Plugin]]] = {
    kind.name.lower(): kind for kind in (Vhosts, Redirect, AccessControl, XFFExtras, Include)
}
