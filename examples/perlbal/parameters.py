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
    lambda found: int(found[1] is not None),
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


def no_ssl(service: Service, key: str, text: str) -> int:
    if boolean(service, key, text):
        raise LanguageError("SSL is not supported here: put a server that has it in front")
    return 0


LEFT_OUT: Final = frozenset(
    ("ssl_key_file", "ssl_cert_file", "ssl_cipher_list", "ssl_ca_path", "ssl_verify_mode")
    + ("ssl_honor_cipher_order", "upload_status_listeners", "server_process")
)
"""Perlbal's parameters that aren't here."""


class Parameter(NamedTuple):
    """How a parameter is read."""

    role: str
    """The role that has it, or "*"."""
    read: Reader
    dumped: bool = True
    """Whether DUMPCONFIG has it with its service."""


ALL: Final = "*"
PROXY: Final = "reverse_proxy"
WEB: Final = "web_server"
SELECTOR: Final = "selector"


class Parameters:
    """All that can be set of a service, by the names that the language has for it, with their
    defaults."""

    role: Annotated[str, Parameter(ALL, role_name)] = ""
    listen: Annotated[str | None, Parameter(ALL, listen_address)] = None
    persist_client: Annotated[int, Parameter(ALL, boolean)] = 0
    persist_client_idle_timeout: Annotated[int, Parameter(ALL, integer)] = 30
    idle_timeout: Annotated[int, Parameter(ALL, integer)] = 30
    persist_client_timeout: Annotated[int, Parameter(ALL, integer, dumped=False)] = 0
    always_trusted: Annotated[int, Parameter(ALL, boolean)] = 0
    trusted_upstream_proxies: Annotated[tuple[Netmask, ...], Parameter(ALL, netmasks)] = ()
    max_chunked_request_size: Annotated[int, Parameter(ALL, size)] = 200 * 1024 * 1024
    client_sndbuf_size: Annotated[int, Parameter(ALL, size)] = 0
    server_tokens: Annotated[int, Parameter(ALL, boolean)] = 1
    enable_ssl: Annotated[int, Parameter(ALL, no_ssl)] = 0

    pool: Annotated["Pool | None", Parameter(PROXY, existing_pool)] = None
    persist_backend: Annotated[int, Parameter(PROXY, boolean)] = 0
    backend_persist_cache: Annotated[int, Parameter(PROXY, integer)] = 2
    connect_ahead: Annotated[int, Parameter(PROXY, integer)] = 0
    max_backend_uses: Annotated[int, Parameter(PROXY, integer)] = 0
    verify_backend: Annotated[int, Parameter(PROXY, boolean)] = 0
    verify_backend_path: Annotated[str, Parameter(PROXY, request_path)] = "*"
    buffer_size: Annotated[int, Parameter(PROXY, size)] = 256 * 1024
    buffer_size_reproxy_url: Annotated[int, Parameter(PROXY, size)] = 50 * 1024
    buffer_backend_connect: Annotated[int, Parameter(PROXY, size)] = 100 * 1024
    buffer_uploads: Annotated[int, Parameter(PROXY, boolean)] = 0
    buffer_uploads_path: Annotated[str | None, Parameter(PROXY, uploads_folder)] = None
    buffer_upload_threshold_time: Annotated[int, Parameter(PROXY, integer)] = 5
    buffer_upload_threshold_size: Annotated[int, Parameter(PROXY, size)] = 250 * 1024
    buffer_upload_threshold_rate: Annotated[int, Parameter(PROXY, integer)] = 0
    queue_relief_size: Annotated[int, Parameter(PROXY, integer)] = 0
    queue_relief_chance: Annotated[int, Parameter(PROXY, percent)] = 0
    high_priority_cookie: Annotated[str, Parameter(PROXY, string)] = ""
    high_priority_cookie_contents: Annotated[str, Parameter(PROXY, string)] = ""
    blind_proxy: Annotated[int, Parameter(PROXY, boolean)] = 0
    enable_reproxy: Annotated[int, Parameter(PROXY, boolean)] = 0
    reproxy_cache_maxsize: Annotated[int, Parameter(PROXY, integer)] = 0
    enable_error_retries: Annotated[int, Parameter(PROXY, boolean)] = 0
    error_retry_schedule: Annotated[tuple[float, ...], Parameter(PROXY, schedule)]
    error_retry_schedule = (0.0, 0.25, 0.5) + 5 * (1.0,)

    docroot: Annotated[str | None, Parameter(WEB, docroot_folder)] = None
    index_files: Annotated[tuple[str, ...], Parameter(WEB, file_names)] = ("index.html",)
    dirindexing: Annotated[int, Parameter(WEB, boolean)] = 0
    enable_put: Annotated[int, Parameter(WEB, boolean)] = 0
    enable_delete: Annotated[int, Parameter(WEB, boolean)] = 0
    enable_md5: Annotated[int, Parameter(WEB, boolean)] = 1
    max_put_size: Annotated[int, Parameter(WEB, size)] = 0
    min_put_directory: Annotated[int, Parameter(WEB, integer)] = 0
    enable_concatenate_get: Annotated[int, Parameter(WEB, boolean)] = 0

    default_service: Annotated[
        "Service | None", Parameter(SELECTOR, existing_service, dumped=False)
    ] = None
    latency: Annotated[int, Parameter(SELECTOR, integer)] = 0


PARAMETERS: Final[dict[str, Parameter]] = {
    key: hint.__metadata__[0]
    for key, hint in get_type_hints(
        Parameters, {**globals(), "Pool": object, "Service": object}, include_extras=True
    ).items()
}
