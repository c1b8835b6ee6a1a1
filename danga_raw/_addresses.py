"""The two ends of a connection, as the kernel tells them."""

from __future__ import annotations

from danga_raw._libc import libc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    from danga_raw.types import Handle


class Address:
    """One side's IP address and port, kept once the kernel has told them."""

    __slots__ = ("ip", "port")

    def __init__(self, ip: str | None, port: int | None) -> None:
        self.ip = ip
        self.port = port

    def with_port(self) -> str | None:
        """As `ip:port` or `[ip]:port`."""
        if self.ip is None:
            return None
        return f"[{self.ip}]:{self.port}" if ":" in self.ip else f"{self.ip}:{self.port}"


NOWHERE: Final = Address(None, None)
"""What has no IP address, or has not been asked for it."""


def peer(sock: Handle) -> Address:
    """The other side: getpeername(2)."""
    return _ask(libc.getpeername, sock)


def local(sock: Handle) -> Address:
    """This side: getsockname(2)."""
    return _ask(libc.getsockname, sock)


def _ask(call: Callable[[Handle], object], sock: Handle) -> Address:
    try:
        answer = call(sock)
    except (OSError, AttributeError):
        return NOWHERE
    match answer:
        case (str(ip), int(port)) | (str(ip), int(port), int(), int()):
            return Address(ip.partition("%")[0], port)
        case _:
            return NOWHERE
