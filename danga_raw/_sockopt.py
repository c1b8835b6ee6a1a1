"""TCP_CORK of Linux and TCP_NOPUSH of the BSDs: which of them this platform has, and setting it."""

from __future__ import annotations

import errno
from ctypes import byref, c_int, sizeof

from danga_raw._libc import libc, raise_failure

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

NO_SUCH_KIND: Final = {errno.EINVAL, errno.ENOPROTOOPT, errno.ENOTSOCK, errno.EOPNOTSUPP}
"""What setsockopt(2) answers for a kind of descriptor that can't be corked: a datagram socket on
FreeBSD (EINVAL) or on Linux, a pipe, a UNIX socket."""

CONNECTION_GONE: Final = {
    *(errno.ECONNABORTED, errno.ECONNREFUSED, errno.ECONNRESET, errno.EHOSTDOWN),
    *(errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETRESET, errno.ENETUNREACH),
    *(errno.ENOTCONN, errno.EPIPE, errno.ESHUTDOWN, errno.ETIMEDOUT),
}
"""What it may answer of a connection that is gone, which the other side decides, and a read or an
event tells: ECONNRESET on FreeBSD (tcp_ctloutput). macOS answers EINVAL (sosetoptlock)."""


def set_cork(fd: int, on: bool) -> bool:
    """Hold back partial segments of the TCP socket `fd` from here on, or send them: setsockopt(2).

    False where this platform or this kind of descriptor has no such thing, or the connection is gone.
    Raises `OSError` for any other answer (EBADF). What clearing the option sends, and when, differs
    by platform: docs/platforms.md.
    """
    if libc.platform not in CORK_OPTIONS:
        return False
    name, number = CORK_OPTIONS[libc.platform]
    if libc.setsockopt(fd, IPPROTO_TCP, number, byref(c_int(on)), sizeof(c_int)) < 0:
        call = f"setsockopt(fd {fd}, IPPROTO_TCP, {name}, {int(on)})"
        raise_failure(call, *NO_SUCH_KIND, *CONNECTION_GONE)
        return False
    return True
