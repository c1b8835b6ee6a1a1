"""TCP_CORK of Linux and TCP_NOPUSH of the BSDs: which of them this platform has, and setting it."""

from __future__ import annotations

from ctypes import byref, c_int, sizeof
from errno import EINVAL, ENOPROTOOPT, ENOTSOCK, EOPNOTSUPP

from danga_raw._libc import failure, libc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Final

IPPROTO_TCP: Final = 6

CORK_OPTIONS: Final[Mapping[str, tuple[str, int]]] = {
    "linux": ("TCP_CORK", 3),
    "darwin": ("TCP_NOPUSH", 4),
    "dragonfly": ("TCP_NOPUSH", 4),
    "freebsd": ("TCP_NOPUSH", 4),
    "openbsd": ("TCP_NOPUSH", 0x10),
}
"""The option of each platform that has one, read off its own <netinet/tcp.h>. A number is never
used on another platform: Linux's 3 is TCP_KEEPIDLE on NetBSD, and setting that would succeed.
NetBSD has none: TCP_NOPUSH stands in its header under `#ifdef notyet`, and its kernel refuses the
number."""

NO_CORK_HERE: Final = frozenset({EINVAL, ENOPROTOOPT, ENOTSOCK, EOPNOTSUPP})
"""What setsockopt(2) answers for a descriptor that can't be corked: a datagram socket on FreeBSD or
on Linux, a pipe, a UNIX socket. Nothing is wrong then; nothing is corked either."""


def set_cork(fd: int, on: bool) -> bool:
    """Hold back partial segments of the TCP socket `fd` from here on, or send them: setsockopt(2).

    True if it was done, False where this kind of descriptor or this platform has no such thing.
    Raises `OSError` for any other answer (EBADF). What clearing the option sends, and when, differs
    by platform: docs/platforms.md.
    """
    if libc.platform not in CORK_OPTIONS:
        return False
    name, number = CORK_OPTIONS[libc.platform]
    if libc.setsockopt(fd, IPPROTO_TCP, number, byref(c_int(on)), sizeof(c_int)) < 0:
        error = failure(f"setsockopt(fd {fd}, IPPROTO_TCP, {name}, {int(on)})")
        if error.errno not in NO_CORK_HERE:
            raise error
        return False
    return True
