"""The built-in plugins, and the base class for others.

To add a plugin, subclass `Plugin` and add the class to `PLUGINS` before the configuration is read.
LOAD makes a plugin's commands available, and `SET service.plugins` applies it to a service.
"""

from __future__ import annotations

import glob
import ipaddress
import os
import re
import shlex
from typing import TYPE_CHECKING, ClassVar, Final

from examples.perlbal.heads import Head, Request, Response, unwire, wire
from examples.perlbal.language import Call, Command
from examples.perlbal.parameters import LanguageError, Netmask, Parameter, boolean, netmask

if TYPE_CHECKING:
    from examples.perlbal.clients import Exchange
    from examples.perlbal.proxy import ProxyExchange
    from examples.perlbal.selector import SelectorExchange
    from examples.perlbal.server import Server
    from examples.perlbal.services import Service

MAX_LABELS: Final = 127
"""The most labels that a name can have (RFC 1035, 2.3.4). A request may send 100,000."""
_HOST_PATTERN: Final = re.compile(r"[\w\-.*;:\[\]]+", re.ASCII)
_USE_OBSERVED_IP: Final = "accesscontrol.use_observed_ip"
_USING: Final = re.compile(r"/__using/([\w.]+)/\w+(?:\?.*)?", re.ASCII)


class Plugin:
    """Handles requests of the services that use it, and may add commands and parameters."""

    name = ""
    settings: frozenset[str] = frozenset()
    """Its settings for each service that uses it, as "plugin.key"."""
    parameters: ClassVar[dict[str, Parameter]] = {}
    """The parameters that services have once it is loaded. Each is 0 until it is set."""

    def __init__(self, server: Server) -> None:
        self.server = server

    def commands(self) -> dict[str, Command]:
        """Its commands, by first word. They may raise `LanguageError`."""
        return {}

    def check(self, service: Service) -> None:
        """Raise `LanguageError` if the service can't use it."""

    def register(self, service: Service) -> None:
        """Called when a service begins to use it."""

    def unregister(self, service: Service) -> None:
        """Called when a service stops using it. Removes its settings there."""
        for key in self.settings:
            service.extra.pop(key, None)

    def start_http_request(self, exchange: Exchange) -> bool:
        """Handle a request before its service does. True if it has answered it."""
        return False

    def select(self, exchange: SelectorExchange) -> bool:
        """Hand a selector's request to a service, or answer it. True if it did either."""
        return False

    def backend_client_assigned(self, exchange: ProxyExchange, head: Head) -> None:
        """Change the header fields that are sent to a backend."""

    def dump(self, service: Service) -> list[str]:
        """The commands that recreate its settings for a service."""
        return []


class HostMaps(Plugin):
    """A map by host name for each service."""

    def __init__(self, server: Server) -> None:
        super().__init__(server)
        self.maps: dict[Service, dict[str, str]] = {}

    @staticmethod
    def host(request: Request) -> str:
        """The request's host, without the port and the root's dot; "" if it has none."""
        host = unwire(request.values.get("host") or "").lower()
        return re.sub(r":\d+$", "", host).removesuffix(".")

    def find(self, service: Service, host: str) -> list[str]:
        """The values that match a host, the most specific first: those for the host itself, for
        "*." and the host or a domain above it, and for "*"."""
        maps = self.maps.get(service, {})
        labels = host.rsplit(".", MAX_LABELS)
        domains = [f"*.{'.'.join(labels[number:])}" for number in range(len(labels))]
        return [maps[each] for each in (host, *domains, "*") if each in maps]


class Vhosts(HostMaps):
    """Chooses a service by host name."""

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
                exchange.hand_over(services[name])
            else:
                text = "Vhost twiddling not configured for requested pair."
                exchange.client.send_page(404, text)
            return True
        for name in self.find(service, host):
            if name in services:
                exchange.hand_over(services[name])
                return True
        if service.default_service is not None:
            return False
        exchange.client.send_page(404, "Not Found (no configured vhost)")
        return True

    def dump(self, service: Service) -> list[str]:
        return [f"VHOST {host} = {name}" for host, name in self.maps.get(service, {}).items()]


class Redirect(HostMaps):
    """Redirects requests from one host to another."""

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
    """Admits or refuses clients by their address."""

    name = "AccessControl"
    settings = frozenset((_USE_OBSERVED_IP,))

    def __init__(self, server: Server) -> None:
        super().__init__(server)
        self.rules: dict[Service, list[tuple[str, str, str, Netmask]]] = {}
        """For each rule the action, the kind, the address as written, and the network it means."""
        self.denies: set[Service] = set()
        """The services that deny clients that no rule matches."""

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
        """The action for a client at this address."""
        try:
            address = ipaddress.ip_address(ip)
        except ValueError:
            # An upstream may send anything. The mask that matches all IPv4 addresses matches that
            # as well, as in the original, unless it looks like an address with a port.
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
    """Sends X-Forwarded-Port and X-Forwarded-Proto to backends."""

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
    """Runs the commands in other files."""

    name = "Include"
    MAX_DEPTH = 10
    _depth = 0

    def commands(self) -> dict[str, Command]:
        usage = "usage: INCLUDE = <config files>"
        return {"include": Command(self._include, r"\s+=\s+(.+)", usage)}

    def _include(self, call: Call, patterns: str) -> None:
        if self._depth >= self.MAX_DEPTH:
            raise LanguageError(f"INCLUDE within INCLUDE, {self.MAX_DEPTH} deep: {patterns}")
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
