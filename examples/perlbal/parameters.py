"""The parameters of services: their names, types, defaults, and the roles they belong to."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Final, NamedTuple, TypeVar, get_type_hints

if TYPE_CHECKING:
    from examples.perlbal.pools import Pool
    from examples.perlbal.services import Service

ROLES: Final = ("reverse_proxy", "web_server", "management", "selector")

Netmask = ipaddress.IPv4Network | ipaddress.IPv6Network
Value = object
T = TypeVar("T")


class LanguageError(Exception):
    """A command that can't be carried out. The argument is what the administrator is told."""


def named(things: Mapping[str, T], name: str, complaint: str) -> T:
    """What has this name. Raises `LanguageError` with the complaint."""
    if name not in things:
        raise LanguageError(complaint)
    return things[name]


Reader = Callable[["Service", str, str], Value]
"""Makes a value of a service, a parameter's key and the text; may raise `LanguageError`."""


def _fitting(pattern: str, make: Callable[[re.Match[str]], Value], complaint: str) -> Reader:
    """Reads what fits a pattern."""

    def read(service: Service, key: str, text: str) -> Value:
        if (found := re.fullmatch(pattern, text, re.ASCII)) is None:
            raise LanguageError(complaint.format(key=key, text=text))
        return make(found)

    return read


_UNITS: Final = {"": 1, "b": 1, "k": 1024, "m": 1024 * 1024}

boolean: Final = _fitting(
    "(?i)(1|true|on|yes)|0|false|off|no",
    lambda found: found[1] is not None,
    "Expecting boolean value for parameter '{key}'",
)
integer: Final = _fitting(
    r"\d{1,18}", lambda found: int(found[0]), "Expecting integer value for parameter '{key}'"
)
size: Final = _fitting(
    r"(?i)(\d{1,18})([bkm]?)",
    lambda found: int(found[1]) * _UNITS[found[2].lower()],
    "Expecting size unit value for parameter '{key}' in bytes, or suffixed with 'K' or 'M'",
)
percent: Final = _fitting(
    r"0*(100|\d{1,2})",
    lambda found: int(found[1]),
    "Expecting integer value between 0 and 100, inclusive.",
)
string: Final = _fitting(".*", lambda found: found[0], "")
request_path: Final = _fitting(
    "[!-~]+", lambda found: found[0], "'{text}' is no path that can be asked for"
)
words: Final = re.compile(r"[^\s,]+", re.ASCII).findall
"""What stands in a list, with commas or spaces between."""
file_names: Final = _fitting(".*", lambda found: tuple(words(found[0])), "")
# Each character fits in one way: of a line that doesn't fit, others would be tried without end.
_SECONDS: Final = r"\s*(?:(?:\d{1,9}(?:\.\d{0,9})?|\.\d{0,9})\s*)?"
schedule: Final = _fitting(
    rf"{_SECONDS}(?:,{_SECONDS})*",
    lambda found: tuple(float(f"0{each.strip()}") for each in found[0].split(",")),
    "Expecting seconds, with commas between, for parameter '{key}'",
)


def role_name(service: Service, key: str, text: str) -> str:
    if text == "upload_tracker":
        raise LanguageError("The role upload_tracker is not supported here")
    if text not in ROLES:
        raise LanguageError(f"Role not valid for service {service.name}")
    return text


_IP: Final = r"(\d{1,3}(?:\.\d{1,3}){3}|\[[\da-fA-F:.]+\])"
NODE: Final = rf"{_IP}(?::(\d{{1,5}}))?"
"""What fits "ip", "ip:port", "[ip]" and "[ip]:port"."""
_ADDRESS: Final = re.compile(rf"(?:{_IP}:)?(\d{{1,5}})", re.ASCII)


def address(text: str) -> tuple[str, int]:
    """The host (empty if there is none) and the port of "port", "ip:port" or "[ip]:port". Raises
    `LanguageError`."""
    found = _ADDRESS.fullmatch(text)
    if found is not None and int(found[2]) < 65536:
        host = (found[1] or "").strip("[]")
        with suppress(ValueError):
            return (str(ipaddress.ip_address(host)) if host else ""), int(found[2])
    raise LanguageError("Listen argument must be ip:port or port. e.g. 192.168.0.1:80 or 81")


def listen_address(service: Service, key: str, text: str) -> str:
    address(text)
    return text


def _folder(complaint: str) -> Reader:
    """Reads the name of a folder that is there."""

    def read(service: Service, key: str, text: str) -> str:
        if not os.path.isdir(text):
            raise LanguageError(complaint.format(service=service.name, key=key, text=text))
        return text

    return read


docroot_folder: Final = _folder("Directory not found for service {service}")
uploads_folder: Final = _folder("Directory ({text}) not found for service {service} ({key})")


def existing_pool(service: Service, key: str, text: str) -> Pool:
    return named(service.server.pools, text, f"Pool '{text}' not found")


def existing_service(service: Service, key: str, text: str) -> Service:
    return named(service.server.services, text, f"Service '{text}' not found")


_QUAD: Final = r"(\d+\.\d+\.\d+\.\d+)"
_RANGE: Final = re.compile(rf"{_QUAD}\s*-\s*{_QUAD}", re.ASCII)
_MASKED: Final = re.compile(rf"{_QUAD}(?:/(\d+)|[:/]{_QUAD})", re.ASCII)
_MASKS: Final = {str(ipaddress.ip_network((0, bits)).netmask) for bits in range(33)}


