"""The parameters of services: their names, types, defaults, and the roles they belong to."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable
from typing import Final

ROLES: Final = ("reverse_proxy", "web_server", "management", "selector")

Netmask = ipaddress.IPv4Network | ipaddress.IPv6Network
Value = int | str | None | tuple[str, ...] | tuple[Netmask, ...]


class LanguageError(Exception):
    """A command that can't be carried out. The argument is what the administrator is told."""


Reader = Callable[[str, str, str], Value]
"""Makes a value of a parameter's key, the service's name and the text; may raise `LanguageError`."""

_ON: Final = ("1", "true", "on", "yes")
_OFF: Final = ("0", "false", "off", "no")
_SIZE: Final = re.compile(r"(\d{1,18})([bkm]?)", re.ASCII | re.IGNORECASE)
_UNITS: Final = {"": 1, "b": 1, "k": 1024, "m": 1024 * 1024}
_ADDRESS: Final = re.compile(
    r"(?:(\d{1,3}(?:\.\d{1,3}){3}|\[[\da-fA-F:.]+\]):)?(\d{1,5})", re.ASCII
)
_QUAD: Final = r"(\d+\.\d+\.\d+\.\d+)"
_RANGE: Final = re.compile(rf"{_QUAD}\s*-\s*{_QUAD}", re.ASCII)
_MASKED: Final = re.compile(rf"{_QUAD}(?:/(\d+)|[:/]{_QUAD})", re.ASCII)


def boolean(key: str, service: str, text: str) -> int:
    if text.lower() in _ON:
        return 1
    if text.lower() in _OFF:
        return 0
    raise LanguageError(f"Expecting boolean value for parameter '{key}'")


def integer(key: str, service: str, text: str) -> int:
    if not re.fullmatch(r"\d{1,18}", text, re.ASCII):
        raise LanguageError(f"Expecting integer value for parameter '{key}'")
    return int(text)


def size(key: str, service: str, text: str) -> int:
    if not (found := _SIZE.fullmatch(text)):
        raise LanguageError(
            f"Expecting size unit value for parameter '{key}' in bytes, or suffixed with 'K' or 'M'"
        )
    return int(found[1]) * _UNITS[found[2].lower()]


def percent(key: str, service: str, text: str) -> int:
    if not re.fullmatch(r"\d{1,3}", text, re.ASCII) or int(text) > 100:
        raise LanguageError("Expecting integer value between 0 and 100, inclusive.")
    return int(text)


def string(key: str, service: str, text: str) -> str:
    return text


def path(key: str, service: str, text: str) -> str:
    if not text.isascii() or not text.isprintable() or " " in text:
        raise LanguageError(f"'{text}' is no path that can be asked for")
    return text


def role(key: str, service: str, text: str) -> str:
    if text == "upload_tracker":
        raise LanguageError("The role upload_tracker is not supported here")
    if text not in ROLES:
        raise LanguageError(f"Role not valid for service {service}")
    return text


def address(text: str) -> tuple[str, int] | None:
    """The host (empty if there is none) and the port of "port", "ip:port" or "[ip]:port"."""
    found = _ADDRESS.fullmatch(text)
    if found is None or int(found[2]) > 65535:
        return None
    host = (found[1] or "").strip("[]")
    try:
        return (str(ipaddress.ip_address(host)) if host else ""), int(found[2])
    except ValueError:
        return None


def listen(key: str, service: str, text: str) -> str:
    if address(text) is None:
        raise LanguageError("Listen argument must be ip:port or port. e.g. 192.168.0.1:80 or 81")
    return text


def docroot(key: str, service: str, text: str) -> str:
    folder = text.removesuffix("/")
    if not os.path.isdir(folder or "/"):
        raise LanguageError(f"Directory not found for service {service}")
    return folder


def uploads_path(key: str, service: str, text: str) -> str:
    folder = text.removesuffix("/")
    if not os.path.isdir(folder or "/"):
        raise LanguageError(f"Directory ({text}) not found for service {service} ({key})")
    return folder


def file_names(key: str, service: str, text: str) -> tuple[str, ...]:
    return tuple(re.split(r"[\s,]+", text))


def schedule(key: str, service: str, text: str) -> str:
    if not all(re.fullmatch(r"\d*\.?\d*", each.strip(), re.ASCII) for each in text.split(",")):
        raise LanguageError(f"Expecting seconds, with commas between, for parameter '{key}'")
    return text


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
    host, mask = text, ""
    if found := _MASKED.fullmatch(text):
        host, mask = found[1], found[2] or found[3]
    if mask.isdigit() and int(mask) > 32:
        raise ValueError(f"illegal number of bits: {mask}")
    try:
        network = ipaddress.ip_network(f"{host}/{mask}" if mask else host, strict=False)
    except ValueError:
        network = None
    # A mask of the host's part would be understood as well, which isn't one of the network's.
    if "." in mask and (network is None or str(network.netmask) != mask):
        raise ValueError(f"illegal netmask: {mask}")
    if network is None:
        raise ValueError(f"could not parse {text}")
    return network


