"""TCP_CORK (Linux) and TCP_NOPUSH (BSD): which one this platform has, and setting it."""

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
"""The option of each platform that has one, from its <netinet/tcp.h>. A number is never used on
another platform: Linux's 3 is TCP_KEEPIDLE on NetBSD, and setting it would succeed. NetBSD has no
such option: its header has TCP_NOPUSH under `#ifdef notyet`, and its kernel rejects the number."""

NO_SUCH_KIND: Final = {errno.EINVAL, errno.ENOPROTOOPT, errno.ENOTSOCK, errno.EOPNOTSUPP}
"""The errors of setsockopt(2) for descriptors that can't be corked: a datagram socket on FreeBSD
(EINVAL) or Linux, a pipe, a UNIX socket."""

CONNECTION_GONE: Final = {
    *(errno.ECONNABORTED, errno.ECONNREFUSED, errno.ECONNRESET, errno.EHOSTDOWN),
    *(errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETRESET, errno.ENETUNREACH),
    *(errno.ENOTCONN, errno.EPIPE, errno.ESHUTDOWN, errno.ETIMEDOUT),
}
"""The errors for a connection that the peer has ended, which a read or an event will report:
ECONNRESET on FreeBSD (tcp_ctloutput). macOS fails with EINVAL (sosetoptlock)."""


def set_cork(fd: int, on: bool) -> bool:
    """Start holding back partial segments of the TCP socket `fd`, or send them: setsockopt(2).

    False if the platform or the descriptor has no such option, or if the connection is gone. Raises
    `OSError` for any other error (EBADF). What clearing the option sends, and when, differs by
    platform: docs/platforms.md.
    """
    if libc.platform not in CORK_OPTIONS:
        return False
    name, number = CORK_OPTIONS[libc.platform]
    if libc.setsockopt(fd, IPPROTO_TCP, number, byref(c_int(on)), sizeof(c_int)) < 0:
        call = f"setsockopt(fd {fd}, IPPROTO_TCP, {name}, {int(on)})"
        raise_failure(call, *NO_SUCH_KIND, *CONNECTION_GONE)
        return False
    return True