def netmask(text: str) -> Netmask:
    """The addresses that an address, "10.0.0.0/8", "10.0.0.0/255.0.0.0", "10.0.0.0:255.0.0.0",
    "10.0.0.0-10.255.255.255", "any" or an IPv6 prefix means. Raises `ValueError`, of which the
    text says what is wrong, as Net::Netmask does."""
    if text in ("any", "default"):
        text = "0.0.0.0/0"
    if found := _RANGE.fullmatch(text):
        first, last = (ipaddress.IPv4Address(each) for each in found.groups())
        networks = list(ipaddress.summarize_address_range(first, last)) if first <= last else []
        if len(networks) != 1:
            raise ValueError(f"could not find exact fit for {text}")
        return networks[0]
    network = text
    if found := _MASKED.fullmatch(text):
        mask = found[2] or found[3]
        network = f"{found[1]}/{mask}"
        if mask.isdigit() and int(mask) > 32:
            raise ValueError(f"illegal number of bits: {mask}")
        # One of the host's part would be understood as well.
        if "." in mask and mask not in _MASKS:
            raise ValueError(f"illegal netmask: {mask}")
    try:
        return ipaddress.ip_network(network, strict=False)
    except ValueError:
        raise ValueError(f"could not parse {text}") from None


def netmasks(service: Service, key: str, text: str) -> tuple[Netmask, ...]:
    names = text.rstrip(", ")
    try:
        if not names:
            raise ValueError("None found")
        return tuple(netmask(each) for each in re.split(r"\s*,\s*", names))
    except ValueError as error:
        raise LanguageError(f"Error defining trusted upstream proxies: {error}") from None


def no_ssl(service: Service, key: str, text: str) -> bool:
    if boolean(service, key, text):
        raise LanguageError("SSL is not supported here: put a server that has it in front")
    return False


LEFT_OUT: Final = frozenset(
    ("ssl_key_file", "ssl_cert_file", "ssl_cipher_list", "ssl_ca_path", "ssl_verify_mode")
    + ("ssl_honor_cipher_order", "upload_status_listeners", "server_process")
)
"""Perlbal's parameters that aren't here."""


class Parameter(NamedTuple):
    role: str
    """The role that has it; empty: all have."""
    read: Reader

    def is_for(self, role: str) -> bool:
        return self.role in ("", role)


Size = Annotated[int, size]
Text = Annotated[str, string]


class AllRoles:
    role: Annotated[str, role_name] = ""
    listen: Annotated[str | None, listen_address] = None
    persist_client: bool = False
    persist_client_idle_timeout: int = 30
    idle_timeout: int = 30
    persist_client_timeout: int = 0
    always_trusted: bool = False
    trusted_upstream_proxies: Annotated[tuple[Netmask, ...], netmasks] = ()
    max_chunked_request_size: Size = 200 * 1024 * 1024
    client_sndbuf_size: Size = 0
    server_tokens: bool = True
    enable_ssl: Annotated[bool, no_ssl] = False


class ReverseProxy:
    pool: Annotated["Pool | None", existing_pool] = None
    persist_backend: bool = False
    backend_persist_cache: int = 2
    connect_ahead: int = 0
    max_backend_uses: int = 0
    verify_backend: bool = False
    verify_backend_path: Annotated[str, request_path] = "*"
    buffer_size: Size = 256 * 1024
    buffer_size_reproxy_url: Size = 50 * 1024
    buffer_backend_connect: Size = 100 * 1024
    buffer_uploads: bool = False
    buffer_uploads_path: Annotated[str | None, uploads_folder] = None
    buffer_upload_threshold_time: int = 5
    buffer_upload_threshold_size: Size = 250 * 1024
    buffer_upload_threshold_rate: int = 0
    queue_relief_size: int = 0
    queue_relief_chance: Annotated[int, percent] = 0
    high_priority_cookie: Text = ""
    high_priority_cookie_contents: Text = ""
    blind_proxy: bool = False
    enable_reproxy: bool = False
    reproxy_cache_maxsize: int = 0
    enable_error_retries: bool = False
    error_retry_schedule: Annotated[tuple[float, ...], schedule] = (0, 0.25, 0.5, 1, 1, 1, 1, 1)


class WebServer:
    docroot: Annotated[str | None, docroot_folder] = None
    index_files: Annotated[tuple[str, ...], file_names] = ("index.html",)
    dirindexing: bool = False
    enable_put: bool = False
    enable_delete: bool = False
    enable_md5: bool = True
    max_put_size: Size = 0
    min_put_directory: int = 0
    enable_concatenate_get: bool = False


class Selector:
    default_service: Annotated["Service | None", existing_service] = None
    latency: int = 0


class Parameters(AllRoles, ReverseProxy, WebServer, Selector):
    """All that can be set of a service, by the names that the language has for it, with their
    defaults."""


_BY_ROLE: Final = {
    "": AllRoles,
    "reverse_proxy": ReverseProxy,
    "web_server": WebServer,
    "selector": Selector,
}
_NAMES: Final = {**globals(), "Pool": object, "Service": object}
_READERS: Final[dict[object, Reader]] = {bool: boolean, int: integer}

PARAMETERS: Final = {
    key: Parameter(role, _READERS[hint] if hint in _READERS else hint.__metadata__[0])
    for role, names in _BY_ROLE.items()
    for key, hint in get_type_hints(names, _NAMES, include_extras=True).items()
}
"""How each is read."""