def netmasks(key: str, service: str, text: str) -> tuple[Netmask, ...]:
    try:
        return tuple(netmask(each) for each in re.split(r"\s*,\s*", text))
    except ValueError as error:
        raise LanguageError(f"Error defining trusted upstream proxies: {error}") from None


def ssl_off(key: str, service: str, text: str) -> int:
    if boolean(key, service, text):
        raise LanguageError("SSL is not supported here: put a server that has it in front")
    return 0


def left_out(key: str, service: str, text: str) -> Value:
    raise LanguageError(f"The '{key}' option is not supported here")


class Parameter:
    """One parameter. `default` is written as in the language; None: it has none."""

    __slots__ = ("default", "dumped", "read", "role")

    def __init__(
        self, role: str, read: Reader, default: str | None = None, *, dumped: bool = True
    ) -> None:
        self.role = role
        """The role that has it, or "*"."""
        self.read = read
        self.default = default
        self.dumped = dumped


_ALL: Final = "*"
_PROXY: Final = "reverse_proxy"
_WEB: Final = "web_server"

PARAMETERS: Final[dict[str, Parameter]] = {
    # all roles
    "role": Parameter(_ALL, role),
    "listen": Parameter(_ALL, listen),
    "persist_client": Parameter(_ALL, boolean, "0"),
    "persist_client_idle_timeout": Parameter(_ALL, integer, "30"),
    "idle_timeout": Parameter(_ALL, integer, "30"),
    "persist_client_timeout": Parameter(_ALL, integer, dumped=False),
    "always_trusted": Parameter(_ALL, boolean, "0"),
    "trusted_upstream_proxies": Parameter(_ALL, netmasks),
    "max_chunked_request_size": Parameter(_ALL, size, "200m"),
    "client_sndbuf_size": Parameter(_ALL, size, "0"),
    "server_tokens": Parameter(_ALL, boolean, "1"),
    "enable_ssl": Parameter(_ALL, ssl_off, "0"),
    "ssl_key_file": Parameter(_ALL, left_out),
    "ssl_cert_file": Parameter(_ALL, left_out),
    "ssl_cipher_list": Parameter(_ALL, left_out),
    "ssl_ca_path": Parameter(_ALL, left_out),
    "ssl_verify_mode": Parameter(_ALL, left_out),
    "ssl_honor_cipher_order": Parameter(_ALL, left_out),
    # reverse_proxy
    "pool": Parameter(_PROXY, string),
    "persist_backend": Parameter(_PROXY, boolean, "0"),
    "backend_persist_cache": Parameter(_PROXY, integer, "2"),
    "connect_ahead": Parameter(_PROXY, integer, "0"),
    "max_backend_uses": Parameter(_PROXY, integer, "0"),
    "verify_backend": Parameter(_PROXY, boolean, "0"),
    "verify_backend_path": Parameter(_PROXY, path, "*"),
    "buffer_size": Parameter(_PROXY, size, "256k"),
    "buffer_size_reproxy_url": Parameter(_PROXY, size, "50k"),
    "buffer_backend_connect": Parameter(_PROXY, size, "100k"),
    "buffer_uploads": Parameter(_PROXY, boolean, "0"),
    "buffer_uploads_path": Parameter(_PROXY, uploads_path),
    "buffer_upload_threshold_time": Parameter(_PROXY, integer, "5"),
    "buffer_upload_threshold_size": Parameter(_PROXY, size, "250k"),
    "buffer_upload_threshold_rate": Parameter(_PROXY, integer, "0"),
    "queue_relief_size": Parameter(_PROXY, integer, "0"),
    "queue_relief_chance": Parameter(_PROXY, percent, "0"),
    "high_priority_cookie": Parameter(_PROXY, string),
    "high_priority_cookie_contents": Parameter(_PROXY, string),
    "blind_proxy": Parameter(_PROXY, boolean, "0"),
    "enable_reproxy": Parameter(_PROXY, boolean, "0"),
    "reproxy_cache_maxsize": Parameter(_PROXY, integer, "0"),
    "enable_error_retries": Parameter(_PROXY, boolean, "0"),
    "error_retry_schedule": Parameter(_PROXY, schedule, "0,.25,.50,1,1,1,1,1"),
    "upload_status_listeners": Parameter(_PROXY, left_out),
    "server_process": Parameter(_PROXY, left_out),
    # web_server
    "docroot": Parameter(_WEB, docroot),
    "index_files": Parameter(_WEB, file_names, "index.html"),
    "dirindexing": Parameter(_WEB, boolean, "0"),
    "enable_put": Parameter(_WEB, boolean, "0"),
    "enable_delete": Parameter(_WEB, boolean, "0"),
    "enable_md5": Parameter(_WEB, boolean, "1"),
    "max_put_size": Parameter(_WEB, size, "0"),
    "min_put_directory": Parameter(_WEB, integer, "0"),
    "enable_concatenate_get": Parameter(_WEB, boolean, "0"),
    # selector
    "default_service": Parameter("selector", string),
    "latency": Parameter("selector", integer, "0"),
}
