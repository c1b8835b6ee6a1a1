"""The addresses of the two ends of a connection."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final, TypeAlias

    from danga_raw.types import Handle

    Address: TypeAlias = tuple[str | None, int | None]

NOWHERE: Final[Address] = (None, None)
"""The IP address and port if there are none, or if they have not been asked for."""


def ask(call: Callable[[Handle], object], sock: Handle) -> Address:
    """The result of getpeername(2) or getsockname(2), without the scope of an IPv6 address."""
    try:
        answer = call(sock)
    except (OSError, AttributeError):
        return NOWHERE
    match answer:
        case (str(ip), int(port)) | (str(ip), int(port), int(), int()):
            return ip.partition("%")[0], port
        case _:
            return NOWHERE


def shown(host: str, port: object) -> str:
    """An address as text: `host:port` or `[ip]:port`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def with_port(address: Address) -> str | None:
    """An address as text; None for `NOWHERE`."""
    ip, port = address
    return None if ip is None else shown(ip, port)
