"""What a poller watches, according to its own table or the kernel's."""

from __future__ import annotations

import re
from pathlib import Path

from danga_raw._poll import POLLIN, POLLOUT, Poll

MASK = POLLIN | POLLOUT


def by_poll(poller: Poll) -> dict[int, int]:
    """The table for its next wait: fd -> the mask, only for reading and writing."""
    if poller._changed:
        return {fd: events & MASK for fd, events in poller._events.items()}
    return {each.fd: each.events & MASK for each in poller._table[0][: len(poller._fds)]}


def by_epoll(epfd: int) -> dict[int, int]:
    """The same for an epoll descriptor of the real kernel, from /proc (proc_pid_fdinfo(5))."""
    text = Path(f"/proc/self/fdinfo/{epfd}").read_text()
    found = re.findall(r"^tfd: +(\d+) events: +(\w+)", text, re.MULTILINE)
    return {int(fd): int(events, 16) & MASK for fd, events in found}
